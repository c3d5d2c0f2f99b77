"""A whole body as the one input of a model: what can be deduced of it, and what cannot."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import DATATYPE_OF, TensorSpec
from mlserve.wire.raw import from_whole_body
from mlserve.wire.signature import Signature

ROWS = [TensorSpec("y", "float32", ("batch",))]
WHOLE = [TensorSpec("y", "float32", (1,))]


def read(raw, dtype, dims, outputs=ROWS):
    (array,) = from_whole_body(raw, Signature("m", "1", [TensorSpec("x", dtype, dims)], outputs)).values()
    return array


@pytest.mark.parametrize(
    ("dims", "outputs", "shape"),
    [
        (("batch", 6), ROWS, (1, 6)),
        (("batch", 2, 3), ROWS, (1, 2, 3)),
        (("batch", "n"), ROWS, (1, 6)),
        (("batch", "n", 3), ROWS, (1, 2, 3)),
        ((2, 3), WHOLE, (2, 3)),
        (("n", 3), WHOLE, (2, 3)),
        (("n",), WHOLE, (6,)),
    ],
)
def test_the_one_open_size_is_deduced_and_the_row_is_one(dims, outputs, shape):
    values = np.arange(6, dtype=np.int16)
    np.testing.assert_array_equal(read(values.tobytes(), "int16", dims, outputs), values.reshape(shape))


@pytest.mark.parametrize(
    ("dims", "outputs"), [(("batch",), ROWS), (("batch", 1), ROWS), ((1,), WHOLE), ((1, 1), WHOLE), ((), WHOLE)]
)
def test_a_whole_body_is_one_text_without_its_length(dims, outputs):
    array = read("grüße\0".encode(), "object", dims, outputs)
    assert array.ravel().tolist() == ["grüße\0"]
    assert array.shape == (1,) * len(dims)


@pytest.mark.parametrize(
    ("raw", "dtype", "dims", "outputs", "message"),
    [
        (b"\0" * 10, "int16", ("batch", 6), ROWS, "Expected 12, got 10"),
        (b"\0" * 24, "int16", ("batch", 6), ROWS, "Expected 12, got 24"),
        (b"\0" * 11, "int16", ("batch", "n"), ROWS, "Expected 10, got 11"),
        (b"", "int16", ("batch", "n"), ROWS, "Expected a multiple of 2, got 0"),
        (b"\0" * 5, "int16", ("batch", "n", 3), ROWS, "Expected a multiple of 6, got 5"),
        (b"\0" * 12, "int16", ("batch", "n", 0), ROWS, "Expected a multiple of 0, got 12"),
        (b"\0" * 12, "int16", ("batch", "n", "m"), ROWS, "more than one dynamic dimension"),
        (b"text", "object", ("batch", 2), ROWS, "For BYTE datatype raw input 'x', the model must have input shape"),
        (b"text", "object", ("batch", "n"), ROWS, r"the model must have input shape \[1\]"),
        (b"\xff", "object", ("batch",), ROWS, "no UTF-8"),
    ],
)
def test_a_body_that_does_not_say_enough_is_refused(raw, dtype, dims, outputs, message):
    with pytest.raises(InvalidRequest, match=message):
        read(raw, dtype, dims, outputs)


def test_a_model_of_several_inputs_or_none_is_refused():
    for specs in ([], [TensorSpec("a", "int8", ("batch",)), TensorSpec("b", "int8", ("batch",))]):
        with pytest.raises(InvalidRequest, match=f"to be deduced but got {len(specs)} inputs in 'm' model config"):
            from_whole_body(b"\0", Signature("m", "1", specs, ROWS))


@given(
    st.binary(max_size=40),
    st.sampled_from([*DATATYPE_OF, "bfloat16"]),
    st.lists(st.integers(0, 3) | st.sampled_from("ab"), max_size=3),
    st.booleans(),
)
def test_any_body_is_read_or_raises_invalid_request(raw, dtype, dims, rows):
    dims = ("batch", *dims) if rows else tuple(dims)
    try:
        array = read(raw, dtype, dims, ROWS if rows else WHOLE)
    except InvalidRequest:
        return
    assert array.ndim == len(dims)
    assert array.nbytes == len(raw) or dtype == "object"
