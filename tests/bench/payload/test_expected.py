import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from mlserve.bench.payload.expected import ask_expected, encode_expected, open_expected
from mlserve.bench.payload.payload import PayloadWish, make_payload
from mlserve.bench.target import Target
from mlserve.errors import BenchError
from mlserve.model.tensors import TensorSpec
from mlserve.runs.load import Plan

OUTPUTS = (
    TensorSpec("y", "float32", ("batch", 2)),
    TensorSpec("label", "int64", ("batch",)),
    TensorSpec("word", "object", ("batch",)),
)
RIGHT = {
    "y": np.array([[1.0, 100.0]], np.float32),
    "label": np.array([3]),
    "word": np.array(["spam"], object),
}


def answer(y=(1.0, 100.0), label=3, word="spam", leave_out="", **more):
    outputs = [
        {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": list(y)},
        {"name": "label", "datatype": "INT64", "shape": [1], "data": [label]},
        {"name": "word", "datatype": "BYTES", "shape": [1], "data": [word]},
    ]
    kept = [output for output in outputs if output["name"] != leave_out]
    return json.dumps({"model_name": "m", "outputs": kept, **more}).encode()


@pytest.fixture
def right():
    return open_expected("rest", OUTPUTS, [encode_expected(RIGHT), encode_expected({"label": np.array([4])})])


@pytest.mark.parametrize(
    ("content", "verdict"),
    [
        (answer(), True),
        (answer(y=(1.0, 100.9)), True),
        (answer(y=(1.9, 100.0)), True),  # a hundredth of the largest
        (answer(y=(1.0, 102.1)), False),
        (answer(y=(3.0, 100.0)), False),
        (answer(y=(100.0, 1.0)), False),
        (answer(label=4), False),
        (answer(word="ham"), False),
        (answer(leave_out="y"), False),
        (answer(id="7"), True),
        (b"{}", False),
        (b"not json", False),
        (b"", False),
    ],
)
def test_an_answer_is_right_when_it_holds_what_is_expected(right, content, verdict):
    assert right(0, content) is verdict
    assert right(0, bytes(bytearray(content))) is verdict  # now from memory


def test_each_request_has_its_own_answer(right):
    assert right(1, answer(label=4, word="anything"))
    assert right(0, answer())
    assert not right(1, answer())
    assert not right(0, answer(label=4))


def test_an_answer_that_was_seen_is_not_read_again(right, monkeypatch):
    from mlserve.wire import rest

    read = []
    decode = rest.decode_response
    monkeypatch.setattr(rest, "decode_response", lambda *args: read.append(1) or decode(*args))
    assert [right(0, answer()) for _ in range(5)] == [True] * 5
    assert len(read) == 1
    assert [right(0, answer(id=str(number))) for number in range(200)] == [True] * 200
    assert len(read) == 201


def test_every_type_survives_being_handed_to_the_generators():
    tensors = {
        "f16": np.array([[1.5, -2.0]], np.float16),
        "u8": np.array([[0, 255]], np.uint8),
        "flag": np.array([True, False]),
        "text": np.array([["ä", "b"]], object),
        "nan": np.array([np.nan, np.inf, 1.0]),
    }
    specs = [TensorSpec(name, array.dtype.name, ("batch", *array.shape[1:])) for name, array in tensors.items()]
    right = open_expected("grpc", specs, [encode_expected(tensors)])

    def reply(tensors):
        from mlserve.wire import messages
        from mlserve.wire.raw import to_raw

        return messages.ModelInferResponse(
            outputs=[{"name": s.name, "datatype": s.datatype, "shape": tensors[s.name].shape} for s in specs],
            raw_output_contents=[to_raw(tensors[spec.name]) for spec in specs],
        ).SerializeToString()

    assert right(0, reply(tensors))
    for name, array in tensors.items():
        other = array.copy()
        other.flat[0] = "c" if name == "text" else not array.flat[0] if name == "flag" else 9
        assert not right(0, reply(tensors | {name: other})), name


class _Doubler(BaseHTTPRequestHandler):
    """Answers with twice the first input, and with nothing of use when that is negative."""

    asked = 0

    def do_POST(self):
        type(self).asked += 1
        document = json.loads(self.rfile.read(int(self.headers["content-length"])))
        values = document["inputs"][0]
        outputs = [{**values, "name": "y", "data": [2 * value for value in np.ravel(values["data"]).tolist()]}]
        body = json.dumps({"model_name": "m", "outputs": outputs}).encode()
        if min(np.ravel(values["data"])) < 0:
            body = b"<html>"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def doubler():
    handler = type("Handler", (_Doubler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield Target(protocol="rest", host="127.0.0.1", port=server.server_address[1], model="m"), handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_server_itself_gives_the_reference_once_for_every_body(doubler, tmp_path):
    target, handler = doubler
    inputs, outputs = (TensorSpec("x", "float32", ("batch", 2)),), (TensorSpec("y", "float32", ("batch", 2)),)
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.save(tmp_path / "rows.npy", values)
    plan = Plan(rate_per_s=1, duration_s=1, warm_up_s=0)
    payload = make_payload(target, inputs, plan, PayloadWish(data=tmp_path / "rows.npy"))
    assert len(payload.requests) > 3  # some go with the wish to be timed too
    expected = ask_expected(target, payload, outputs)
    assert handler.asked == 3
    assert len(expected) == len(payload.requests)
    sent = [json.loads(request.body)["inputs"][0]["data"] for request in payload.requests]
    assert [np.ravel(each["y"]).tolist() for each in expected] == [[2 * v for v in np.ravel(x)] for x in sent]


def test_an_answer_that_cannot_be_read_is_no_reference(doubler, tmp_path):
    target, _ = doubler
    inputs = (TensorSpec("x", "float32", ("batch", 2)),)
    np.save(tmp_path / "rows.npy", -np.ones((1, 2), np.float32))
    plan = Plan(rate_per_s=1, duration_s=1, warm_up_s=0)
    payload = make_payload(target, inputs, plan, PayloadWish(data=tmp_path / "rows.npy"))
    with pytest.raises(BenchError, match="cannot be checked"):
        ask_expected(target, payload, (TensorSpec("y", "float32", ("batch", 2)),))
