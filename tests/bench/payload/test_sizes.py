from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.bench.payload.sizes import (
    LogNormalLengths,
    MixedLengths,
    UniformLengths,
    mixed_order,
    parse_image_sizes,
    parse_lengths,
    parse_row_mix,
)
from mlserve.errors import UsageError
from mlserve.runs.load import RowShare


@pytest.mark.parametrize(
    ("text", "mix"),
    [
        ("8", [(8, 1.0)]),
        ("32,1", [(1, 0.5), (32, 0.5)]),
        ("1:0.7,8:0.2,32:0.1", [(1, 0.7), (8, 0.2), (32, 0.1)]),
        ("1:75%,8:25%", [(1, 0.75), (8, 0.25)]),
    ],
)
def test_a_mix_of_rows_is_read_smallest_first(text, mix):
    assert parse_row_mix(text) == tuple(RowShare(rows, pytest.approx(share)) for rows, share in mix)


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "x", "1:0.5", "1:0.5,8", "1,1", "1:0,8:1", "1:0.9,8:0.9", "1:,2:1", "1.5"]
)
def test_a_mix_that_is_none_is_refused_with_the_forms(text):
    with pytest.raises(UsageError, match=r"--batch .*1:0\.7,8:0\.2,32:0\.1"):
        parse_row_mix(text)


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("8..128", UniformLengths(8, 128)),
        ("64", MixedLengths((64,), (1.0,))),
        ("16:0.5,64:0.3,256:0.2", MixedLengths((16, 64, 256), (0.5, 0.3, 0.2))),
        ("lognormal:64,40", LogNormalLengths(64.0, 40.0)),
    ],
)
def test_lengths_are_read(text, lengths):
    assert parse_lengths(text) == lengths


@pytest.mark.parametrize(
    "text",
    ["", "0", "0..4", "9..8", "1..2..3", "a..b", "lognormal:64", "lognormal:0,1", "lognormal:8,0", "lognormal:nan,1",
     "8..100000", "16:0.5,64:0.1"],
)  # fmt: skip
def test_lengths_that_are_none_are_refused_with_the_forms(text):
    with pytest.raises(UsageError, match=r"--lengths .*8\.\.128"):
        parse_lengths(text)


def test_lengths_have_the_distribution_asked_for_even_if_they_are_few():
    quantiles = (np.arange(200) + 0.5) / 200
    uniform = [UniformLengths(8, 27).at(quantile) for quantile in quantiles]
    assert Counter(uniform) == dict.fromkeys(range(8, 28), 10)
    mixed = [MixedLengths((16, 64, 256), (0.5, 0.3, 0.2)).at(quantile) for quantile in quantiles]
    assert Counter(mixed) == {16: 100, 64: 60, 256: 40}
    lognormal = [LogNormalLengths(64, 40).at(quantile) for quantile in quantiles]
    assert np.mean(lognormal) == pytest.approx(64, rel=0.02)
    assert np.std(lognormal) == pytest.approx(40, rel=0.1)
    assert np.median(lognormal) < 60


def test_image_sizes_are_read_as_height_and_width():
    assert parse_image_sizes("224,512x384") == ((224, 224), (512, 384))
    for text in ("", "0", "1x2x3", "x", "224,", "99999"):
        with pytest.raises(UsageError, match="--image-sizes"):
            parse_image_sizes(text)


def test_one_size_is_sent_in_turn():
    assert mixed_order([1.0], [[0, 1, 2]], 5).tolist() == [0, 1, 2]


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 40)), min_size=2, max_size=5),
    st.integers(0, 2**32),
)
def test_a_cycle_holds_the_shares_exactly_and_every_body_in_its_turn(kinds, seed):
    parts = [part for part, _ in kinds]
    numbers = np.split(np.arange(sum(n for _, n in kinds)), np.cumsum([n for _, n in kinds])[:-1])
    order = mixed_order([part / sum(parts) for part in parts], [each.tolist() for each in numbers], seed)
    for part, bodies in zip(parts, numbers, strict=True):
        sent = order[np.isin(order, bodies)]
        assert len(sent) * sum(parts) == part * len(order)
        assert np.array_equal(sent, np.resize(bodies, len(sent)))
        assert set(sent) == set(bodies)


def test_the_order_is_the_seeds():
    def order(seed):
        return mixed_order([0.5, 0.5], [list(range(20)), list(range(20, 40))], seed).tolist()

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_shares_that_are_no_small_parts_are_kept_to_a_ten_thousandth():
    order = mixed_order([0.99995, 0.00005], [[0], [1]], 0)
    assert len(order) >= 10_000
    assert np.mean(order) == pytest.approx(0.00005, abs=1e-4)
