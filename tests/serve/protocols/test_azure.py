"""Azure ML's `/score`: a script's `data`, an MLflow model's `input_data`, the rows alone for an answer."""

import re

import numpy as np
import pytest

ROWS = np.random.default_rng(0).standard_normal((2, 30)).astype(np.float32)
LIST = ROWS.tolist()
NAMES = [f"f{number}" for number in range(30)]


@pytest.mark.parametrize("path", ["/score", "/az/tiny"])
@pytest.mark.parametrize(
    "body",
    [
        {"data": LIST},
        {"data": {"x": LIST}},
        {"data": [{"x": row} for row in LIST]},
        {"input_data": LIST},
        {"input_data": {"x": LIST}},
        {"input_data": {"columns": NAMES, "index": [0, 1], "data": LIST}, "params": {}},
        {"input_data": {"columns": ["x"], "data": [[row] for row in LIST]}},
    ],
)
def test_every_form_is_answered_with_the_rows_alone(lone_server, posted, reference, path, body):
    status, answer = posted(lone_server, path, body, content_type="application/json")
    assert status == 200
    np.testing.assert_allclose(answer, reference(ROWS), rtol=1e-4)


def test_several_models_are_listed_where_none_is_named(rows_server, posted):
    status, answer = posted(rows_server, "/score", {"data": LIST})
    assert (status, re.sub(r": use one.*", "", answer["error"])) == (
        400,
        "3 models are served (echo, mixed, tiny) and this path names none",
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "not JSON"),
        ([], 'one of "data" and "input_data"'),
        ({}, 'one of "data" and "input_data"'),
        ({"data": LIST, "input_data": LIST}, 'one of "data" and "input_data"'),
        ({"data": []}, "no rows"),
        ({"data": None}, "no rows"),
        ({"data": "hello"}, "cannot be read"),
        ({"data": {"columns": NAMES, "data": 7}}, "are lists"),
        ({"input_data": {"columns": NAMES, "data": LIST, "x": 1}}, "by 'split'"),
        ({"input_data": {"columns": NAMES}}, "unexpected input 'columns'"),
        ({"data": [[1]]}, "shape"),
    ],
)
def test_a_bad_body_is_refused(lone_server, posted, body, message):
    status, answer = posted(lone_server, "/score", body)
    assert (status, answer.keys()) == (400, {"error"})
    assert re.search(message, answer["error"])
    assert posted(lone_server, "/score", {"data": LIST})[0] == 200
