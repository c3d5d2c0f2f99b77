"""What a person has, a text or an image, in the bodies of every dialect by rows; and what no type describes."""

import base64
import json

import numpy as np
import pytest

from mlserve.errors import InvalidRequest, UnsupportedContent
from mlserve.model.tensors import TensorSpec
from mlserve.serve.catalog import ServedModel
from mlserve.serve.protocols import azure, invocations, rows, sagemaker, torchserve, vertex
from mlserve.serve.tasks.task import Asked
from mlserve.wire.signature import Signature

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
B64 = base64.b64encode(PNG).decode()
ANSWER = {"label": "spam", "score": 0.5}


class Reader:
    """A task that is never run here: dialects ask it only what it reads."""

    idle = True

    def __init__(self, kind):
        self.kind, self.example = kind, "Is it spam?" if kind == "text" else PNG


def served(kind):
    """A model that takes token ids or pixels, and what a person has instead."""
    spec = (
        TensorSpec("ids", "int64", ("batch", "n"))
        if kind == "text"
        else TensorSpec("pixels", "float32", ("batch", 3, 2, 2))
    )
    signature = Signature("spam", "1", [spec], [TensorSpec("scores", "float32", ("batch", 2))])
    return ServedModel(signature, None, None, task=Reader(kind))


def asked(inference, body, kind="text", **headers):
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    found = inference.decode(body, served(kind), named)
    assert isinstance(found, Asked), found
    return found


def answered(inference, found):
    """What the dialect writes when every value has the same answer."""
    content = inference.encode_answers(served("text"), found, [ANSWER] * len(found.values))
    assert content.fields == b"content-type: application/json\r\n"
    return json.loads(content.body)


PLAIN, PREDICTIONS = [ANSWER], {"predictions": [ANSWER]}
TEXTS = [
    (torchserve, "hi", ANSWER),
    (torchserve, b"hi", ANSWER),
    (torchserve, {"data": "hi"}, ANSWER),
    (torchserve, {"text": "hi"}, ANSWER),
    (torchserve, ["hi"], PLAIN),
    (torchserve, {"data": ["hi"]}, PLAIN),
    (torchserve, [{"text": "hi"}], PLAIN),
    (torchserve, {"instances": ["hi"]}, PREDICTIONS),
    (invocations, "hi", PLAIN),
    (invocations, ["hi"], PLAIN),
    (invocations, {"inputs": "hi"}, PREDICTIONS),
    (invocations, {"inputs": ["hi"]}, PREDICTIONS),
    (invocations, {"inputs": {"text": ["hi"]}}, PREDICTIONS),
    (invocations, {"instances": [{"text": "hi"}]}, PREDICTIONS),
    (invocations, {"dataframe_split": {"columns": ["anything"], "data": [["hi"]]}}, PREDICTIONS),
    (invocations, {"dataframe_records": [{"anything": "hi"}]}, PREDICTIONS),
    (sagemaker, ["hi"], PLAIN),
    (vertex, {"instances": ["hi"]}, PREDICTIONS),
    (vertex, {"instances": [{"content": "hi"}]}, PREDICTIONS),
    (azure, {"data": ["hi"]}, PLAIN),
    (azure, {"data": "hi"}, PLAIN),
    (azure, {"input_data": {"columns": ["text"], "index": [0], "data": [["hi"]]}}, PLAIN),
    (azure, {"input_data": {"text": ["hi"]}}, PLAIN),
]


@pytest.mark.parametrize(("dialect", "body", "answer"), TEXTS)
def test_a_text_is_asked_of_a_model_that_reads_texts(dialect, body, answer):
    found = asked(dialect.INFERENCE, body)
    assert found.values == ["hi"]
    assert answered(dialect.INFERENCE, found) == answer


@pytest.mark.parametrize("dialect", [torchserve, invocations])
def test_a_body_may_be_the_text_or_a_table_of_texts(dialect):
    found = asked(dialect.INFERENCE, "Grüße, [x]".encode(), content_type="text/plain; charset=utf-8")
    assert found.values == ["Grüße, [x]"]
    found = asked(dialect.INFERENCE, b'text\n"one, two"\nthree\n', content_type="text/csv")
    assert found.values == ["one, two", "three"]


IMAGES = [
    (torchserve, {"data": B64}),
    (torchserve, [{"b64": B64}]),
    (torchserve, {"instances": [{"b64": B64}]}),
    (invocations, {"instances": [{"image": B64}]}),
    (invocations, {"inputs": [{"image": {"b64": B64}}]}),
    (vertex, {"instances": [{"content": B64}]}),
    (vertex, {"instances": [{"b64": B64}]}),
    (azure, {"data": [B64]}),
]


@pytest.mark.parametrize(("dialect", "body"), IMAGES)
def test_an_image_is_base64_in_json(dialect, body):
    assert asked(dialect.INFERENCE, body, "image").values == [PNG]


@pytest.mark.parametrize("dialect", [torchserve, invocations, sagemaker])
@pytest.mark.parametrize("told", ["image/png", "application/octet-stream", "application/x-www-form-urlencoded", ""])
def test_an_image_is_a_body_too(dialect, told):
    found = asked(dialect.INFERENCE, PNG, "image", content_type=told)
    assert found.values == [PNG]
    assert answered(dialect.INFERENCE, found) == (ANSWER if dialect is torchserve else [ANSWER])


@pytest.mark.parametrize(
    ("dialect", "body", "kind", "headers", "message"),
    [
        (torchserve, b"hi", "image", {"content_type": "text/plain"}, "takes images, not texts"),
        (torchserve, PNG, "text", {}, "takes texts, not images"),
        (invocations, PNG, "text", {"content_type": "image/png"}, "takes texts, not images"),
        (vertex, {"instances": ["no base64!"]}, "image", {}, "in JSON as base64"),
        (vertex, {"instances": ["é"]}, "image", {}, "in JSON as base64"),
        (vertex, {"instances": ["hi", 7]}, "text", {}, "cannot be read as INT64"),
        (azure, {"data": [{"text": 7}]}, "text", {}, "input"),
        (torchserve, b"\xff", "text", {"content_type": "text/plain"}, "no UTF-8"),
    ],
)
def test_what_the_model_does_not_read_is_refused(dialect, body, kind, headers, message):
    with pytest.raises(InvalidRequest, match=message):
        asked(dialect.INFERENCE, body, kind, **headers)


@pytest.mark.parametrize("dialect", [torchserve, invocations, vertex, azure])
def test_a_model_with_a_task_still_takes_tensors(dialect):
    body = {azure: {"data": [[1, 2]]}, vertex: {"instances": [[1, 2]]}}.get(dialect, [[1, 2]])
    found = dialect.INFERENCE.decode(json.dumps(body).encode(), served("text"), {})
    assert not isinstance(found, Asked)
    np.testing.assert_array_equal(found.inputs["ids"], [[1, 2]])
    assert found.rows == 1


@pytest.mark.parametrize(
    ("body", "kind", "if_text"),
    [
        (PNG, rows.IMAGE, rows.IMAGE),
        (b"\xff\xd8\xff\xe0", rows.IMAGE, rows.IMAGE),
        (b"GIF89a....", rows.IMAGE, rows.IMAGE),
        (b"RIFF\x10\0\0\0WEBPVP8 ", rows.IMAGE, rows.IMAGE),
        (b"BM\x10\0\0\0\0\0\0\0", rows.IMAGE, rows.IMAGE),
        (b"BMW or Audi?", rows.JSON, rows.TEXT),
        (b"RIFF raff", rows.JSON, rows.TEXT),
        (b" [1]", rows.JSON, rows.JSON),
        (b"", rows.JSON, rows.TEXT),
    ],
)
def test_where_no_type_is_told_the_first_bytes_decide(body, kind, if_text):
    for told in ({}, {b"content-type": b"application/octet-stream"}):
        assert rows.content_kind(body, told) == kind
        assert rows.content_kind(body, told, json_first=False) == if_text


@pytest.mark.parametrize("told", ["application/x-pickle", "application/xml", "multipart/mixed", "text/html", "x" * 500])
def test_a_type_that_is_not_on_the_list_is_refused(told):
    with pytest.raises(UnsupportedContent, match="is not read") as refused:
        rows.content_kind(b"[1]", {b"content-type": told.encode()})
    assert len(str(refused.value)) < 300


# A real server, a real tokenizer and a real image.


def _label(answer):
    while not isinstance(answer, dict) or "label" not in answer:
        answer = answer["predictions"] if isinstance(answer, dict) else answer[0]
    return answer["label"]


TARGET = {"x_amzn_sagemaker_target_model": "spam"}


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/predictions/spam", "free prize", {}),
        ("/predictions/spam", '{"data": "free prize"}', {}),
        ("/predictions/spam/1", '{"instances": ["free prize"]}', {"content_type": "application/json"}),
        ("/models/spam/invoke", "free prize", {"content_type": "text/plain"}),
        ("/invocations", '["free prize"]', TARGET),
        ("/invocations", '{"inputs": ["free prize"]}', TARGET),
        ("/invocations", '{"dataframe_split": {"columns": ["text"], "data": [["free prize"]]}}', TARGET),
        ("/invocations", "text\nfree prize\n", {**TARGET, "content_type": "text/csv"}),
        ("/vertex/spam", '{"instances": [{"content": "free prize"}]}', {}),
        ("/sagemaker/spam", "free prize", {"content_type": "text/plain"}),
        ("/azure/spam", '{"data": ["free prize"]}', {}),
    ],
)
def test_a_real_text_is_answered_by_every_dialect(task_server, posted, path, body, headers):
    status, answer = posted(task_server, path, body, **headers)
    assert status == 200, answer
    other = posted(task_server, path, body.replace("free prize", "meeting tomorrow"), **headers)[1]
    assert _label(answer) != _label(other)  # the negative control: it reads the text


def test_a_real_image_is_answered_by_every_dialect(task_server, posted, made_store):
    png = made_store.png()
    inside = {"b64": base64.b64encode(png).decode()}
    boundary = b'--b\r\nContent-Disposition: form-data; name="data"; filename="a.png"\r\n\r\n%b\r\n--b--\r\n'
    asked = [
        ("/predictions/digits", png, {}),
        ("/predictions/digits", boundary % png, {"content_type": "multipart/form-data; boundary=b"}),
        ("/models/digits/invoke", png, {"content_type": "image/png"}),
        ("/vertex/digits", {"instances": [inside]}, {}),
        ("/sagemaker/digits", png, {}),
        ("/azure/digits", {"data": [inside["b64"]]}, {}),
    ]
    labels = set()
    for path, body, headers in asked:
        status, answer = posted(task_server, path, body, **headers)
        assert status == 200, (path, answer)
        labels.add(_label(answer))
    assert len(labels) == 1
    status, answer = posted(task_server, "/predictions/digits", png[:40])
    assert status == 400, answer


@pytest.mark.parametrize(
    ("rows_sent", "fault"),
    [([], "no rows"), ([["a"], []], "row 1 of the table has 0 cells"), ([["a"], ["b", "c"]], "row 1 .* has 2 cells")],
)
def test_a_table_of_texts_is_refused_unless_it_has_rows_all_of_one_width(rows_sent, fault):
    body = json.dumps({"dataframe_split": {"columns": ["text"], "data": rows_sent}}).encode()
    with pytest.raises(InvalidRequest, match=fault):
        invocations.INFERENCE.decode(body, served("text"), {})
    unnamed = json.dumps({"dataframe_split": {"data": rows_sent}}).encode()
    with pytest.raises(InvalidRequest, match=fault):
        invocations.INFERENCE.decode(unnamed, served("text"), {})
