"""Paths of the user's own choice, and those that nobody may choose."""

import json
import subprocess
import sys

import msgspec
import pytest

from mlserve.errors import UsageError
from mlserve.serve.access import Access
from mlserve.serve.catalog import Catalog
from mlserve.serve.dialects import http_dialects
from mlserve.serve.protocols import friendly
from mlserve.serve.protocols.dialect import Dialect, Documentation, Page
from mlserve.serve.protocols.named_routes import Spoken, dialect
from mlserve.serve.service import Service
from mlserve.serve.settings import ModelSource, NamedRoute, ServeSettings

ROW = [[0.5] * 30]
PREDICT = {"predict": Spoken(friendly.INFERENCE, friendly.PREDICT)}


def made(*routes):
    """The dialect of `routes` beside all others."""
    settings = ServeSettings(routes=routes)
    return http_dialects(Service(Catalog(), Access()), None, settings)[-1]


@pytest.fixture(scope="module")
def server(serving_settings, tiny_onnx):
    routes = (
        NamedRoute("/score/this", "tiny"),
        NamedRoute("/score/this/v1", "tiny", "1"),
        NamedRoute("/score/next", "tiny", "candidate"),
        NamedRoute("/score/other", "nobody"),
        NamedRoute("/vertex/endpoints/7:predict", "tiny", "1", "vertex"),
    )
    with serving_settings(tiny_onnx, routes=routes) as running:
        yield running


def test_a_route_answers_by_its_model_again_and_again(server):
    expected = json.loads(server.request("POST", "/v1/models/tiny/predict", json.dumps({"rows": ROW}))[2])
    for path in ("/score/this", "/score/this/v1") * 2:
        status, _, body = server.request("POST", path, json.dumps({"rows": ROW}))
        assert (status, json.loads(body)) == (200, expected)


def test_a_route_speaks_the_dialect_it_was_given(server):
    status, _, body = server.request("POST", "/vertex/endpoints/7:predict", json.dumps({"instances": ROW}))
    assert status == 200
    assert len(json.loads(body)["predictions"]) == 1


@pytest.mark.parametrize("path", ["/score/other", "/score/next"])
def test_a_route_whose_model_is_not_served_is_not_found_when_it_is_asked(server, path):
    status, _, body = server.request("POST", path, json.dumps({"rows": ROW}))
    assert status == 404
    assert json.loads(body)["error"].startswith("Request for unknown model")


def test_routes_are_told_in_the_documentation(server):
    document = server.get_json("/openapi.json")
    operation = document["paths"]["/score/this"]["post"]
    assert operation["tags"] == ["named"]
    assert operation["summary"] == "Model tiny"
    assert "examples" in operation["requestBody"]["content"]["application/json"]
    assert "examples" not in document["paths"]["/score/other"]["post"]["requestBody"]["content"]["application/json"]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/v2",
        "/health",
        "/v1/predict",
        "/v1/models/spam/predict",
        "/v2/models/spam/infer",
        "/v1/models/spam:predict",
        "/invocations",
        "/graphql",
        "/openapi.json",
    ],
)
def test_a_path_that_a_dialect_has_is_refused(path):
    with pytest.raises(UsageError, match=r"cannot be served: it is .* choose another path|is no path"):
        made(NamedRoute(path, "spam"))


@pytest.mark.parametrize(
    "path",
    ["spam", "", "//spam", "/spam/", "/a b", "/a?b", "/a#b", "/{name}", "/a/../b", "/./a", "/é", "/" + "a" * 300],
)
def test_a_path_that_is_none_is_refused(path):
    with pytest.raises(UsageError, match="is no path for a model"):
        made(NamedRoute(path, "spam"))


def test_two_routes_with_one_path_and_an_unknown_dialect_are_refused():
    with pytest.raises(UsageError, match="two routes have it"):
        made(NamedRoute("/a", "spam"), NamedRoute("/a", "tiny"))
    with pytest.raises(UsageError, match="no dialect 'soap' for routes; use one of azure, predict, sagemaker, vertex"):
        made(NamedRoute("/a", "spam", dialect="soap"))


def test_paths_that_are_free_are_taken():
    pages = made(NamedRoute("/spam/detect", "spam", "production"), NamedRoute("/v1/spam", "spam")).pages
    assert [page.path for page in pages] == ["/spam/detect", "/v1/spam"]


def test_a_clash_would_go_unseen_without_the_others():
    """The negative control: the same path among other dialects is free."""

    async def answer(_):
        raise NotImplementedError

    page = Page("/elsewhere", ("GET",), None, answer, "s", Documentation())
    assert dialect((NamedRoute("/v1/predict", "spam"),), [Dialect("d", (page,))], PREDICT).pages


def test_a_server_with_such_a_path_does_not_start_and_says_why(tiny_onnx):
    settings = ServeSettings(
        models=(ModelSource("tiny", "1", str(tiny_onnx)),),
        routes=(NamedRoute("/v1/predict", "tiny"),),
        http_port=0,
        grpc_port=0,
    )
    code = (
        "import sys, msgspec\nfrom mlserve.serve.settings import ServeSettings\n"
        "from mlserve.serve.supervisor import run_server\n"
        "if __name__ == '__main__':\n    run_server(msgspec.json.decode(sys.argv[1], type=ServeSettings), print)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, msgspec.json.encode(settings).decode()], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "route /v1/predict cannot be served: it is /v1/predict of the dialect 'friendly'" in done.stderr
