"""The quick way through a request says and gives what protobuf does, whatever came before."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import TensorSpec
from mlserve.wire import grpc, grpc_fast
from mlserve.wire.messages import ModelInferRequest
from mlserve.wire.signature import InferRequest, Signature

OUTPUTS = (TensorSpec("y", "float32", ("batch", "n")), TensorSpec("text", "object", ("batch", "n")))
SIGNATURES = {
    "one": Signature("one", "1", [TensorSpec("x", "float32", ("batch", "n"))], OUTPUTS),
    "two": Signature(
        "two", "1", [TensorSpec("x", "float32", ("batch", "n")), TensorSpec("flag", "bool", ("batch",))], OUTPUTS
    ),
    "texts": Signature("texts", "1", [TensorSpec("x", "object", ("batch", "n"))], OUTPUTS),
}


@st.composite
def payloads(draw):
    """Requests, right ones and wrong ones, of few kinds, so that many are of the form of one before."""
    request = ModelInferRequest(model_name=draw(st.sampled_from(sorted(SIGNATURES))))
    request.id = draw(st.sampled_from(["", "", "one"]))
    rows, size = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kinds = {"x": ("FP32", [rows, size]), "flag": ("BOOL", [rows])}
    if request.model_name == "texts":
        kinds["x"] = ("BYTES", [rows, size])
    for name in draw(st.sampled_from([["x"], ["x", "flag"], ["flag", "x"], ["x", "x"], []])):
        datatype, shape = kinds[name]
        request.inputs.add(name=name, datatype=datatype, shape=shape)
    for _ in range(draw(st.sampled_from([len(request.inputs), len(request.inputs), 0, 1]))):
        request.raw_input_contents.append(draw(st.binary(min_size=0, max_size=24)))
    if request.raw_input_contents and draw(st.booleans()):  # what fits
        for position, tensor in enumerate(request.inputs[: len(request.raw_input_contents)]):
            request.raw_input_contents[position] = _fitting(draw, tensor)
    if draw(st.booleans()):
        request.outputs.add(name=draw(st.sampled_from(["y", "text", "none"])))
    if draw(st.booleans()):
        request.parameters["priority"].int64_param = draw(st.integers(0, 2))
    payload = request.SerializeToString()
    return payload + draw(st.sampled_from([b"", b"", b"\x0a\x03two", b"\x3a\x00", b"\x3a\x7f"]))


def _fitting(draw, tensor):
    count = int(np.prod(tensor.shape))
    if tensor.datatype == "BYTES":
        texts = draw(st.lists(st.sampled_from([b"", b"ab", b"\xff"]), min_size=count, max_size=count))
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    size = 1 if tensor.datatype == "BOOL" else 4
    return draw(st.binary(min_size=size * count, max_size=size * count).map(lambda raw: raw.replace(b"\x03", b"\x01")))


def outcome(parse, decode, payload):
    try:
        message = parse(payload)
        request = decode(message, SIGNATURES.get(message.model_name, SIGNATURES["one"]))
    except InvalidRequest as error:
        return str(error)
    inputs = {
        name: (array.dtype, array.shape, array.tolist() if array.dtype == object else array.tobytes())
        for name, array in request.inputs.items()
    }
    others = (request.rows, request.id, list(request.outputs), request.binary, request.classes, request.priority)
    return message.model_name, message.model_version, inputs, others


@given(st.lists(payloads(), min_size=1, max_size=8))
def test_a_request_is_read_as_protobuf_reads_it_whatever_came_before(many):
    for payload in many + many:
        quick = outcome(grpc_fast.parse_request, grpc_fast.decode_request, payload)
        assert quick == outcome(grpc.parse_request, grpc.decode_request, payload)


@given(
    st.sampled_from(["", "an id", "ü" * 100]),
    st.sampled_from([(), ("y",), ("text", "y")]),
    st.integers(0, 200),
    st.integers(0, 40),
)
@example("", (), 1, 1)
@example("", (), 128, 33)
def test_a_response_has_the_bytes_that_protobuf_gives_it(identity, wanted, rows, size):
    outputs = {"y": np.ones((rows, size), np.float32), "text": np.full((rows, 1), "text", object)}
    request = InferRequest({}, rows, identity, wanted)
    for signature in (SIGNATURES["one"], Signature("", "", [], OUTPUTS)):
        assert grpc_fast.encode_response(signature, request, outputs) == grpc.encode_response(
            signature, request, outputs
        )


def test_what_was_read_for_another_version_is_read_again():
    request = ModelInferRequest(model_name="one")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    request.raw_input_contents.append(np.float32([1, 2]).tobytes())
    payload = request.SerializeToString()
    narrower = Signature("one", "2", [TensorSpec("x", "float32", ("batch", 3))], OUTPUTS)
    for _ in range(2):
        assert grpc_fast.decode_request(grpc_fast.parse_request(payload), SIGNATURES["one"]).rows == 1
        with pytest.raises(InvalidRequest, match="expected"):
            grpc_fast.decode_request(grpc_fast.parse_request(payload), narrower)


def test_a_payload_that_differs_between_its_tensors_is_another_message():
    request = ModelInferRequest(model_name="two")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    request.inputs.add(name="flag", datatype="BOOL", shape=[1])
    request.raw_input_contents.extend([np.float32([1, 2]).tobytes(), b"\x01"])
    payload = request.SerializeToString()
    assert payload.endswith(b"\x3a\x01\x01")
    for changed in (payload, payload[:-3] + b"\x42\x01\x01", payload[:-3] + b"\x3a\x00\x00", payload):
        quick = outcome(grpc_fast.parse_request, grpc_fast.decode_request, changed)
        assert quick == outcome(grpc.parse_request, grpc.decode_request, changed)


def test_fields_behind_the_tensors_are_read():
    request = ModelInferRequest(model_name="one")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    request.raw_input_contents.append(np.float32([1, 2]).tobytes())
    whole = request.SerializeToString()
    for behind in (b"\x0a\x03one", b"\x42\x03abc", b"\x1a\x01i"):  # the model's name again, an unknown field, an id
        for _ in range(2):
            quick = outcome(grpc_fast.parse_request, grpc_fast.decode_request, whole + behind)
            assert quick == outcome(grpc.parse_request, grpc.decode_request, whole + behind)


def test_tensors_are_aligned_in_memory():
    """Engines compute on them where they are."""
    for name_length in range(1, 9):
        request = ModelInferRequest(model_name="one", model_version="v" * name_length)
        request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
        request.raw_input_contents.append(np.float32([1, 2]).tobytes())
        payload = request.SerializeToString()
        for _ in range(2):
            read = grpc_fast.decode_request(grpc_fast.parse_request(payload), SIGNATURES["one"])
            assert read.inputs["x"].flags.aligned
            assert read.inputs["x"].tolist() == [[1, 2]]
