"""Both encodings, both directions, every type: what is encoded is what is decoded."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mlserve.model.tensors import DATATYPE_OF, TensorSpec, numpy_dtype
from mlserve.wire import grpc, rest
from mlserve.wire.messages import ModelInferRequest
from mlserve.wire.signature import InferRequest, Signature

DTYPES = (*DATATYPE_OF, "bfloat16")
# JSON and protobuf carry text as UTF-8, which has no lone surrogates.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TYPED = {
    "bool": "bool_contents",
    "int8": "int_contents",
    "int16": "int_contents",
    "int32": "int_contents",
    "int64": "int64_contents",
    "uint8": "uint_contents",
    "uint16": "uint_contents",
    "uint32": "uint_contents",
    "uint64": "uint64_contents",
    "float32": "fp32_contents",
    "float64": "fp64_contents",
    "object": "bytes_contents",
}


@st.composite
def tensors(draw, *, finite=False, dtypes=DTYPES):
    """`(specs, arrays)`: one to three tensors with dynamic and fixed dimensions, and arrays that fit them."""
    specs, arrays = [], {}
    rows = draw(st.integers(1, 4))
    for number in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from(dtypes))
        inner = draw(st.lists(st.integers(1, 3), max_size=2))
        dims = ("batch", *(draw(st.sampled_from([size, f"d{number}{axis}"])) for axis, size in enumerate(inner)))
        name = f"{number}{draw(TEXTS)}"
        specs.append(TensorSpec(name, dtype, dims))
        drawn = "float32" if dtype == "bfloat16" else dtype
        elements = _elements(dtype, finite)
        arrays[name] = draw(npst.arrays(np.dtype(drawn), (rows, *inner), elements=elements)).astype(numpy_dtype(dtype))
    return specs, arrays


def _elements(dtype, finite):
    if dtype == "object":
        return TEXTS
    if dtype == "bfloat16":
        largest = float(ml_dtypes.finfo(numpy_dtype(dtype)).max)
        whole = {} if not finite else {"min_value": -largest, "max_value": largest}
        return st.floats(width=32, allow_nan=not finite, allow_infinity=not finite, **whole)
    if dtype.startswith("float"):
        return npst.from_dtype(np.dtype(dtype), allow_nan=not finite, allow_infinity=not finite)
    return None


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        if array.dtype.kind == "V":  # numpy's comparison does not know that NaN is one there
            np.testing.assert_array_equal(found[name].astype(np.float32), array.astype(np.float32))
        else:
            np.testing.assert_array_equal(found[name], array)


def signature_of(inputs, outputs=()):
    return Signature("m", "1", inputs, outputs)


@given(tensors(finite=True), st.booleans())
def test_a_rest_request_arrives_as_it_was_sent(made, binary):
    specs, arrays = made
    body, headers = rest.encode_request(arrays, specs, binary=binary)
    length = headers.get("inference-header-content-length")
    request = rest.decode_request(body, signature_of(specs), int(length) if length else None)
    assert_same(request.inputs, arrays)
    assert request.rows == len(next(iter(arrays.values())))


@given(tensors())
def test_binary_carries_nan_and_infinity_too(made):
    specs, arrays = made
    body, headers = rest.encode_request(arrays, specs, binary=True)
    length = int(headers["inference-header-content-length"])
    assert_same(rest.decode_request(body, signature_of(specs), length).inputs, arrays)


@given(tensors(finite=True), st.data())
def test_json_and_binary_tensors_mix_in_one_request(made, data):
    specs, arrays = made
    as_json, _ = rest.encode_request(arrays, specs)
    as_binary, headers = rest.encode_request(arrays, specs, binary=True)
    split = int(headers["inference-header-content-length"])
    texts, raws = rest.orjson.loads(as_json), rest.orjson.loads(as_binary[:split])
    tail, position = b"", split
    for number, tensor in enumerate(raws["inputs"]):
        size = tensor["parameters"]["binary_data_size"]
        if data.draw(st.booleans()):
            texts["inputs"][number] = tensor
            tail += as_binary[position : position + size]
        position += size
    head = rest.orjson.dumps(texts)
    assert_same(rest.decode_request(head + tail, signature_of(specs), len(head)).inputs, arrays)


@given(tensors(finite=True))
def test_nested_json_means_the_same_as_flat_json(made):
    specs, arrays = made
    inputs = [
        {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": arrays[spec.name].shape,
            "data": _listed(arrays[spec.name]),
        }
        for spec in specs
    ]
    body = rest.orjson.dumps({"inputs": inputs}, option=rest.orjson.OPT_INDENT_2)
    assert_same(rest.decode_request(body, signature_of(specs)).inputs, arrays)


def _listed(array):
    return array.astype(np.float64).tolist() if array.dtype.kind in "fV" else array.tolist()


@given(tensors(), st.data())
def test_a_rest_response_arrives_as_it_was_sent(made, data):
    """JSON says null for what it has no word for; infinity therefore comes back as NaN."""
    specs, arrays = made
    chosen = data.draw(st.permutations([spec.name for spec in specs]))[: data.draw(st.integers(0, len(specs)))]
    binary = frozenset(data.draw(st.sets(st.sampled_from([spec.name for spec in specs]))))
    request = InferRequest({}, 1, id=data.draw(TEXTS), outputs=chosen, binary=binary)
    body, length = rest.encode_response(signature_of([], specs), request, arrays)
    expected = {name: arrays[name] for name in chosen or arrays}
    for name, array in expected.items():
        if name not in binary and array.dtype.kind in "fV":
            expected[name] = np.where(np.isfinite(array), array.astype(np.float64), np.nan).astype(array.dtype)
    assert_same(rest.decode_response(body, {spec.name: spec for spec in specs}, length), expected)
    assert rest.orjson.loads(body[:length]).get("id", "") == request.id


@given(tensors())
def test_a_grpc_request_arrives_as_it_was_sent(made):
    specs, arrays = made
    message = grpc.parse_request(grpc.encode_request("m", "1", arrays, specs))
    assert (message.model_name, message.model_version) == ("m", "1")
    request = grpc.decode_request(message, signature_of(specs))
    assert_same(request.inputs, arrays)


@given(tensors(dtypes=tuple(TYPED)))
def test_typed_contents_mean_the_same_as_raw_bytes(made):
    specs, arrays = made
    message = ModelInferRequest(
        model_name="m",
        inputs=[
            {
                "name": spec.name,
                "datatype": spec.datatype,
                "shape": arrays[spec.name].shape,
                "contents": {TYPED[spec.dtype]: _wire_values(arrays[spec.name])},
            }
            for spec in specs
        ],
    )
    request = grpc.decode_request(grpc.parse_request(message.SerializeToString()), signature_of(specs))
    assert_same(request.inputs, arrays)


def _wire_values(array):
    flat = array.ravel().tolist()
    return [value.encode() for value in flat] if array.dtype == object else flat


@given(tensors(), st.data())
def test_a_grpc_response_arrives_as_it_was_sent(made, data):
    specs, arrays = made
    chosen = data.draw(st.permutations([spec.name for spec in specs]))[: data.draw(st.integers(0, len(specs)))]
    payload = grpc.encode_response(signature_of([], specs), InferRequest({}, 1, outputs=chosen), arrays)
    expected = {name: arrays[name] for name in chosen or arrays}
    assert_same(grpc.decode_response(payload, {spec.name: spec for spec in specs}), expected)


@pytest.mark.parametrize("rows", [0, 2])
def test_an_answer_may_be_empty(rows):
    """A detector that finds nothing answers no rows; a request without rows is refused elsewhere."""
    spec = TensorSpec("boxes", "float32", ("found", 4))
    boxes = {"boxes": np.ones((rows, 4), np.float32)}
    signature = signature_of([], [spec])
    for binary in (frozenset(), frozenset(["boxes"])):
        body, length = rest.encode_response(signature, InferRequest({}, 1, binary=binary), boxes)
        assert_same(rest.decode_response(body, {"boxes": spec}, length), boxes)
    payload = grpc.encode_response(signature, InferRequest({}, 1), boxes)
    assert_same(grpc.decode_response(payload, {"boxes": spec}), boxes)
