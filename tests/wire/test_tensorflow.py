"""TensorProto and tf.Example: TensorFlow's own classes are the other side, and nothing but InvalidRequest is raised."""

import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import DATATYPE_OF, TensorSpec
from mlserve.wire.messages import parse_message
from mlserve.wire.signature import Signature
from mlserve.wire.tensorflow import (
    TYPE_OF,
    decode_predict,
    examples_of,
    from_examples,
    from_tensor,
    to_tensor,
)
from mlserve.wire.tensorflow_messages import ClassificationRequest, DataType, PredictRequest, TensorProto

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
DTYPES = [*DATATYPE_OF, "bfloat16"]


@pytest.fixture(scope="module")
def tf():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow

    return tensorflow


def numpy_of(dtype):
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


@st.composite
def arrays(draw, dtypes=tuple(DTYPES)):
    """`(spec, array)` of any type and rank."""
    dtype = draw(st.sampled_from(dtypes))
    shape = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    if dtype == "bfloat16":
        array = draw(npst.arrays(np.float32, shape)).astype(numpy_of(dtype))
    else:
        array = draw(npst.arrays(np.dtype(dtype), shape, elements=TEXTS if dtype == "object" else None))
    dims = tuple(draw(st.sampled_from([size, f"d{axis}"])) for axis, size in enumerate(shape))
    return TensorSpec("x", dtype, dims), array


def signature_of(*specs, outputs=()):
    return Signature("m", "1", specs, outputs)


def read(payload, spec):
    """The array of a TensorProto's bytes, whoever wrote them."""
    return from_tensor(TensorProto.FromString(payload), spec.name, signature_of(spec))


def same(found, array):
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    if array.dtype == object:
        assert found.tolist() == array.tolist()
    else:
        assert found.tobytes() == array.tobytes()  # NaN and -0.0 too


def their_proto(payload):
    from tensorflow.core.framework import tensor_pb2

    return tensor_pb2.TensorProto.FromString(payload)


@given(arrays())
def test_what_tensorflow_writes_is_read_bit_for_bit(tf, made):
    spec, array = made
    kind, values = tf.dtypes.as_dtype(array.dtype), array
    if array.dtype == object:
        kind, values = tf.string, np.array([text.encode() for text in array.ravel()], object).reshape(array.shape)
    same(read(tf.make_tensor_proto(values, dtype=kind, shape=array.shape).SerializeToString(), spec), array)


@given(arrays())
def test_what_is_written_tensorflow_reads_bit_for_bit(tf, made):
    spec, array = made
    payload = to_tensor(array, spec.datatype).SerializeToString()
    found = tf.make_ndarray(their_proto(payload))
    if array.dtype == object:
        found = np.array([text.decode() for text in found.ravel()], object)
    same(found.reshape(array.shape), array)


@given(arrays())
def test_lists_of_elements_mean_the_same_as_raw_bytes(made):
    """What this writes are lists; what it reads of them is what it wrote."""
    spec, array = made
    proto = to_tensor(array, spec.datatype)
    assert not proto.tensor_content
    same(read(proto.SerializeToString(), spec), array)


def test_every_type_has_tensorflow_s_number(tf):
    for ours, name in TYPE_OF.items():
        dtype = {kind: dtype for dtype, kind in DATATYPE_OF.items()}.get(ours, "bfloat16")
        expected = tf.string if dtype == "object" else tf.dtypes.as_dtype(numpy_of(dtype))
        assert DataType[name] == expected.as_datatype_enum


def test_both_definitions_of_the_messages_live_in_one_process(tf):
    ours = TensorProto(dtype=DataType["DT_FLOAT"], float_val=[1.5])
    assert their_proto(ours.SerializeToString()).float_val == [1.5]


# The rule of the last element


def floats(shape, **fields):
    return TensorProto(
        dtype=DataType["DT_FLOAT"], tensor_shape={"dim": [{"size": size} for size in shape]}, **fields
    ).SerializeToString()


ANY_FLOATS = TensorSpec("x", "float32", ("a", "b"))


@pytest.mark.parametrize("count", range(7))
def test_a_short_list_repeats_its_last_element_as_tensorflow_does(tf, count):
    payload = floats([2, 3], float_val=[float(number + 1) for number in range(count)])
    expected = tf.make_ndarray(their_proto(payload))
    np.testing.assert_array_equal(read(payload, ANY_FLOATS), expected)
    assert expected.ravel()[-1] == count


@pytest.mark.parametrize(("dtype", "filled"), [("object", ""), ("bool", False), ("int8", 0), ("float16", 0.0)])
def test_an_empty_list_is_zeros_of_its_type(dtype, filled):
    spec = TensorSpec("x", dtype, ("a",))
    proto = TensorProto(dtype=DataType[TYPE_OF[spec.datatype]], tensor_shape={"dim": [{"size": 3}]})
    assert read(proto.SerializeToString(), spec).tolist() == [filled] * 3


def test_a_scalar_made_by_tensorflow_fills_its_shape(tf):
    payload = tf.make_tensor_proto(0.5, tf.float32, shape=[4, 5]).SerializeToString()
    np.testing.assert_array_equal(read(payload, ANY_FLOATS), np.full((4, 5), 0.5, np.float32))


@pytest.mark.parametrize(
    ("dtype", "fields"),
    [("float32", {"float_val": [1.0]}), ("float32", {}), ("object", {"string_val": [b"a"]}), ("bool", {})],
)
@pytest.mark.parametrize("shape", [[2**40], [2**62, 2**62], [5 << 20]])
def test_a_small_message_cannot_ask_for_a_large_array(dtype, fields, shape):
    spec = TensorSpec("x", dtype, tuple(f"d{axis}" for axis in range(len(shape))))
    dims = {"dim": [{"size": size} for size in shape]}
    payload = TensorProto(dtype=DataType[TYPE_OF[spec.datatype]], tensor_shape=dims, **fields).SerializeToString()
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="may fill 4194304 bytes"):
            read(payload, spec)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    small = [1] * len(shape)  # the negative control: it is the size that is refused
    dims = {"dim": [{"size": size} for size in small]}
    payload = TensorProto(dtype=DataType[TYPE_OF[spec.datatype]], tensor_shape=dims, **fields).SerializeToString()
    assert read(payload, spec).shape == tuple(small)


# The wrong ones


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (floats([1, 1], float_val=[1, 2]), "but 2 elements in float_val"),
        (floats([1, 1], tensor_content=b"\0" * 5), "Expected 4, got 5"),
        (floats([2**40, 1], tensor_content=b"\0" * 4), "byte size mismatch"),
        (floats([-1, 1], float_val=[1]), r"has shape \[-1, 1\]"),
        (floats([0, 1]), r"has shape \[0, 1\]"),
        (floats([1]), r"has shape \[1\]"),
        (floats([1] * 65), "has 65 dimensions"),
        (TensorProto(dtype=DataType["DT_FLOAT"], tensor_shape={"unknown_rank": True}).SerializeToString(), "no shape"),
        (TensorProto(dtype=DataType["DT_INT64"]).SerializeToString(), "has datatype INT64"),
        (TensorProto(dtype=DataType["DT_BFLOAT16"]).SerializeToString(), "has datatype BF16"),
        (TensorProto().SerializeToString(), "type number 0, which is not supported"),
        (TensorProto(dtype=8).SerializeToString(), "type number 8, which is not supported"),
        (TensorProto(dtype=101).SerializeToString(), "type number 101"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_with_what_is_wrong(payload, message):
    with pytest.raises(InvalidRequest, match=message):
        read(payload, ANY_FLOATS)


@pytest.mark.parametrize(
    ("dtype", "fields", "message"),
    [
        ("int8", {"int_val": [128]}, "do not fit INT8"),
        ("uint8", {"int_val": [-1]}, "do not fit UINT8"),
        ("float16", {"half_val": [65536]}, "do not fit FP16"),
        ("bfloat16", {"half_val": [-1]}, "do not fit BF16"),
        ("object", {"string_val": [b"\xff"]}, "no UTF-8"),
        ("object", {"tensor_content": b"\x01a"}, "strings travel in string_val"),
    ],
)
def test_an_element_that_does_not_fit_its_type_is_refused(dtype, fields, message):
    spec = TensorSpec("x", dtype, ("a",))
    dims = {"dim": [{"size": 1}]}
    proto = TensorProto(dtype=DataType[TYPE_OF[spec.datatype]], tensor_shape=dims, **fields)
    with pytest.raises(InvalidRequest, match=message):
        read(proto.SerializeToString(), spec)


TWO = signature_of(
    TensorSpec("x", "float32", ("batch", 2)),
    TensorSpec("n", "int64", ("batch",)),
    outputs=[TensorSpec("y", "float32", ("batch",)), TensorSpec("z", "float32", ("batch",))],
)


def predict(change=lambda _: None):
    message = PredictRequest(model_spec={"name": "m"})
    message.inputs["x"].CopyFrom(to_tensor(np.ones((2, 2), np.float32), "FP32"))
    message.inputs["n"].CopyFrom(to_tensor(np.ones(2, np.int64), "INT64"))
    change(message)
    return message.SerializeToString()


def decode(payload):
    return decode_predict(parse_message(PredictRequest, payload), TWO)


def test_the_good_request_is_read():
    request = decode(predict(lambda m: m.output_filter.extend(["z", "y"])))
    assert (request.rows, list(request.outputs)) == (2, ["z", "y"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.inputs["w"].CopyFrom(m.inputs["x"]), r"the request has {n,w,x}, the model takes {n,x}"),
        (lambda m: m.inputs.pop("n"), r"missing {n}, unexpected {}"),
        (lambda m: m.inputs["w"].CopyFrom(m.inputs.pop("n")), "missing {n}, unexpected {w}"),
        (lambda m: m.inputs["n"].CopyFrom(to_tensor(np.ones(3, np.int64), "INT64")), "one number of rows"),
        (lambda m: m.output_filter.append("w"), r"unexpected output 'w' .* gives {y,z}"),
        (lambda m: m.output_filter.extend(["y", "y"]), "'y' is asked for twice"),
    ],
)
def test_a_request_that_is_not_right_is_refused_and_told(change, message):
    with pytest.raises(InvalidRequest, match=message):
        decode(predict(change))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_invalid_request(payload):
    with pytest.raises(InvalidRequest):
        decode(payload)


@given(st.data())
def test_a_damaged_request_is_read_or_raises_invalid_request(data):
    damaged = bytearray(predict())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        request = decode(bytes(damaged))
    except InvalidRequest:
        return
    assert request.inputs["x"].shape == (request.rows, 2)


# Examples


def example(tf, **features):
    """A tf.train.Example by TensorFlow's own classes: lists of floats, integers or bytes by name."""
    kinds = {float: "float_list", int: "int64_list", bytes: "bytes_list"}
    made = tf.train.Example()
    for name, values in features.items():
        if values:
            getattr(made.features.feature[name], kinds[type(values[0])]).value.extend(values)
        else:
            made.features.feature[name].SetInParent()
    return made


def input_of(tf, *examples, context=None):
    message = ClassificationRequest()
    holder = message.input.example_list if context is None else message.input.example_list_with_context
    for each in examples:
        holder.examples.add().ParseFromString(each.SerializeToString())
    if context is not None:
        holder.context.ParseFromString(context.SerializeToString())
    return ClassificationRequest.FromString(message.SerializeToString()).input


FEATURES = signature_of(
    TensorSpec("x", "float32", ("batch", 2)),
    TensorSpec("n", "int64", ("batch",)),
    TensorSpec("t", "object", ("batch", "some")),
    TensorSpec("m", "float64", ("batch", 2, 2)),
)


def test_examples_made_by_tensorflow_are_read(tf):
    ones = [
        example(tf, x=[1.0, 2.0], n=[1], t=["grüße".encode()], m=[1, 2, 3, 4]),
        example(tf, x=[3.0, 4.0], n=[2], t=[b"b"], m=[5.0, 6.0, 7.0, 8.0]),
    ]
    found = from_examples(examples_of(input_of(tf, *ones)), FEATURES)
    assert {name: array.tolist() for name, array in found.items()} == {
        "x": [[1, 2], [3, 4]],
        "n": [1, 2],
        "t": [["grüße"], ["b"]],
        "m": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]],
    }


def test_the_context_is_common_to_all_examples(tf):
    rest = example(tf, n=[7], t=[b"c"], m=[0.0] * 4)
    found = from_examples(
        examples_of(input_of(tf, example(tf, x=[1.0, 2.0]), example(tf, x=[3.0, 4.0]), context=rest)), FEATURES
    )
    assert found["n"].tolist() == [7, 7]
    assert found["x"].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"x": [1.0, 2.0, 3.0]}, r"feature 'x' has 3 values, which do not fill the shape \[2\]"),
        ({"x": []}, "feature 'x' has 0 values"),
        ({"x": [b"1", b"2"]}, "cannot be read as FP32"),
        ({"n": [1.5]}, "cannot be read as INT64"),
        ({"n": [1, 2]}, r"feature 'n' has 2 values, which do not fill the shape \[\]"),
        ({"t": [b"\xff"]}, "no UTF-8"),
        ({"t": []}, "feature 't' has 0 values"),
        ({"m": [1.0] * 5}, r"feature 'm' has 5 values, which do not fill the shape \[2, 2\]"),
        ({"w": [1]}, "unexpected input 'w'"),
    ],
)
def test_an_example_that_does_not_fit_is_refused_with_what_is_wrong(tf, features, message):
    right = {"x": [1.0, 2.0], "n": [1], "t": [b"a"], "m": [1.0] * 4}
    with pytest.raises(InvalidRequest, match=message):
        from_examples(examples_of(input_of(tf, example(tf, **right | features))), FEATURES)
    assert from_examples(examples_of(input_of(tf, example(tf, **right))), FEATURES)["n"].tolist() == [1]


def test_no_examples_a_doubled_feature_and_unlike_examples_are_refused(tf):
    with pytest.raises(InvalidRequest, match="no examples"):
        examples_of(input_of(tf))
    with pytest.raises(InvalidRequest, match="feature 'n' is in the context and in an example"):
        examples_of(input_of(tf, example(tf, n=[1]), context=example(tf, n=[2])))
    with pytest.raises(InvalidRequest, match="example 1 does not have the same features"):
        from_examples(examples_of(input_of(tf, example(tf, n=[1]), example(tf, x=[1.0]))), FEATURES)
    with pytest.raises(InvalidRequest, match="missing input 'x'"):
        from_examples(examples_of(input_of(tf, example(tf, n=[1]))), FEATURES)


def test_elements_in_the_list_of_another_type_are_refused():
    """TensorFlow would take the tensor for one that is all zeros."""
    tensor = TensorProto(dtype=1, tensor_shape={"dim": [{"size": 1}, {"size": 2}]}, int_val=[1, 2])
    signature = Signature("m", "1", [TensorSpec("x", "float32", ("batch", 2))], [])
    with pytest.raises(InvalidRequest, match="elements go in float_val, not int_val"):
        from_tensor(tensor, "x", signature)
