"""What is not a V2 gRPC request is refused with InvalidRequest, whatever it is, and nothing else is ever raised."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import TensorSpec
from mlserve.wire import grpc
from mlserve.wire.messages import ModelInferRequest, ModelInferResponse
from mlserve.wire.signature import Signature

SPECS = [
    TensorSpec("x", "float32", ("batch", 2)),
    TensorSpec("n", "int8", ("batch",)),
    TensorSpec("t", "object", ("batch",)),
    TensorSpec("h", "float16", ("batch",)),
]
ARRAYS = {
    "x": np.array([[1, 2]], np.float32),
    "n": np.array([3], np.int8),
    "t": np.array(["text"], object),
    "h": np.array([4], np.float16),
}
SIGNATURE = Signature("m", "1", SPECS, [TensorSpec("y", "float32", ("batch",))])
GOOD = grpc.encode_request("m", "", ARRAYS, SPECS)


def decode(payload):
    return grpc.decode_request(grpc.parse_request(payload), SIGNATURE)


def only(spec, **fields):
    """A request with one typed tensor for a model that takes just that one."""
    tensor = {"name": spec.name, "datatype": spec.datatype, "shape": [2]} | fields
    message = grpc.parse_request(ModelInferRequest(inputs=[tensor]).SerializeToString())
    return grpc.decode_request(message, Signature("m", "1", [spec], [])).inputs[spec.name]


def changed(change):
    message = ModelInferRequest.FromString(GOOD)
    change(message)
    return message.SerializeToString()


def share(tensor, *_):
    tensor.parameters["shared_memory_region"].string_param = "region"


def ask(message, name, **value):
    for kind, found in value.items():
        setattr(message.parameters[name], kind, found)


def classify(message, **value):
    for kind, found in value.items():
        setattr(message.outputs.add(name="y").parameters["classification"], kind, found)


def test_the_good_request_is_read():
    assert decode(GOOD).rows == 1


def test_what_a_request_s_parameters_ask_for_is_told():
    def change(message):
        ask(message, "timeout", int64_param=2_500_000)
        ask(message, "priority", uint64_param=3)
        ask(message, "timing", bool_param=True)
        ask(message, "my_own", string_param="thing")
        ask(message, "sequence_start", bool_param=False)
        ask(message, "triton_enable_empty_final_response", bool_param=True)
        ask(message, "empty")
        message.parameters["unset"].ClearField("bool_param")
        classify(message, int64_param=2)

    request = decode(changed(change))
    assert (request.timeout_s, request.priority, request.timing, request.classes) == (2.5, 3, True, {"y": 2})
    plain = decode(changed(lambda message: message.outputs.add(name="y")))
    assert (plain.timeout_s, plain.priority, plain.timing, plain.classes) == (0.0, 0, False, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.ClearField("inputs"), "has 0 inputs but 4 raw_input_contents"),
        (lambda m: m.raw_input_contents.pop(), "has 4 inputs but 3 raw_input_contents"),
        (lambda m: (m.inputs.pop(), m.raw_input_contents.pop()), r"missing required input\(s\) \['h'\]"),
        (lambda m: setattr(m.inputs[0], "name", "w"), "unexpected input 'w'"),
        (lambda m: setattr(m.inputs[0], "name", "n"), "has datatype FP32 for model 'm', expected INT8"),
        (lambda m: setattr(m.inputs[0], "datatype", "FP64"), "has datatype FP64"),
        (lambda m: setattr(m.inputs[0], "datatype", ""), "has datatype "),
        (lambda m: m.inputs[0].shape.append(1), "has shape"),
        (lambda m: m.inputs[0].ClearField("shape"), "has shape"),
        (lambda m: m.inputs[0].shape.__setitem__(0, -1), "has shape"),
        (lambda m: m.inputs[0].shape.__setitem__(0, 2**62), "byte size mismatch"),
        (lambda m: m.inputs[2].shape.__setitem__(0, 2**62), "string elements"),
        (lambda m: m.raw_input_contents.__setitem__(0, b"\0" * 7), "Expected 8, got 7"),
        (lambda m: m.raw_input_contents.__setitem__(2, b"\xff\0\0\0a"), "ends within a string element"),
        (lambda m: m.inputs[0].contents.fp32_contents.append(1), "both contents and raw_input_contents"),
        (lambda m: m.ClearField("raw_input_contents"), "has shape .* but 0 elements in fp32_contents"),
        (
            lambda m: (m.inputs[0].contents.fp32_contents.append(1), m.raw_input_contents.pop()),
            "contents field must not be specified when using raw_input_contents",
        ),
        (lambda m: share(m.inputs[0], m.raw_input_contents.pop()), "'x': shared memory is not supported"),
        (lambda m: share(m.inputs[0], m.ClearField("raw_input_contents")), "'x': shared memory is not supported"),
        (lambda m: share(m.outputs.add(name="y")), "'y': shared memory is not supported"),
        (lambda m: classify(m, string_param="2"), "parameter 'classification' must be a whole number"),
        (lambda m: classify(m, int64_param=-1), "parameter 'classification' must be a whole number"),
        (lambda m: classify(m, bool_param=True), "parameter 'classification' must be a whole number"),
        (lambda m: ask(m, "timeout", double_param=1.0), "parameter 'timeout' must be a whole number"),
        (lambda m: ask(m, "priority", uint64_param=2**64 - 1), "parameter 'priority' must be a whole number"),
        (lambda m: ask(m, "timing", int64_param=1), "parameter 'timing' must be true or false"),
        (lambda m: ask(m, "sequence_id", int64_param=7), "'sequence_id' is refused: this server keeps no state"),
        (lambda m: ask(m, "triton_x", bool_param=True), "'triton_x' is a reserved parameter"),
        (lambda m: m.outputs.add(name="w"), "unexpected output 'w'"),
        (lambda m: (m.outputs.add(name="y"), m.outputs.add(name="y")), "already exists"),
        (
            lambda m: (m.inputs.append(m.inputs[0]), m.raw_input_contents.append(m.raw_input_contents[0])),
            "'x' already exists",
        ),
        (
            lambda m: (m.inputs[1].shape.__setitem__(0, 2), m.raw_input_contents.__setitem__(1, b"ab")),
            "one number of rows",
        ),
    ],
)
def test_a_request_that_is_not_right_is_refused_with_what_is_wrong(change, message):
    with pytest.raises(InvalidRequest, match=message):
        decode(changed(change))


@pytest.mark.parametrize(
    ("dtype", "contents", "message"),
    [
        ("int8", {"int_contents": [1, 128]}, "do not fit INT8"),
        ("int8", {"int_contents": [-129, 1]}, "do not fit INT8"),
        ("uint16", {"uint_contents": [1, 65536]}, "do not fit UINT16"),
        ("int8", {"uint_contents": [1, 2]}, "but 0 elements in int_contents"),
        ("int64", {"int64_contents": [1, 2, 3]}, "but 3 elements in int64_contents"),
        ("object", {"bytes_contents": [b"a", b"\xff"]}, "no UTF-8"),
        ("float16", {"fp32_contents": [1, 2]}, "FP16 has no typed contents; send raw_input_contents"),
        ("bfloat16", {"fp32_contents": [1, 2]}, "BF16 has no typed contents; send raw_input_contents"),
        ("float32", {}, "but 0 elements in fp32_contents"),
    ],
)
def test_typed_contents_that_are_not_right_are_refused_with_what_is_wrong(dtype, contents, message):
    with pytest.raises(InvalidRequest, match=message):
        only(TensorSpec("t", dtype, ("batch",)), contents=contents)


def test_the_bounds_of_a_narrow_type_are_taken():
    assert only(TensorSpec("t", "int8", ("batch",)), contents={"int_contents": [-128, 127]}).tolist() == [-128, 127]


@pytest.mark.parametrize(
    ("dtype", "field", "values"),
    [("uint64", "uint64_contents", [2**64 - 1, 2**63 + 1, 0]), ("int64", "int64_contents", [-(2**63), 2**63 - 1, 0])],
)
def test_the_largest_integers_keep_every_digit(dtype, field, values):
    assert only(TensorSpec("t", dtype, ("batch",)), shape=[3], contents={field: values}).tolist() == values


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_invalid_request(payload):
    with pytest.raises(InvalidRequest):
        decode(payload)


@given(st.data())
def test_a_damaged_request_is_read_or_raises_invalid_request(data):
    damaged = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        request = decode(bytes(damaged[: data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))]))
    except InvalidRequest:
        return
    assert {name: array.shape for name, array in request.inputs.items()} == {
        name: array.shape for name, array in ARRAYS.items()
    }


@given(st.data())
def test_a_damaged_answer_is_read_or_raises_invalid_request(data):
    tensors = [{"name": spec.name, "datatype": spec.datatype, "shape": ARRAYS[spec.name].shape} for spec in SPECS]
    raw = ModelInferRequest.FromString(GOOD).raw_input_contents
    damaged = bytearray(ModelInferResponse(outputs=tensors, raw_output_contents=raw).SerializeToString())
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        outputs = grpc.decode_response(bytes(damaged), {spec.name: spec for spec in SPECS})
    except InvalidRequest:
        return
    assert outputs.keys() <= ARRAYS.keys()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"outputs": [{"name": "w", "datatype": "FP32", "shape": [1]}]}, "unexpected output 'w'"),
        ({"outputs": [{"name": "n", "datatype": "FP32", "shape": [1]}]}, "of type FP32"),
        ({"outputs": [{"name": "n", "datatype": "INT8", "shape": [-1]}]}, "negative shape"),
        (
            {"outputs": [{"name": "n", "datatype": "INT8", "shape": [1]}], "raw_output_contents": [b"a", b"b"]},
            "has 1 outputs but 2 raw_output_contents",
        ),
    ],
)
def test_an_answer_that_is_not_right_is_refused_with_what_is_wrong(fields, message):
    with pytest.raises(InvalidRequest, match=message):
        grpc.decode_response(ModelInferResponse(**fields).SerializeToString(), {spec.name: spec for spec in SPECS})


def test_contents_of_another_type_beside_the_right_ones_are_refused():
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2]}
    contents = {"fp32_contents": [1, 2], "int_contents": [1]}
    signature = Signature("m", "1", [TensorSpec("x", "float32", ("batch", 2))], [])
    message = ModelInferRequest(model_name="m", inputs=[{**tensor, "contents": contents}])
    with pytest.raises(InvalidRequest, match="elements go in fp32_contents, not int_contents"):
        grpc.decode_request(message, signature)
