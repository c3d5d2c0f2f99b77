"""Ranges of values that come batch by batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlserve.optimize.passes.calibration import Entropy, MinMax, Percentile

WATCHES = (MinMax, lambda: Percentile(99.0), Entropy)
batches = st.lists(
    arrays(np.float32, st.integers(1, 50), elements=st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=5
)


def range_of(watch, parts):
    for part in parts:
        watch.add(part)
    return watch.range()


@pytest.mark.parametrize("make", WATCHES)
@settings(max_examples=40)  # each makes a histogram of thousands of bins
@given(parts=batches)
def test_a_range_lies_within_what_was_seen(make, parts):
    low, high = range_of(make(), parts)
    values = np.concatenate(parts)
    assert values.min() <= high
    assert low <= values.max()
    assert values.min() <= low <= high <= values.max()


@given(parts=batches)
def test_the_smallest_and_the_largest_value_do_not_depend_on_batches(parts):
    values = np.concatenate(parts)
    assert range_of(MinMax(), parts) == (values.min(), values.max())


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("make", WATCHES[1:])
def test_a_range_does_not_depend_on_how_values_are_batched_or_scaled(make, scale):
    values = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    whole = np.array(range_of(make(), [values]))
    parts = np.array(range_of(make(), np.split(values * np.float32(scale), 20))) / scale
    assert np.abs(whole - parts).max() < 0.01 * np.abs(whole).max()


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_a_percentile_cuts_as_much_as_it_says(percentile):
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    low, high = range_of(Percentile(percentile), np.split(values, 10))
    inside = np.mean((values >= low) & (values <= high))
    assert inside == pytest.approx(percentile / 100, abs=1e-3)


def test_entropy_cuts_a_lone_outlier_and_keeps_a_crowd():
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    spoilt = np.append(values, np.float32(300))
    assert range_of(Entropy(), [spoilt])[1] < 30
    crowd = np.concatenate([values, np.full(100_000, 300, np.float32)])
    assert range_of(Entropy(), [crowd])[1] == 300
    even = np.linspace(-1, 1, 100_000, dtype=np.float32)
    assert range_of(Entropy(), [even])[1] > 0.95


def test_nothing_but_zeros_is_a_range_of_zero():
    assert [range_of(make(), [np.zeros(8, np.float32)]) for make in WATCHES] == [(0.0, 0.0)] * 3
