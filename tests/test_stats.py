"""The arithmetic of evidence, against slower and plainer arithmetic."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import t, theilslopes

from mlserve.stats import (
    bootstrap_interval,
    difference_interval,
    flip_interval,
    log_spread,
    mean_of,
    measured,
    minimum_samples,
    quantile,
    quantile_of,
    ratio_interval,
    row_interval,
    shared_log_spread,
    split_blocks,
    trend,
)

positive = st.floats(1e-6, 1e3)
block = arrays(np.float64, st.integers(1, 8), elements=positive)
run = st.lists(block, min_size=1, max_size=6)
shares = st.floats(0.001, 1.0)


def blocks_of(values, number=20):
    return np.array_split(values, number)


def lognormal(count, *, seed=0, spread=0.5):
    return np.random.default_rng(seed).lognormal(0, spread, count)


@given(arrays(np.float64, st.integers(1, 50), elements=positive), shares)
def test_a_quantile_is_the_smallest_value_that_enough_others_do_not_exceed(values, q):
    found = quantile(values, q)
    assert found in values
    assert np.mean(values <= found) >= q - 1e-9
    assert np.mean(values < found) < q


def test_there_is_no_quantile_of_nothing():
    assert math.isnan(quantile(np.empty(0), 0.5))


@pytest.mark.parametrize(("q", "needed"), [(0.5, 7), (0.9, 44), (0.95, 90), (0.99, 459), (0.999, 4603)])
def test_a_claim_needs_as_many_samples_as_loadgen_asks_for(q, needed):
    assert minimum_samples(q) == needed
    assert q**needed <= 0.01 < q ** (needed - 1)


@given(st.lists(st.tuples(positive, st.integers(0, 5)), min_size=1))
def test_splitting_keeps_every_value_in_its_block_and_in_order(pairs):
    values, numbers = (np.array(column) for column in zip(*pairs, strict=True))
    expected = [values[numbers == number].tolist() for number in sorted(set(numbers.tolist()))]
    assert [found.tolist() for found in split_blocks(values, numbers)] == expected


def test_splitting_nothing_gives_no_blocks():
    assert split_blocks(np.empty(0), np.empty(0, np.int64)) == []


@given(run, shares, st.integers(0, 100))
def test_the_quantile_of_redrawn_blocks_is_that_of_their_values_written_out(blocks, q, seed):
    times = np.random.default_rng(seed).integers(0, 4, (5, len(blocks)))
    times[:, 0] += 1
    found = quantile_of(q)(blocks, times)
    for row, value in zip(times, found, strict=True):
        written_out = np.concatenate([np.tile(block, count) for block, count in zip(blocks, row, strict=True)])
        assert value == quantile(written_out, q)


@given(run, st.integers(0, 100))
def test_the_mean_of_redrawn_blocks_is_that_of_their_values_written_out(blocks, seed):
    times = np.random.default_rng(seed).integers(0, 4, (5, len(blocks)))
    times[:, 0] += 1
    for row, value in zip(times, mean_of(blocks, times), strict=True):
        written_out = np.concatenate([np.tile(block, count) for block, count in zip(blocks, row, strict=True)])
        assert value == pytest.approx(written_out.mean())


@given(st.lists(run, min_size=1, max_size=3))
def test_a_figure_of_runs_as_they_are_is_that_of_all_their_values(runs):
    values = np.concatenate([block for blocks in runs for block in blocks])
    assert measured(runs, quantile_of(0.9)) == quantile(values, 0.9)
    assert measured(runs, mean_of) == pytest.approx(values.mean())


def test_there_is_no_figure_of_no_blocks():
    assert math.isnan(measured([[]], mean_of))


@given(st.lists(run, min_size=1, max_size=3), shares)
def test_an_interval_lies_within_what_the_blocks_can_give_or_is_unknown(runs, q):
    low, high = bootstrap_interval(runs, quantile_of(q), resamples=50)
    if sum(map(len, runs)) < 2:
        assert math.isnan(low)
        assert math.isnan(high)
    else:
        assert 0 < low <= high


def test_one_block_says_nothing_about_spread():
    assert all(math.isnan(end) for end in bootstrap_interval([[lognormal(500)]], mean_of))
    assert all(math.isnan(end) for end in ratio_interval([[lognormal(500)]], [[lognormal(500)]], mean_of))


def test_an_interval_shrinks_with_the_root_of_the_data():
    low, high = bootstrap_interval([blocks_of(lognormal(2_000))], mean_of)
    tight_low, tight_high = bootstrap_interval([blocks_of(lognormal(32_000))], mean_of)
    assert (high - low) / (tight_high - tight_low) == pytest.approx(4, rel=0.4)


def test_an_interval_for_more_confidence_holds_the_other():
    blocks = [blocks_of(lognormal(2_000))]
    low, high = bootstrap_interval(blocks, quantile_of(0.9), confidence=0.8)
    wide_low, wide_high = bootstrap_interval(blocks, quantile_of(0.9), confidence=0.99)
    assert wide_low < low < high < wide_high


def test_intervals_are_the_same_every_time():
    blocks = [blocks_of(lognormal(500))]
    assert ratio_interval(blocks, blocks, mean_of) == ratio_interval(blocks, blocks, mean_of)


@given(st.floats(0.1, 10))
def test_the_ratio_follows_the_candidates_unit(factor):
    before, after = [blocks_of(lognormal(400, seed=1))], [blocks_of(lognormal(400, seed=2))]
    scaled = [[block * factor for block in after[0]]]
    low, high = ratio_interval(before, after, quantile_of(0.9), resamples=200)
    assert ratio_interval(before, scaled, quantile_of(0.9), resamples=200) == pytest.approx(
        (low * factor, high * factor)
    )


def test_neighbours_that_are_alike_widen_the_interval():
    rng = np.random.default_rng(3)
    levels = np.cumsum(rng.standard_normal(20)) / 10
    wandering = [np.exp(level + 0.1 * rng.standard_normal(50)) for level in levels]
    shuffled = [wandering[place] for place in np.random.default_rng(0).permutation(20)]
    low, high = bootstrap_interval([wandering], mean_of)
    plain_low, plain_high = bootstrap_interval([shuffled], mean_of)
    assert high - low > 1.5 * (plain_high - plain_low)


def test_runs_that_differ_widen_the_interval_as_blocks_alone_would_not():
    runs = [blocks_of(level * lognormal(500, seed=seed)) for seed, level in enumerate([1.0, 1.5, 0.7])]
    low, high = bootstrap_interval(runs, mean_of)
    one_low, one_high = bootstrap_interval([[block for blocks in runs for block in blocks]], mean_of)
    alike_low, alike_high = bootstrap_interval([blocks_of(lognormal(500, seed=seed)) for seed in range(3)], mean_of)
    assert high - low > 2 * (alike_high - alike_low)
    assert low < one_high
    assert high > one_low


def shares_of(ones, count):
    values = np.zeros(count)
    values[np.linspace(0, count - 1, ones).astype(int)] = 1
    return [blocks_of(values)]


def test_no_failures_seen_does_not_mean_that_none_are_possible():
    low, high = difference_interval(shares_of(0, 1000), shares_of(0, 1000))
    assert (low, high) == pytest.approx((-0.0038, 0.0038), abs=5e-5)


def test_the_difference_of_shares_is_newcombes_where_failures_are_spread_evenly():
    """Newcombe 1998, table II, (a): 56/70 against 48/80 gives 0.0524 to 0.3339 by method 10."""
    low, high = difference_interval(shares_of(48, 80), shares_of(56, 70))
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=2e-4)


def test_failures_in_one_burst_are_weaker_evidence_than_as_many_spread_out():
    burst = np.zeros(2000)
    burst[:60] = 1
    spread_low, _ = difference_interval(shares_of(0, 2000), shares_of(60, 2000))
    burst_low, _ = difference_interval(shares_of(0, 2000), [blocks_of(burst)])
    assert spread_low > 0.02
    assert burst_low <= 0


def test_there_is_no_difference_to_nothing():
    assert all(math.isnan(end) for end in difference_interval([[]], shares_of(1, 10)))


def mean_of_rows(values):
    return lambda counts: counts @ values / counts.sum(1)


@pytest.mark.parametrize("rows", [10, 20, 400])
def test_the_interval_of_a_mean_of_rows_is_about_students(rows):
    values = np.random.default_rng(1).standard_normal(rows)
    low, high = row_interval(mean_of_rows(values), rows, resamples=4000)
    reach = t.ppf(0.975, rows - 1) * values.std(ddof=1) / math.sqrt(rows)
    assert (high - low) / 2 == pytest.approx(reach, rel=0.12)
    assert low < values.mean() < high


def test_few_rows_have_wide_intervals_and_one_has_none():
    assert row_interval(mean_of_rows(np.array([0.0, 1.0])), 2) == (0, 1)
    assert all(math.isnan(end) for end in row_interval(mean_of_rows(np.ones(1)), 1))


def test_samples_without_a_figure_are_left_out():
    def second_row(counts):
        return np.where(counts[:, 1] > 0, 7.0, np.nan)

    assert row_interval(second_row, 5) == (7, 7)
    assert all(math.isnan(end) for end in row_interval(lambda counts: np.full(len(counts), np.nan), 5))


@given(st.integers(2, 500), st.integers(1, 300))
def test_redrawn_rows_are_as_many_as_there_are(rows, resamples):
    seen = []

    def figure(counts):
        assert counts.shape[1] == rows
        assert (counts.sum(1) == rows).all()
        seen.append(len(counts))
        return counts[:, 0]

    row_interval(figure, rows, resamples=resamples)
    assert sum(seen) == resamples


def test_what_never_happened_may_happen_in_three_rows_of_all():
    assert flip_interval(0, 0, 300) == (-0.01, 0.01)


def test_flips_are_bonett_and_prices():
    """The complete responses of Cavo et al. 2012, as R's contingencytables gives them: -0.1195 to -0.0032."""
    assert flip_interval(6, 16, rows=161) == pytest.approx((-0.1195, -0.0032), abs=5e-5)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(100, 1000))
def test_flips_the_other_way_round_turn_the_interval_around(lost, won, rows):
    low, high = flip_interval(lost, won, rows)
    assert (-high, -low) == pytest.approx(flip_interval(won, lost, rows))
    assert low <= (lost - won) / rows <= high


def test_the_trend_of_a_straight_line_is_the_line_whatever_a_few_outliers_say():
    at = np.arange(20) / 20
    line = trend(at, 3 + 2 * at)
    assert (line.start, line.slope, line.low, line.high) == pytest.approx((3, 2, 2, 2))
    stalled = 3 + 2 * at
    stalled[[4, 11]] = 100
    assert trend(at, stalled).slope == pytest.approx(2)


def _series(seed, r):
    """20 figures of an AR(1) series that goes nowhere."""
    rng = np.random.default_rng(seed)
    figures = [rng.standard_normal()]
    for noise in rng.standard_normal(19):
        figures.append(r * figures[-1] + math.sqrt(1 - r * r) * noise)
    return np.array(figures)


@pytest.mark.parametrize(("r", "least"), [(0.0, 0.9), (0.6, 0.82)])
def test_the_interval_of_a_trend_holds_the_truth_also_where_neighbours_correlate(r, least):
    at = np.arange(20) / 20
    lines = [trend(at, _series(seed, r)) for seed in range(200)]
    assert np.mean([line.low <= 0 <= line.high for line in lines]) >= least


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("decimals", [9, 1, 0])  # with 0, many figures are equal
def test_where_neighbours_have_nothing_in_common_a_trend_is_scipys(confidence, decimals):
    at = np.sort(np.random.default_rng(0).random(20)).round(2)
    for seed in range(20):
        figures = _series(seed, -0.6).round(decimals)
        slope, start, low, high = theilslopes(figures, at, alpha=confidence)
        assert trend(at, figures, confidence=confidence) == pytest.approx((start, slope, low, high))


def test_an_interval_that_takes_correlated_figures_for_independent_is_too_narrow():
    """The control of the test above: Sen's interval as it is."""
    at = np.arange(20) / 20
    bounds = [theilslopes(_series(seed, 0.6), at, alpha=0.95)[2:] for seed in range(200)]
    assert np.mean([low <= 0 <= high for low, high in bounds]) < 0.8


@given(st.lists(block, min_size=2, max_size=6), st.floats(0.5, 2.0), st.sampled_from([mean_of, quantile_of(0.5)]))
def test_what_a_stretch_did_to_both_sides_is_not_in_their_ratio(before, factor, statistic):
    after = [one * factor for one in before]
    assert shared_log_spread(before, after, statistic) == pytest.approx(0.0, abs=1e-9)


def test_the_spread_of_a_ratio_of_sides_that_share_nothing_is_that_of_both():
    before, after = (blocks_of(lognormal(4000, seed=seed), 40) for seed in (1, 2))
    apart = math.hypot(log_spread(before, quantile_of(0.5)), log_spread(after, quantile_of(0.5)))
    assert shared_log_spread(before, after, quantile_of(0.5)) == pytest.approx(apart, rel=0.3)


def test_blocks_that_are_no_pairs_are_refused():
    ones = [np.ones(3)] * 3
    assert math.isnan(shared_log_spread(ones[:1], ones[:1], mean_of))
    with pytest.raises(ValueError, match="2 blocks before and 3 after"):
        shared_log_spread(ones[:2], ones, mean_of)
