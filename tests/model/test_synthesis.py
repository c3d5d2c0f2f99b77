"""Made-up inputs: right shapes and types, plausible values, the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.model.synthesis import SEQUENCE_LENGTH, concrete_shape, synthesize
from mlserve.model.tensors import DATATYPE_OF, TensorSpec, shape_matches

DIMS = st.lists(st.integers(1, 4) | st.sampled_from(["a", "b"]), max_size=3)


@given(
    st.lists(st.tuples(st.sampled_from(sorted(DATATYPE_OF)), DIMS), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(0, 5),
)
def test_every_input_has_its_type_and_a_shape_that_matches(made, rows, seed):
    specs = [TensorSpec(f"t{number}", dtype, tuple(dims)) for number, (dtype, dims) in enumerate(made)]
    inputs = synthesize(specs, rows, np.random.default_rng(seed), {"a": 2})
    again = synthesize(specs, rows, np.random.default_rng(seed), {"a": 2})
    assert list(inputs) == [spec.name for spec in specs]
    for spec in specs:
        array = inputs[spec.name]
        assert array.dtype == spec.dtype
        assert shape_matches(array.shape, spec.shape)
        np.testing.assert_array_equal(array, again[spec.name])


@given(st.sampled_from(["int8", "uint8", "int64", "uint64"]), st.integers(1, 2**40))
def test_integers_lie_below_their_bound_and_inside_their_type(dtype, below):
    (array,) = synthesize([TensorSpec("ids", dtype, ("batch", 50), below)], 2, np.random.default_rng(0)).values()
    assert array.min() >= 0
    assert int(array.max()) < below


def test_masks_are_ones_and_token_types_zeros_as_in_a_full_text():
    specs = [TensorSpec(name, "int64", ("batch", 4)) for name in ("attention_mask", "token_type_ids", "segment_ids")]
    mask, types, segments = synthesize(specs, 2, np.random.default_rng(0)).values()
    assert mask.tolist() == [[1] * 4] * 2
    assert types.tolist() == segments.tolist() == [[0] * 4] * 2


@pytest.mark.parametrize(
    ("dtype", "dims", "shape"),
    [
        ("float32", ("batch", 3), (5, 3)),
        ("float32", (1, 3), (1, 3)),
        ("float32", (), ()),
        ("int64", ("batch", "sequence"), (5, SEQUENCE_LENGTH)),
        ("int64", ("batch", "known"), (5, 7)),
        ("float32", ("batch", 3, "h", "w"), (5, 3, 224, 224)),
        ("float32", ("batch", "c", 8, 8), (5, SEQUENCE_LENGTH, 8, 8)),
        ("int64", ("batch", 3, "h", "w"), (5, 3, SEQUENCE_LENGTH, SEQUENCE_LENGTH)),
    ],
)
def test_dynamic_dimensions_get_rows_a_given_size_or_a_usual_one(dtype, dims, shape):
    assert concrete_shape(TensorSpec("t", dtype, dims), 5, {"known": 7}) == shape
