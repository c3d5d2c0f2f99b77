"""Vertex AI's custom containers: the AIP variables, and the bodies that its endpoints send."""

import re

import numpy as np
import pytest

from mlserve.errors import UsageError
from mlserve.serve.protocols.vertex import VertexRoutes, vertex_routes
from mlserve.serve.settings import NamedRoute

PREDICT = "/v1/endpoints/1/deployedModels/2:predict"
ROWS = np.random.default_rng(0).standard_normal((2, 30)).astype(np.float32)
VERTEX = {"AIP_HTTP_PORT": "8080", "AIP_PREDICT_ROUTE": PREDICT, "AIP_HEALTH_ROUTE": "/v1/endpoints/1/deployedModels/2"}


def test_the_variables_say_where_to_listen():
    assert vertex_routes(VERTEX, "spam", "3") == VertexRoutes(
        "0.0.0.0", 8080, (NamedRoute(PREDICT, "spam", "3", "vertex"),), "/v1/endpoints/1/deployedModels/2"
    )


def test_outside_vertex_there_are_none():
    assert vertex_routes({}, "spam") is None
    assert vertex_routes({"AIP_HTTP_PORT": "8080", "PATH": "/bin"}, "spam") is None


def test_what_is_not_told_is_left_open():
    assert vertex_routes({"AIP_HEALTH_ROUTE": "/ping"}, "spam") == VertexRoutes("0.0.0.0", None, (), "/ping")


@pytest.mark.parametrize(
    "bad",
    [
        {"AIP_HTTP_PORT": "http"},
        {"AIP_HTTP_PORT": "0"},
        {"AIP_HTTP_PORT": "65536"},
        {"AIP_HTTP_PORT": "-1"},
        {"AIP_HTTP_PORT": "9" * 5000},
        {"AIP_PREDICT_ROUTE": "predict"},
        {"AIP_PREDICT_ROUTE": "/{name}"},
        {"AIP_HEALTH_ROUTE": "/a b\n"},
        {"AIP_HEALTH_ROUTE": "/a?b"},
    ],
)
def test_a_variable_that_makes_no_sense_is_named(bad):
    ((name, _),) = bad.items()
    with pytest.raises(UsageError, match=name):
        vertex_routes({**VERTEX, **bad}, "spam")


def test_health_answers_where_vertex_looks_for_it(lone_server):
    assert lone_server.get_json(VERTEX["AIP_HEALTH_ROUTE"]) == {"ready": True}


@pytest.mark.parametrize("extra", [{}, {"parameters": {"confidence": 0.5}}, {"parameters": None}])
def test_instances_are_answered_with_predictions(lone_server, posted, reference, extra):
    status, answer = posted(lone_server, PREDICT, {"instances": ROWS.tolist(), **extra})
    assert (status, answer.keys()) == (200, {"predictions"})
    np.testing.assert_allclose(answer["predictions"], reference(ROWS), rtol=1e-4)
    status, answer = posted(lone_server, PREDICT, {"instances": [{"x": row} for row in ROWS.tolist()]})
    np.testing.assert_allclose(answer["predictions"], reference(ROWS), rtol=1e-4)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "not JSON"),
        ([], '"instances"'),
        ({"inputs": []}, '"instances"'),
        ({"instances": []}, "no rows"),
        ({"instances": "x"}, "no rows"),
        ({"instances": [[1]]}, "shape"),
        ({"instances": [ROWS[0].tolist()], "parameters": [1]}, "'parameters' is no object"),
    ],
)
def test_a_bad_body_is_refused(lone_server, posted, body, message):
    status, answer = posted(lone_server, PREDICT, body)
    assert (status, answer.keys()) == (400, {"error"})
    assert re.search(message, answer["error"])
    assert posted(lone_server, PREDICT, {"instances": ROWS.tolist()})[0] == 200
