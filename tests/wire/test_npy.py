"""Arrays in numpy's own file format: every type and layout, and what must not be read."""

import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import DATATYPE_OF, TensorSpec
from mlserve.wire.npy import read_npy, write_npy
from mlserve.wire.signature import Field


def field(dtype, shape=("batch", "n")):
    return Field(TensorSpec("x", dtype, shape))


def saved(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


@pytest.mark.parametrize("dtype", [dtype for dtype in DATATYPE_OF if dtype != "object"])
@given(data=st.data())
def test_an_array_is_read_again_as_it_was_written(dtype, data):
    shape = arrays.array_shapes(min_dims=2, max_dims=2, max_side=4)
    array = data.draw(arrays.arrays(dtype, shape))
    np.testing.assert_array_equal(read_npy(write_npy(array), field(dtype), "m"), array)
    assert write_npy(array) == saved(array)


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda array: array[:, ::-1], lambda array: array.astype(">f4")])
def test_layout_and_byte_order_do_not_matter(layout):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = read_npy(saved(layout(array)), field("float32"), "m")
    np.testing.assert_array_equal(found, layout(array))
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("values", "dtype", "wanted"),
    [
        ([[1.5]], "float64", "float32"),
        ([[7]], "int64", "int32"),
        ([[7]], "uint8", "float32"),
        ([[np.nan, np.inf]], "float64", "float16"),
    ],
)
def test_a_number_of_another_type_is_taken_where_it_fits(values, dtype, wanted):
    found = read_npy(saved(np.array(values, dtype)), field(wanted), "m")
    np.testing.assert_array_equal(found, np.array(values, wanted))
    assert found.dtype == wanted


def _header_of(text, body=b""):
    header = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


def _header(dtype, shape):
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    ("body", "wanted", "message"),
    [
        (saved(np.array([[300]])), "int8", "too large"),
        (saved(np.array([[-1]])), "uint8", "UINT8"),
        (saved(np.array([[1e39]])), "float32", "too large"),
        (saved(np.array([[1.5]])), "int64", "INT64"),
        (saved(np.array([[True]])), "float32", "FP32"),
        (saved(np.array([[1]])), "bool", "BOOL"),
        (saved(np.array([["a"]])), "object", "plain array"),
        (saved(np.array([1.0])), "float64", "shape"),
        (saved(np.ones((1, 2)))[:-1], "float64", "header says 16 bytes, the body holds 15"),
        (saved(np.ones((1, 2))) + b"x", "float64", "header says"),
        (b"", "float64", "no array"),
        (b"\x93NUMPY", "float64", "no array"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "float64", "no array"),
        (b"PK\x03\x04" + bytes(100), "float64", "no array"),
        (pickle.dumps([[1.0]]), "float64", "no array"),
        (saved(np.array([[object]]), allow_pickle=True), "object", "plain array"),
        (_header_of(_header("<f8", "(1, -1)")), "float64", "plain array"),
        (_header_of(_header("<f8", "(461168601842738790, 4)")), "float64", "header says"),
        (_header_of(_header("<f8", "(" + "9" * 4000 + ",)")), "float64", "plain array"),
        (_header_of(_header("<f8", "(" + "1, " * 65 + ")"), bytes(8)), "float64", "plain array"),
        (_header_of(_header("<f8", "(0, 2)")), "float64", "shape"),
        (_header_of(_header("<f8", "(2 2)"), bytes(32)), "float64", "plain array"),
        (_header_of(_header("<f8", "(1, 1)")), "float64", "header says 8 bytes, the body holds 0"),
        (_header_of(_header("<f7", "(1, 1)"), bytes(7)), "float64", "no type"),
        (_header_of(_header("|b1", "(1, 1)"), b"\x02"), "bool", "neither 0 nor 1"),
        (
            _header_of("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1, 1)}", bytes(8)),
            "float64",
            "plain",
        ),
        (_header_of("__import__('os').abort()"), "float64", "plain array"),
        (_header_of("(" * 3000), "float64", "plain array"),
        (_header_of("{" + " " * 60_000 + "}"), "float64", "plain array"),
        (_header_of(_header("<f8", "(1, 1)"))[:20], "float64", "plain array"),
    ],
)
def test_what_is_no_such_array_is_refused(body, wanted, message):
    with pytest.raises(InvalidRequest, match=message):
        read_npy(body, field(wanted), "m")
