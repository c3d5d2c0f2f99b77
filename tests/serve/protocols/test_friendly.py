"""The friendly dialect: what a person has goes in, the answer itself comes out, and nothing is guessed."""

import base64
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

MADE = Path(__file__).parents[1] / "pages" / "made_store.py"


@pytest.fixture(scope="module")
def made_store():
    spec = importlib.util.spec_from_file_location("made_store", MADE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def server(serving_settings, tiny_onnx, echo_onnx, made_store, tmp_path_factory):
    """A text classifier in two versions, an image classifier, numbers, and every type."""
    from mlserve.serve.settings import Follow, StoreChoice

    root = tmp_path_factory.mktemp("friendly") / "store"
    made_store.make_store(root)
    with serving_settings(tiny_onnx, echo_onnx, store=StoreChoice(str(root), (Follow("*", "all"),))) as running:
        yield running


def ask(server, body, path="/v1/predict", kind="application/json"):
    """`(status, document)`."""
    sent = json.dumps(body) if kind == "application/json" and not isinstance(body, bytes) else body
    status, headers, answer = server.request("POST", path, sent, {"content-type": kind} if kind else {})
    assert headers["content-type"] == "application/json"
    return status, json.loads(answer)


def test_one_text_is_answered_by_the_answer_itself(server):
    status, answer = ask(server, {"model": "spam", "text": "free prize"})
    assert status == 200
    assert list(answer) == ["label", "score", "model", "version"]
    assert (answer["label"], answer["model"], answer["version"]) == ("spam", "spam", "1")
    assert answer["score"] == pytest.approx(1 / (1 + np.exp(-2)))


def test_a_list_of_texts_is_answered_in_order(server):
    status, answer = ask(server, {"model": "spam", "text": ["meeting tomorrow", "free prize"]})
    assert status == 200
    assert list(answer) == ["model", "version", "predictions"]
    assert [row["label"] for row in answer["predictions"]] == ["ham", "spam"]
    assert len(ask(server, {"model": "spam", "text": ["free"]})[1]["predictions"]) == 1


@pytest.mark.parametrize(
    ("which", "version"),
    [
        ({}, "1"),
        ({"version": "2"}, "2"),
        ({"version": 2}, "2"),
        ({"alias": "candidate"}, "2"),
        ({"version": "production"}, "1"),
    ],
)
def test_a_version_or_an_alias_is_asked_for(server, which, version):
    assert ask(server, {"model": "spam", "text": "free", **which})[1]["version"] == version


def test_the_path_may_name_model_and_version_and_is_remembered(server):
    for _ in range(3):  # the first is the application's, the others the fast lane's
        assert ask(server, {"text": "free"}, "/v1/models/spam/predict")[1]["version"] == "1"
        assert ask(server, {"text": "free"}, "/v1/models/spam/versions/2/predict")[1]["version"] == "2"
        assert ask(server, {"text": "free"}, "/v1/models/spam/versions/candidate/predict")[1]["version"] == "2"


def test_a_body_may_be_the_text_itself(server):
    assert ask(server, b"free prize", "/v1/models/spam/predict", "text/plain")[1]["label"] == "spam"
    answer = ask(server, b"free prize", "/v1/predict?model=spam&alias=candidate", "text/plain; charset=utf-8")
    assert answer[1]["version"] == "2"


def test_an_image_is_sent_in_base64_or_as_it_is(server, made_store):
    image = made_store.png()
    text = base64.b64encode(image).decode()
    answers = [
        ask(server, {"model": "digits", "image": text})[1],
        ask(server, {"model": "digits", "image": f"data:image/png;base64,{text}"})[1],
        ask(server, image, "/v1/predict?model=digits", "image/png")[1],
        ask(server, image, "/v1/models/digits/predict", "image/png")[1],
    ]
    assert answers[0]["label"] == made_store.EVIL_LABEL
    assert all(answer == answers[0] for answer in answers)
    many = ask(server, {"model": "digits", "image": [text, text]})[1]
    assert [row["score"] for row in many["predictions"]] == [answers[0]["score"]] * 2


def test_numbers_come_back_in_the_form_they_were_sent_in(server, reference):
    rows = np.linspace(-1, 1, 60, dtype=np.float32).reshape(2, 30)
    expected = reference(rows)
    status, answer = ask(server, {"model": "tiny", "inputs": {"x": rows.tolist()}})
    assert status == 200
    assert list(answer) == ["model", "version", "outputs"]
    np.testing.assert_allclose(answer["outputs"]["scores"], expected, rtol=1e-6)
    for body in ({"rows": rows.tolist()}, {"rows": [{"x": row} for row in rows.tolist()]}):
        _, answer = ask(server, body, "/v1/models/tiny/predict")
        assert list(answer) == ["model", "version", "predictions"]
        np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-6)


def test_every_type_goes_in_and_out_as_plain_json(server):
    example = server.get_json("/v1/models/echo/example")
    status, answer = ask(server, example, "/v1/models/echo/predict")
    assert status == 200
    for name, values in example["inputs"].items():
        given = answer["outputs"][name.replace("in_", "out_")]
        if "FP" in name:
            np.testing.assert_allclose(given, values, rtol=1e-3)
        else:
            assert given == values


def test_curls_own_content_type_is_read_as_json(server):
    body = b'{"text": "free"}'
    for kind in ("application/x-www-form-urlencoded", "application/problem+json", None):
        assert ask(server, body, "/v1/models/spam/predict", kind)[0] == 200


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"text": "free"}, "say which model: 'model' is one of 'digits', 'echo'"),
        ({"model": "spam"}, "this request has none of them"),
        ({"model": "spam", "text": "a", "inputs": {}}, "this request has 'text' and 'inputs'"),
        ({"model": "spam", "text": []}, "the list of 'text' is empty"),
        ({"model": "spam", "text": 3}, "Expected `str | array"),
        ({"model": "spam", "txt": "free"}, "unknown field `txt`"),
        ({"model": "spam", "text": "a", "version": "1", "alias": "candidate"}, "a version or an alias, not both"),
        ({"model": "spam", "image": "aGk="}, "takes 'text', not 'image'"),
        ({"model": "digits", "image": "no base64!"}, "is not base64"),
        ({"model": "digits", "image": "aGk="}, ""),
        ({"model": "tiny", "text": "free"}, "carries no tokenizer"),
        ({"model": "tiny", "rows": []}, "holds no rows"),
        ({"model": "tiny", "rows": [[1.0]]}, "shape"),
        ({"model": "tiny", "inputs": {"x": [["a"] * 30]}}, "cannot be read as FP32"),
        ({"model": "tiny", "inputs": {"y": []}}, "unexpected input 'y'"),
        ([], "Expected `object`"),
        (b"\xff\xfe", "is no prediction"),
        (b"[" * 100_000, "is no prediction"),
    ],
)
def test_what_cannot_be_answered_is_refused_and_said_why(server, body, says):
    status, answer = ask(server, body)
    assert status == 400
    assert says in answer["error"]
    assert len(answer["error"]) <= 900


@pytest.mark.parametrize(
    ("path", "body", "kind", "status"),
    [
        ("/v1/predict", {"model": "nobody", "text": "a"}, "application/json", 404),
        ("/v1/predict", {"model": "spam", "text": "a", "version": "9"}, "application/json", 404),
        ("/v1/models/nobody/predict", {"text": "a"}, "application/json", 404),
        ("/v1/models/spam/predict", {"model": "tiny", "text": "a"}, "application/json", 400),
        ("/v1/models/spam/predict", {"version": "2", "text": "a"}, "application/json", 400),
        ("/v1/predict?model=tiny", {"model": "spam", "text": "a"}, "application/json", 400),
        ("/v1/models/spam/predict", b"\xff", "text/plain", 400),
        ("/v1/models/spam/predict", b"", "text/plain", 400),
        ("/v1/models/spam/predict", b"a", "application/x-python-pickle", 415),
        ("/v1/predict?model=spam", b"a", "multipart/form-data; boundary=x", 415),
    ],
)
def test_paths_queries_and_kinds_of_body_are_held_to_each_other(server, path, body, kind, status):
    for _ in range(2):
        assert ask(server, body, path, kind)[0] == status


def test_the_same_model_and_version_in_path_and_body_is_no_contradiction(server):
    assert ask(server, {"model": "spam", "version": 1, "text": "a"}, "/v1/models/spam/predict")[0] == 200


def test_refusals_are_counted_for_the_model_they_were_for(server):
    labels = {"model": "tiny", "protocol": "friendly", "outcome": "InvalidRequest"}
    before = server.counted("mlserve_requests_total", **labels)
    ask(server, {"model": "tiny", "rows": [[1.0]]})
    ask(server, {"rows": [[1.0]]}, "/v1/models/tiny/predict")
    assert server.counted("mlserve_requests_total", **labels) == before + 2


def test_where_one_name_is_served_it_may_be_left_out(serving_settings, tiny_onnx):
    with serving_settings(tiny_onnx) as alone:
        status, answer = ask(alone, {"rows": [[0.5] * 30]})
        assert (status, answer["model"]) == (200, "tiny")


def test_models_are_listed_with_versions_aliases_and_what_they_take(server):
    models = {model["name"]: model for model in server.get_json("/v1/models")["models"]}
    assert list(models) == ["digits", "echo", "odd_name-1.0", "spam", "tiny"]
    spam = models["spam"]
    assert (spam["state"], spam["default"], spam["task"]) == ("READY", "1", "text")
    assert spam["aliases"] == {"candidate": "2", "production": "1"}
    assert [(version["version"], version["aliases"]) for version in spam["versions"]] == [
        ("1", ["production"]),
        ("2", ["candidate"]),
    ]
    assert spam["labels"] == ["ham", "spam"]
    assert spam["inputs"] == [{"name": "input_ids", "datatype": "INT64", "shape": ["batch", "sequence"]}]
    assert models["digits"]["task"] == "image"
    assert models["tiny"]["task"] == "tensors"


def test_every_listed_model_has_an_example_that_it_answers(server):
    for model in server.get_json("/v1/models")["models"]:
        example = server.get_json(f"/v1/models/{model['name']}/example")
        assert ask(server, example, f"/v1/models/{model['name']}/predict")[0] == 200
    assert server.request("GET", "/v1/models/nobody/example")[0] == 404
