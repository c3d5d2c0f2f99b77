"""When two models count as giving the same answers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlserve.optimize.evaluation.parity import TOLERANCE, largest_difference

finite = st.floats(-1e6, 1e6, width=32)


@given(arrays(np.float32, (3, 4), elements=finite))
def test_equal_outputs_do_not_differ(array):
    difference = largest_difference({"y": array}, {"y": array.copy()})
    assert difference.relative == 0
    assert difference.acceptable


@given(arrays(np.float32, (3, 4), elements=finite), st.integers(0, 11))
def test_one_wrong_value_shows(array, position):
    wrong = array.copy()
    wrong.flat[position] += max(1.0, np.abs(array).max())
    assert not largest_difference({"y": array}, {"y": wrong}).acceptable


def test_rounding_is_accepted_up_to_the_tolerance():
    array = np.full((2, 2), 100.0, np.float32)
    assert largest_difference({"y": array}, {"y": array * (1 + TOLERANCE / 2)}).acceptable
    assert not largest_difference({"y": array}, {"y": array * (1 + TOLERANCE * 2)}).acceptable


def test_the_worst_output_is_named():
    good, bad = np.ones((2, 2), np.float32), np.zeros((2, 2), np.float32)
    difference = largest_difference({"a": good, "b": good}, {"a": good, "b": bad})
    assert difference.output == "b"
    assert "'b'" in str(difference)


def test_what_is_no_rounding_is_never_accepted():
    ones = np.ones((2, 2), np.float32)
    hole = np.array([[1, np.nan], [1, 1]], np.float32)
    for expected, found in (
        (ones, ones[:1]),
        (ones, hole),
        (hole, ones),
        (np.array([1, 2]), np.array([1, 3])),
        (np.array(["a"], object), np.array(["b"], object)),
    ):
        assert not largest_difference({"y": expected}, {"y": found}).acceptable
        assert largest_difference({"y": expected}, {"y": expected}).acceptable
    assert "missing" in str(largest_difference({"y": ones}, {}))
