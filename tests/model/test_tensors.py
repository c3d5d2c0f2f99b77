"""Tensor specs, and the flag that states one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import UsageError
from mlserve.model.tensors import (
    DATATYPE_OF,
    DTYPE_OF,
    TensorSpec,
    as_dtype,
    batchable,
    parse_input_flag,
    shape_matches,
)

DIMS = st.lists(st.integers(1, 2**31) | st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True), max_size=5)


@given(st.text(min_size=1, max_size=12), st.sampled_from(sorted(DATATYPE_OF)), DIMS)
def test_a_flag_says_what_a_spec_prints(name, dtype, dims):
    spec = TensorSpec(name, dtype, tuple(dims))
    assert parse_input_flag(str(spec)) == spec


@pytest.mark.parametrize(
    ("flag", "spec"),
    [
        ("tokens:int64:batch,20", TensorSpec("tokens", "int64", ("batch", 20))),
        ("a:b:int64: batch , 20 ", TensorSpec("a:b", "int64", ("batch", 20))),
        ("scale:float32:", TensorSpec("scale", "float32", ())),
    ],
)
def test_numbers_are_fixed_words_are_dynamic_and_nothing_is_a_scalar(flag, spec):
    assert parse_input_flag(flag) == spec


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("", "cannot be read; write name:dtype:dims"),
        ("x", "cannot be read"),
        ("x:float32", "cannot be read"),
        (":float32:1", "cannot be read"),
        ("x:FP32:1", "unknown type 'FP32'; use one of bool, uint8"),
        ("x:float32:0", "'0' is no dimension"),
        ("x:float32:-1", "'-1' is no dimension"),
        ("x:float32:1,,2", "'' is no dimension"),
        ("x:float32:a b", "'a b' is no dimension"),
        ("x:float32:" + "9" * 5000, "is no dimension"),
    ],
)
def test_a_flag_that_cannot_be_read_says_how_to_write_it(flag, message):
    with pytest.raises(UsageError, match=message):
        parse_input_flag(flag)


@given(st.text(max_size=20))
def test_any_text_is_a_spec_or_a_usage_error(text):
    try:
        spec = parse_input_flag(text)
    except UsageError as error:
        message = str(error)
    else:
        message = repr(text) if spec.dtype in DATATYPE_OF else ""
    assert repr(text) in message


@pytest.mark.parametrize(
    ("shape", "dims", "matches"),
    [
        ((), (), True),
        ((3, 2), ("batch", 2), True),
        ((3, 2), (3, "n"), True),
        ((3,), ("batch", 2), False),
        ((3, 1), ("batch", 2), False),
        ((0, 2), ("batch", 2), False),
        ((-1, 2), ("batch", 2), False),
        ((3, 0), (3, 0), True),
    ],
)
def test_a_shape_matches_its_dimensions_and_dynamic_ones_are_not_empty(shape, dims, matches):
    assert shape_matches(shape, dims) is matches


def test_rows_run_together_only_when_every_tensor_has_a_dynamic_first_dimension():
    rows, fixed, scalar = (TensorSpec("t", "float32", dims) for dims in (("batch", 2), (1, 2), ()))
    assert batchable([rows, rows])
    assert not batchable([rows, fixed])
    assert not batchable([rows, scalar])


def test_the_wire_names_and_shapes_are_the_protocol_s():
    spec = TensorSpec("x", "float16", ("batch", 3, "n"))
    assert (spec.datatype, spec.wire_shape) == ("FP16", [-1, 3, -1])
    assert {DTYPE_OF[datatype] for datatype in DATATYPE_OF.values()} == set(DATATYPE_OF)


def test_converting_to_the_type_an_array_has_copies_nothing():
    array = np.zeros(2, np.float32)
    assert as_dtype(array, "float32") is array
    assert as_dtype(np.array(["a"]), "object").dtype == object
