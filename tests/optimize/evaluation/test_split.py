"""Rows for making and rows for judging."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import DataFileError
from mlserve.model.rows import ArrayRows
from mlserve.optimize.evaluation.split import Split, split_rows

SHARES = st.floats(0.1, 0.9)


def rows_of(count, labels=None):
    return ArrayRows({"x": np.arange(count)}, "test rows", labels)


def numbers(rows):
    return rows.columns["x"].tolist()


@given(st.lists(st.integers(0, 4), min_size=10, max_size=80), SHARES, st.integers(0, 9))
def test_every_row_is_on_one_side_and_no_class_is_on_one_side_alone(labels, share, seed):
    labels = np.array(labels)
    used, kept = split_rows(rows_of(len(labels), labels), Split(seed, share))
    assert sorted(numbers(used) + numbers(kept)) == list(range(len(labels)))
    for number in set(labels.tolist()):
        if np.sum(labels == number) > 1:
            assert number in used.labels
            assert number in kept.labels


@given(st.lists(st.integers(1, 60), min_size=2, max_size=6), st.integers(0, 9))
def test_a_class_has_its_share_of_both_sides(sizes, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    _, kept = split_rows(rows_of(len(labels), labels), Split(seed, 0.5))
    for number, size in enumerate(sizes):
        if size > 1:
            assert abs(np.sum(kept.labels == number) - size / 2) <= 1
    assert abs(len(kept) - len(labels) / 2) <= 1


@pytest.mark.parametrize("labels", [None, np.arange(100) / 7, np.arange(100), np.arange(200).reshape(100, 2)], ids=str)
def test_without_classes_the_share_is_exact(labels):
    used, kept = split_rows(rows_of(100, labels), Split(held_out_share=0.3))
    assert (len(used), len(kept)) == (70, 30)
    assert numbers(kept) != list(range(70, 100))


def test_a_class_may_be_a_text():
    labels = np.array(["rare"] * 2 + ["common"] * 98, object)
    for seed in range(5):
        used, kept = split_rows(rows_of(100, labels), Split(seed))
        assert list(used.labels).count("rare") == list(kept.labels).count("rare") == 1


def test_the_split_is_decided_by_its_seed():
    rows = rows_of(50, np.arange(50) % 3)
    first, again, other = (numbers(split_rows(rows, Split(seed))[1]) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_rows_for_both_sides_are_refused(count):
    with pytest.raises(DataFileError, match="at least 2"):
        split_rows(rows_of(count), Split())


def test_a_split_is_told_in_words():
    assert Split(3).described(150, 300) == "150 of 300 rows held out, seed 3"
