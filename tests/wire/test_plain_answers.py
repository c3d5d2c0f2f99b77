"""What a server writes of any tensors, a client reads back as just these."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import TensorSpec
from mlserve.wire.plain import parse_json, to_columns, to_rows, write_json
from mlserve.wire.plain_answers import read_answer

DTYPES = ("bool", "uint8", "uint64", "int32", "int64", "float32", "float64")


@st.composite
def outputs(draw):
    """One to three arrays [rows, ...] and their specs."""
    rows, found, specs = draw(st.integers(1, 4)), {}, {}
    for number in range(draw(st.integers(1, 3))):
        name, dtype = f"out{number}", draw(st.sampled_from(DTYPES))
        shape = (rows, *draw(st.lists(st.integers(1, 3), max_size=2)))
        elements = {"allow_nan": True, "allow_infinity": False} if dtype.startswith("float") else None
        found[name] = draw(arrays.arrays(dtype, shape, elements=arrays.from_dtype(np.dtype(dtype), **elements or {})))
        specs[name] = TensorSpec(name, dtype, ("batch", *shape[1:]))
    return found, specs


def same(answer, expected):
    assert answer.keys() == expected.keys()
    for name, array in expected.items():
        assert answer[name].dtype == array.dtype
        assert np.array_equal(answer[name], array, equal_nan=array.dtype.kind == "f")


@settings(max_examples=50)
@given(outputs())
def test_by_row_and_by_column_are_the_same_tensors(made):
    found, specs = made
    names = list(found)
    same(read_answer(parse_json(write_json(to_columns(found, names))), specs), found)
    same(read_answer(parse_json(write_json(to_rows(found, names))), specs), found)


@settings(max_examples=50)
@given(outputs())
def test_one_row_may_stand_alone(made):
    found, specs = made
    one = {name: array[:1] for name, array in found.items()}
    (row,) = to_rows(one, list(one))
    same(read_answer(parse_json(write_json(row)), specs), one)


@settings(max_examples=50)
@given(value=st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=3), st.lists, max_leaves=8))
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "object"])
def test_any_other_answer_is_refused_or_has_the_right_type(dtype, value):
    spec = TensorSpec("y", dtype, ("batch", 2))
    try:
        array = read_answer(value, {"y": spec})["y"]
    except InvalidRequest:
        return
    assert (array.dtype.name, array.ndim, array.shape[1:]) == (dtype, 2, (2,))


@pytest.mark.parametrize("value", [{"b64": "WsO8cmljaA=="}, "Zürich"])
def test_texts_come_as_they_are_or_in_base64(value):
    spec = TensorSpec("city", "object", ("batch",))
    assert read_answer([value, "b"], {"city": spec})["city"].tolist() == ["Zürich", "b"]
