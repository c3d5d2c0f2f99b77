"""What is not a V2 REST request is refused with InvalidRequest, whatever it is, and nothing else is ever raised."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import DATATYPE_OF, TensorSpec
from mlserve.wire import rest
from mlserve.wire.signature import Signature

SPECS = [TensorSpec("x", "float32", ("batch", 2)), TensorSpec("n", "int8", ("batch",))]
EVERY_DTYPE = (*DATATYPE_OF, "bfloat16")
SIGNATURE = Signature("m", "1", SPECS, [TensorSpec("y", "float32", ("batch",)), TensorSpec("z", "bool", ("batch",))])
EVERY_TYPE = Signature(
    "m",
    "1",
    [TensorSpec(f"in_{dtype}", dtype, ("batch",)) for dtype in EVERY_DTYPE],
    [TensorSpec(f"out_{dtype}", dtype, ("batch",)) for dtype in EVERY_DTYPE],
)
GOOD = {
    "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2.5, -3e2, 4]},
        {"name": "n", "datatype": "INT8", "shape": [2], "data": [-128, 127]},
    ]
}
GOOD_BODY = json.dumps(GOOD).encode()
BINARY_BODY, BINARY_HEADERS = rest.encode_request(
    {"x": np.ones((2, 2), np.float32), "n": np.ones(2, np.int8)}, SPECS, binary=True
)
BINARY_SPLIT = int(BINARY_HEADERS["inference-header-content-length"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
PARAMETER_NAMES = st.text(max_size=5) | st.sampled_from(
    ["timeout", "priority", "timing", "binary_data", "binary_data_output", "classification", "headers", "sequence_id"]
)


def decode(document, json_bytes=None):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return rest.decode_request(body, SIGNATURE, json_bytes)


def changed(**fields):
    """The good request with its first input changed; None removes a field."""
    first = {name: value for name, value in (GOOD["inputs"][0] | fields).items() if value is not None}
    return {"inputs": [first, GOOD["inputs"][1]]}


def asking(output, **parameters):
    """The good request, asking for one output in a special way."""
    return {**GOOD, "outputs": [{"name": output, "parameters": parameters}]}


def test_the_good_request_is_read():
    request = decode(GOOD)
    assert request.rows == 2
    np.testing.assert_array_equal(request.inputs["x"], np.array([[1, 2.5], [-300, 4]], np.float32))
    assert request.inputs["n"].tolist() == [-128, 127]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "not JSON"),
        (b"inputs", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (GOOD_BODY[:-1], "not JSON"),
        (GOOD_BODY + b"{}", "not JSON"),
        (GOOD_BODY.replace(b"2.5", b"NaN"), "not JSON"),
        (GOOD_BODY.replace(b"2.5", b"-Infinity"), "not JSON"),
        (b"[]", "no V2 inference request"),
        (b"{}", "missing required field `inputs`"),
        ({"inputs": {}}, "no V2 inference request"),
        ({"inputs": []}, r"missing required input\(s\) \['x', 'n'\]"),
        ({"inputs": GOOD["inputs"], "id": 7}, "no V2 inference request"),
        ({"inputs": GOOD["inputs"][:1]}, r"missing required input\(s\) \['n'\]"),
        ({"inputs": GOOD["inputs"] + GOOD["inputs"][:1]}, "'x' already exists"),
        (changed(name="X"), "unexpected input 'X' for model 'm'; it takes 'x', 'n'"),
        (changed(name="输入"), "unexpected input '输入'"),
        (changed(name=None), "missing required field `name`"),
        (changed(datatype="FP64"), "has datatype FP64 for model 'm', expected FP32"),
        (changed(datatype="float32"), "has datatype float32"),
        (changed(shape=[4]), r"has shape \[4\] for model 'm', expected \[-1, 2\]"),
        (changed(shape=[2, 3]), "has shape"),
        (changed(shape=[0, 2], data=[]), "has shape"),
        (changed(shape=[-1, 2]), "has shape"),
        (changed(shape=[2.0, 2]), "no V2 inference request"),
        (changed(shape=[True, 2]), "no V2 inference request"),
        (changed(shape=[2**63, 2]), "Shape does not match"),
        (changed(shape=[2**70, 2]), "Shape does not match"),
        (changed(shape=[1, 2], data=[1, 2]), "one number of rows: 'x' has 1, 'n' has 2"),
        (changed(data=None), "has no 'data'"),
        (changed(data=[1, 2, 3]), "Shape does not match"),
        (changed(data=[[1, 2, 3, 4]]), "Shape does not match"),
        (changed(data=[[1, 2], [3]]), "Unable to parse 'data'"),
        (changed(data=[[[1, 2], [3, 4]]]), "Unable to parse 'data'"),
        (changed(data=5), "Unable to parse 'data'"),
        (changed(data="1234"), "Unable to parse 'data'"),
        (changed(data=[1, 2, 3, "4"]), "Expected `float`, got `str`"),
        (changed(data=[1, 2, 3, True]), "Expected `float`, got `bool`"),
        (changed(data=[1, 2, 3, None]), "Expected `float`, got `null`"),
        (changed(data=[1, 2, 3, 1e39]), "Unable to parse 'data' of input 'x' as FP32"),
        (GOOD_BODY.replace(b"2.5", b"1e999"), "out of range"),
        (GOOD_BODY.replace(b"127", b"128"), "Expected `int` <= 127"),
        (GOOD_BODY.replace(b"127", b"1.5"), "Expected `int`, got `float`"),
        (GOOD_BODY.replace(b"127", b"18446744073709551616"), "Unable to parse 'data'"),
        (GOOD_BODY.replace(b"127", b"9" * 5000), "Unable to parse 'data'"),
        (GOOD_BODY.replace(b"2.5", b"[" * 100_000), "not JSON"),
        (GOOD_BODY.replace(b"2.5", b"[" * 100_000 + b"]" * 100_000), "not JSON"),
        (changed(parameters={"binary_data_size": 16}, data=None), "the body holds 0 more"),
        (changed(parameters={"binary_data_size": 16}), "both 'data' and 'binary_data_size'"),
        (changed(parameters={"shared_memory_region": "r"}, data=None), "'x': shared memory is not supported"),
        (changed(parameters=[]), "no V2 inference request"),
        ({**GOOD, "outputs": [{"name": "w"}]}, "unexpected output 'w' for model 'm'; it gives 'y', 'z'"),
        ({**GOOD, "outputs": [{"name": "y"}, {"name": "y"}]}, "output 'y' already exists"),
        ({**GOOD, "outputs": ["y"]}, "no V2 inference request"),
        (asking("y", binary_data="yes"), "parameter 'binary_data' must be true or false"),
        (asking("y", shared_memory_region="r"), "'y': shared memory is not supported"),
        (asking("y", classification=-1), "parameter 'classification' must be a whole number"),
        (asking("y", classification=1.0), "parameter 'classification' must be a whole number"),
        (asking("z", classification=1), "class result not available for output 'z' due to unsupported type 'BOOL'"),
        ({**GOOD, "parameters": {"binary_data_output": 1}}, "parameter 'binary_data_output' must be true or false"),
        ({**GOOD, "parameters": {"timeout": "soon"}}, "parameter 'timeout' must be a whole number"),
        ({**GOOD, "parameters": "timeout"}, "no V2 inference request"),
    ],
)
def test_a_request_that_is_not_right_is_refused_with_what_is_wrong(document, message):
    with pytest.raises(InvalidRequest, match=message):
        decode(document)


@pytest.mark.parametrize(
    ("split", "extra", "message"),
    [
        (0, b"", "Raw request must only have 1 input .* to be deduced but got 2 inputs in 'm' model configuration"),
        (BINARY_SPLIT - 1, b"", "not JSON"),
        (BINARY_SPLIT + 1, b"", "not JSON"),
        (len(BINARY_BODY) + 1, b"", "the body has"),
        (BINARY_SPLIT, b"\0", "1 bytes that belong to no input"),
        (None, b"", "not JSON"),
    ],
)
def test_a_binary_body_whose_parts_do_not_fit_is_refused(split, extra, message):
    assert decode(BINARY_BODY, BINARY_SPLIT).rows == 2
    with pytest.raises(InvalidRequest, match=message):
        decode(BINARY_BODY + extra, split)


@pytest.mark.parametrize("size", [0, 15, 17, -1, 1.0, "16", True, None, 2**70])
def test_a_binary_size_that_does_not_fit_the_tensor_is_refused(size):
    head = json.loads(BINARY_BODY[:BINARY_SPLIT])
    head["inputs"][0]["parameters"]["binary_data_size"] = size
    body = json.dumps(head).encode()
    with pytest.raises(InvalidRequest):
        decode(body + BINARY_BODY[BINARY_SPLIT:], len(body))


@pytest.mark.parametrize(
    ("dtype", "raw", "message"),
    [
        ("bool", b"\x01\x02", "neither 0 nor 1"),
        ("float16", b"\0\0\0", "Expected 4, got 3"),
        ("object", b"\1\0\0\0a", r"expected 2 string elements .* got 1"),
        ("object", b"\1\0\0\0a\2\0\0\0b", "ends within a string element"),
        ("object", b"\1\0\0\0a\1\0\0\0\xff", "no UTF-8"),
        ("object", b"\xff\xff\xff\xffa", "ends within a string element"),
        ("object", b"\0\0\0\0" * 3, "expected 2 string elements"),
    ],
)
def test_raw_bytes_that_are_no_tensor_are_refused(dtype, raw, message):
    spec = TensorSpec("t", dtype, ("batch",))
    head = {
        "inputs": [{"name": "t", "datatype": spec.datatype, "shape": [2], "parameters": {"binary_data_size": len(raw)}}]
    }
    body = json.dumps(head).encode()
    with pytest.raises(InvalidRequest, match=message):
        rest.decode_request(body + raw, Signature("m", "1", [spec], []), len(body))


@pytest.mark.parametrize(
    ("dtype", "least", "most"),
    [(dtype, np.iinfo(dtype).min, np.iinfo(dtype).max) for dtype in DATATYPE_OF if dtype.startswith(("int", "uint"))],
)
def test_every_integer_type_takes_its_whole_range_and_nothing_beyond(dtype, least, most):
    signature = Signature("m", "1", [TensorSpec("t", dtype, ("batch",))], [])

    def read(*values):
        tensor = {"name": "t", "datatype": DATATYPE_OF[dtype], "shape": [len(values)], "data": list(map(int, values))}
        return rest.decode_request(json.dumps({"inputs": [tensor]}).encode(), signature).inputs["t"]

    assert read(least, most).tolist() == [least, most]
    for beyond in (int(least) - 1, int(most) + 1):
        with pytest.raises(InvalidRequest):
            read(beyond)


@pytest.mark.parametrize(
    ("document", "binary"),
    [
        ({}, set()),
        ({"parameters": {"binary_data_output": True}}, {"y", "z"}),
        ({"parameters": {"binary_data_output": False}}, set()),
        ({"outputs": [{"name": "z"}, {"name": "y", "parameters": {"binary_data": True}}]}, {"y"}),
        ({"outputs": [{"name": "z"}], "parameters": {"binary_data_output": True}}, {"z"}),
        (
            {
                "outputs": [{"name": "y", "parameters": {"binary_data": False}}, {"name": "z", "parameters": {}}],
                "parameters": {"binary_data_output": True},
            },
            {"z"},
        ),
    ],
)
def test_outputs_are_answered_in_the_form_asked_for(document, binary):
    assert decode({**GOOD, **document}).binary == binary


def test_what_a_request_s_parameters_ask_for_is_told():
    parameters = {"timeout": 2_500_000, "priority": 3, "timing": True, "my_own": [1], "sequence_id": 0}
    request = decode({"parameters": parameters, **asking("y", classification=2)})
    assert (request.timeout_s, request.priority, request.timing, request.classes) == (2.5, 3, True, {"y": 2})
    request = decode(asking("y", classification=0))
    assert (request.timeout_s, request.priority, request.timing, request.classes) == (0.0, 0, False, None)


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(EVERY_TYPE.outputs)), st.dictionaries(PARAMETER_NAMES, JSON, max_size=3)),
        max_size=3,
    ),
    st.dictionaries(PARAMETER_NAMES, JSON, max_size=3),
)
def test_any_json_as_parameters_is_read_or_raises_nothing_but_invalid_request(outputs, parameters):
    inputs = {spec.name: np.zeros(2, field.dtype) for spec, field in ((f.spec, f) for f in EVERY_TYPE.inputs.values())}
    inputs["in_object"] = np.array(["", "a"], object)
    head = json.loads(rest.encode_request(inputs, [field.spec for field in EVERY_TYPE.inputs.values()])[0])
    head["outputs"] = [{"name": name, "parameters": chosen} for name, chosen in outputs]
    head["parameters"] = parameters
    try:
        request = rest.decode_request(json.dumps(head).encode(), EVERY_TYPE)
    except InvalidRequest:
        return
    assert request.rows == 2
    assert request.timeout_s >= 0
    assert request.priority >= 0


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_a_number_that_a_float_type_would_make_infinite_is_refused_and_its_largest_is_not(dtype):
    spec = TensorSpec("t", dtype, ("batch",))
    signature = Signature("m", "1", [spec], [])

    def read(text):
        tensor = {"name": "t", "datatype": spec.datatype, "shape": [1], "data": ["number"]}
        body = json.dumps({"inputs": [tensor]}).replace('"number"', text)
        return rest.decode_request(body.encode(), signature).inputs["t"]

    largest = ml_dtypes.finfo(dtype).max
    assert read(repr(float(largest)))[0] == largest
    assert read(repr(-float(largest)))[0] == -largest
    with pytest.raises(InvalidRequest):
        read(repr(float(largest) * 1.005))


@given(st.binary(max_size=200), st.none() | st.integers(-1, 250))
def test_arbitrary_bytes_raise_nothing_but_invalid_request(body, json_bytes):
    with pytest.raises(InvalidRequest):
        rest.decode_request(body, EVERY_TYPE, json_bytes)


@given(st.sampled_from([GOOD_BODY, BINARY_BODY]), st.data())
@example(GOOD_BODY, None)
def test_a_damaged_request_is_read_or_raises_invalid_request(body, data):
    """Read, because a changed digit is another valid request."""
    damaged = bytearray(body)
    if data is not None:
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        damaged = damaged[: data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))]
    try:
        request = decode(bytes(damaged), None if body is GOOD_BODY else BINARY_SPLIT)
    except InvalidRequest:
        return
    assert {name: array.shape for name, array in request.inputs.items()} == {"x": (2, 2), "n": (2,)}


@given(st.sampled_from(sorted(EVERY_DTYPE)), JSON, JSON, JSON)
def test_any_json_in_place_of_a_tensor_s_fields_raises_nothing_but_invalid_request(dtype, shape, data, parameters):
    datatype = EVERY_TYPE.inputs[f"in_{dtype}"].datatype
    tensor = {"name": f"in_{dtype}", "datatype": datatype, "shape": shape, "data": data, "parameters": parameters}
    document = {"inputs": [tensor], "parameters": parameters}
    with pytest.raises(InvalidRequest):  # the other inputs are missing
        rest.decode_request(json.dumps(document).encode(), EVERY_TYPE)


@given(
    st.binary(max_size=100) | JSON.map(lambda value: json.dumps({"outputs": value}).encode()),
    st.none() | st.integers(-1, 120),
)
def test_an_answer_that_is_none_raises_nothing_but_invalid_request(body, json_bytes):
    try:
        outputs = rest.decode_response(body, {spec.name: spec for spec in SPECS}, json_bytes)
    except InvalidRequest:
        return
    assert outputs == {}  # `{"outputs": []}` is an answer


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ({"name": "w", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}, "unexpected output 'w'"),
        ({"name": "x", "datatype": "FP16", "shape": [1, 2], "data": [1, 2]}, "of type FP16"),
        ({"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1]}, "cannot be read as FP32"),
        ({"name": "x", "datatype": "FP32", "shape": [-1, -2], "data": [1, 2]}, "negative shape"),
        ({"name": "x", "datatype": "FP32", "shape": [1], "data": [{}]}, "cannot be read as FP32"),
        ({"name": "n", "datatype": "INT8", "shape": [1], "data": [300]}, "cannot be read as INT8"),
        ({"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}, "holds 0 more"),
    ],
)
def test_an_answer_that_is_not_right_is_refused_with_what_is_wrong(tensor, message):
    body = json.dumps({"outputs": [tensor]}).encode()
    with pytest.raises(InvalidRequest, match=message):
        rest.decode_response(body, {spec.name: spec for spec in SPECS})
