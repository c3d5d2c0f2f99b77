"""The arithmetic of evidence: exact quantiles, when there are enough samples for one, and intervals that respect
correlation. Pure functions of arrays; nothing here knows what a request is.

A measurement is one or more runs, a run is a sequence of blocks in time order, a block is the values of one stretch
of time. Requests within a stretch share its queue and its stalls, so they are no independent evidence; blocks nearly
are. What is left of the correlation between neighbouring blocks widens the interval.

Rows of data are independent of one another, and are redrawn one by one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "Blocks",
    "Figure",
    "Floats",
    "Gap",
    "Interval",
    "Line",
    "Statistic",
    "bootstrap_interval",
    "difference_interval",
    "flip_interval",
    "log_spread",
    "mean_of",
    "measured",
    "minimum_samples",
    "quantile",
    "quantile_of",
    "ratio_interval",
    "row_interval",
    "share_difference",
    "shared_log_spread",
    "split_blocks",
    "trend",
]

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Interval = tuple[float, float]

Blocks = Sequence[Floats]
"""The values of one run, block after block in time order."""

Statistic = Callable[[Blocks, Counts], Floats]
"""(blocks [b], times [n, b]) -> [n]: the figure of n measurements, of which each holds block j `times[:, j]` times."""

Figure = Callable[[Floats], Floats]
"""(counts [n, rows]) -> [n]: the figure of n samples, of which each holds row j `counts[:, j]` times."""


class Line(NamedTuple):
    """A straight line through figures over [0, 1]: its value at 0, and its slope, with an interval."""

    start: float
    slope: float
    low: float
    high: float


class Gap(NamedTuple):
    """A share of ones against another: (ones, values) of each side, and re-drawn differences, empty where a side is one
    block, which says nothing about spread, or no value is a one.
    """

    before: tuple[float, int]
    after: tuple[float, int]
    drawn: Floats

    @property
    def found(self) -> float:
        """The difference as it is; NaN where a side has no values."""
        if not (self.before[1] and self.after[1]):
            return math.nan
        return self.after[0] / self.after[1] - self.before[0] / self.before[1]

    def interval(self, confidence: float) -> Interval:
        """The wider of two: the block bootstrap, which knows that failures come in bursts but takes "none seen" for
        "none possible", and Newcombe's score interval, which knows the reverse (Newcombe 1998, method 10).
        """
        low, high = _newcombe(self.before, self.after, confidence)
        if not len(self.drawn):
            return low, high
        drawn_low, drawn_high = _percentile_interval(self.drawn, confidence)
        return min(low, drawn_low), max(high, drawn_high)


_CONFIDENCE = 0.99
# As many values as make a share of zero certain.
_CERTAIN = 10**15
# Beyond this correlation between neighbours a run is in effect one long block, and no factor mends that.
_MOST_CORRELATION = 0.85
# How many numbers of redrawn counts are held at once.
_REDRAWN_AT_ONCE = 2_000_000


def quantile(values: Floats, q: float) -> float:
    """The smallest value that at least the share `q` of `values` does not exceed: always one that was observed.

    NaN when there are no values.
    """
    if not len(values):
        return math.nan
    return float(np.quantile(values, q, method="inverted_cdf"))


def minimum_samples(q: float) -> int:
    """How many independent samples a claim about quantile `q` needs at least.

    With fewer, even a run in which no sample exceeds the true quantile is likelier than 1%:
    the smallest n with q^n <= 0.01. This is MLPerf LoadGen's early-stopping rule with no sample over the limit
    (0.5 -> 7, 0.9 -> 44, 0.99 -> 459, 0.999 -> 4603).
    """
    return math.ceil(math.log(1 - _CONFIDENCE) / math.log(q))


def split_blocks(values: Floats, block_of: npt.NDArray[np.int64]) -> list[Floats]:
    """`values` [n] grouped by their block number `block_of` [n], in its order; empty blocks do not appear."""
    order = np.argsort(block_of, kind="stable")
    edges = np.flatnonzero(np.diff(block_of[order])) + 1
    return [block for block in np.split(values[order], edges) if len(block)]


def quantile_of(q: float) -> Statistic:
    """The statistic `quantile(..., q)`, exact for every re-drawn measurement."""

    def statistic(blocks: Blocks, times: Counts) -> Floats:
        ordered = [np.sort(block) for block in blocks]
        pooled = np.sort(np.concatenate(ordered))
        # The share is of whole samples: what rounding adds must not ask for one more.
        rank = np.ceil(q * (times @ [len(block) for block in ordered]) - 1e-9)
        low = np.zeros(len(times), np.int64)
        high = np.full(len(times), len(pooled) - 1)
        # Bisection over the pooled order, all measurements at once: the first value that `rank` values do not exceed.
        while (low < high).any():
            middle = (low + high) // 2
            reached = np.zeros(len(times), np.int64)
            for count, block in zip(times.T, ordered, strict=True):
                reached += count * np.searchsorted(block, pooled[middle], side="right")
            low, high = np.where(reached >= rank, low, middle + 1), np.where(reached >= rank, middle, high)
        found: Floats = pooled[low]
        return found

    return statistic


def mean_of(blocks: Blocks, times: Counts) -> Floats:
    """The statistic "arithmetic mean of all values"."""
    totals: Floats = times @ [float(block.sum()) for block in blocks]
    return totals / (times @ [len(block) for block in blocks])


def measured(runs: Sequence[Blocks], statistic: Statistic) -> float:
    """The figure of `runs` as they are; NaN where they hold nothing."""
    blocks = [block for run in runs for block in run]
    return float(statistic(blocks, np.ones((1, len(blocks)), np.int64))[0]) if blocks else math.nan


def bootstrap_interval(
    runs: Sequence[Blocks], statistic: Statistic, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Interval of `statistic`, a figure above zero, when whole blocks are the unit of evidence.

    `(nan, nan)` with fewer than two blocks: one block says nothing about spread.
    """
    return _percentile_interval(_estimates(runs, statistic, resamples, np.random.default_rng(seed)), confidence)


def log_spread(run: Blocks, statistic: Statistic, *, resamples: int = 200, seed: int = 0) -> float:
    """The standard deviation of the logarithm of `statistic`, a figure above zero, as the blocks of one run show it.

    What differs from run to run is not in it. NaN with fewer than two blocks.
    """
    drawn = _estimates([run], statistic, resamples, np.random.default_rng(seed))
    return float(np.log(drawn).std()) if len(drawn) else math.nan


def shared_log_spread(
    before: Blocks, after: Blocks, statistic: Statistic, *, resamples: int = 200, seed: int = 0
) -> float:
    """The standard deviation of the logarithm of `statistic(after) / statistic(before)`, figures above zero, where
    block j of both is of the same stretch of time: both are drawn together, so that what a stretch did to both is not
    in it.

    NaN with fewer than two blocks. Raises ValueError for sides of unlike length.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} blocks before and {len(after)} after are no pairs of blocks")
    if len(before) < 2:
        return math.nan
    rng, share = np.random.default_rng(seed), np.full(len(before), 1 / len(before))
    times = rng.multinomial(len(before), share, size=resamples)
    drawn = np.log(statistic(after, times)) - np.log(statistic(before, times))
    levels = np.array([np.log(one).mean() - np.log(other).mean() for one, other in zip(after, before, strict=True)])
    correlation = _correlation(levels) if len(levels) >= 3 else 0.0
    return float(drawn.std()) * _widening_by(correlation)


def ratio_interval(
    baseline: Sequence[Blocks],
    candidate: Sequence[Blocks],
    statistic: Statistic,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of `statistic(candidate) / statistic(baseline)`, figures above zero, each side drawn by itself."""
    rng = np.random.default_rng(seed)
    below = _estimates(baseline, statistic, resamples, rng)
    above = _estimates(candidate, statistic, resamples, rng)
    return _percentile_interval(above / below if len(below) and len(above) else np.empty(0), confidence)


def share_difference(baseline: Sequence[Blocks] | None, candidate: Sequence[Blocks], *, resamples: int = 2000) -> Gap:
    """How much larger the share of ones is in `candidate` than in `baseline`; blocks hold zeros and ones. None for a
    baseline is a share of zero that is certain.
    """
    before, after = _tally(baseline) if baseline is not None else (0.0, _CERTAIN), _tally(candidate)
    drawn = np.empty(0)
    if before[0] or after[0]:
        rng = np.random.default_rng(0)
        drawn_before = _redrawn(baseline, mean_of, resamples, rng) if baseline is not None else np.zeros(resamples)
        drawn_after = _redrawn(candidate, mean_of, resamples, rng)
        drawn = drawn_after - drawn_before if len(drawn_before) and len(drawn_after) else drawn
    return Gap(before, after, drawn)


def difference_interval(
    baseline: Sequence[Blocks], candidate: Sequence[Blocks], *, confidence: float = 0.95, resamples: int = 2000
) -> Interval:
    """Interval of the share of ones in `candidate` minus that in `baseline`; blocks hold zeros and ones."""
    return share_difference(baseline, candidate, resamples=resamples).interval(confidence)


def row_interval(
    figure: Figure, rows: int, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Interval of a figure of `rows` independent rows: the percentile bootstrap, its percentiles moved outward.

    The percentile interval of a mean uses the normal quantile and the divisor n; the expanded one is as wide as
    Student's (Hesterberg 2015, "What teachers should know about the bootstrap"), which matters with few
    rows. Samples whose figure is NaN, such as one without a second class, are left out. `(nan, nan)` for fewer than two
    rows.
    """
    from scipy.special import ndtr, stdtrit

    if rows < 2:
        return math.nan, math.nan
    estimates = np.concatenate([figure(counts) for counts in _redrawn_rows(rows, resamples, seed)])
    reach = math.sqrt(rows / (rows - 1)) * float(stdtrit(rows - 1, (1 + confidence) / 2))
    return _percentile_interval(estimates[~np.isnan(estimates)], float(1 - 2 * ndtr(-reach)))


def flip_interval(lost: int, won: int, rows: int, confidence: float = 0.95) -> Interval:
    """Interval of (lost - won) / rows, a difference of two shares of the same rows: `lost` rows were right before and
    are wrong now, `won` the other way round.

    The adjusted Wald interval of Bonett and Price (2012, "Adjusted Wald confidence interval for a difference of
    binomial proportions based on paired data"), which adds one row of each kind. Where no row changed, the rule of
    three: what happened in none of n rows happens in at most 3/n (Hanley and Lippman-Hand 1983).
    """
    if not lost + won:
        return -3 / rows, 3 / rows
    shares = (lost + 1) / (rows + 2), (won + 1) / (rows + 2)
    difference = shares[0] - shares[1]
    spread = math.sqrt((sum(shares) - difference**2) / (rows + 2))
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * spread
    return difference - reach, difference + reach


def trend(at: Floats, figures: Floats, *, confidence: float = 0.95) -> Line:
    """The line through `figures` [n], in time order at the instants `at`, which neither a few outliers nor what
    neighbours have in common mislead.

    Theil and Sen's: the median of the slopes between all pairs, with an interval from their ranks (Sen 1968). The ranks
    of correlated figures spread more: by the same factor as means (Hamed and Rao 1998 correct the Mann-Kendall test in
    this way), of the correlation that is left when the line is taken away.
    """
    rise, run = figures - figures[:, None], at - at[:, None]
    slopes = np.sort(rise[run > 0] / run[run > 0])
    slope = float(np.median(slopes))
    start = float(np.median(figures) - slope * np.median(at))
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * _widening_by(_correlation(figures - slope * at))
    spread = reach * math.sqrt(max(0.0, _rank_variance(len(at)) - _tied(figures) - _tied(at)))
    lowest = max(round((len(slopes) - spread) / 2) - 1, 0)
    highest = min(round((len(slopes) + spread) / 2), len(slopes) - 1)
    return Line(start, slope, float(slopes[lowest]), float(slopes[highest]))


def _redrawn_rows(rows: int, resamples: int, seed: int) -> Iterator[Floats]:
    """[n, rows] counts at a time, `resamples` in all: how often each row was drawn, with replacement."""
    rng = np.random.default_rng(seed)
    at_once = max(1, _REDRAWN_AT_ONCE // rows)
    for start in range(0, resamples, at_once):
        samples = min(at_once, resamples - start)
        drawn = rng.integers(rows, size=(samples, rows)) + rows * np.arange(samples)[:, None]
        yield np.bincount(drawn.ravel(), minlength=samples * rows).reshape(samples, rows).astype(np.float64)


def _estimates(runs: Sequence[Blocks], statistic: Statistic, resamples: int, rng: np.random.Generator) -> Floats:
    """[resamples] re-drawn figures, spread about the measured one by what neighbouring blocks have in common."""
    drawn = _redrawn(runs, statistic, resamples, rng)
    if not len(drawn):
        return drawn
    found = measured(runs, statistic)
    widened: Floats = found * (drawn / found) ** _widening(runs)
    return widened


def _redrawn(runs: Sequence[Blocks], statistic: Statistic, resamples: int, rng: np.random.Generator) -> Floats:
    """[resamples] figures of measurements drawn with replacement: first runs, then blocks within each run drawn.

    So the interval holds what differs from run to run, as far as there are runs to show it
    (Davison and Hinkley 1997, section 3.8).
    """
    filled = [run for run in runs if len(run)]
    blocks = [block for run in filled for block in run]
    if len(blocks) < 2:
        return np.empty(0)
    runs_drawn = rng.multinomial(len(filled), np.full(len(filled), 1 / len(filled)), size=resamples)
    times = [
        rng.multinomial(runs_drawn[:, number] * len(run), np.full(len(run), 1 / len(run)))
        for number, run in enumerate(filled)
    ]
    return statistic(blocks, np.concatenate(times, axis=1))


def _widening(runs: Sequence[Blocks]) -> float:
    """sqrt((1 + r) / (1 - r)): how much wider the spread of a mean is when neighbours correlate by r >= 0.

    r is that of the blocks' mean logarithms, with Kendall's correction for short series
    (von Storch and Zwiers 1999, section 6.6; Kendall 1954).
    """
    correlations = [_neighbour_correlation(run) for run in runs if len(run) >= 3]
    if not correlations:
        return 1.0
    return _widening_by(float(np.mean(correlations)))


def _widening_by(correlation: float) -> float:
    r = min(max(correlation, 0.0), _MOST_CORRELATION)
    return math.sqrt((1 + r) / (1 - r))


def _neighbour_correlation(run: Blocks) -> float:
    return _correlation(np.array([np.log(block).mean() for block in run]))


def _correlation(levels: Floats) -> float:
    """Of neighbours, with Kendall's correction; 0 where it is not above zero."""
    deviations = levels - levels.mean()
    spread = float(deviations @ deviations)
    r = float(deviations[1:] @ deviations[:-1]) / spread if spread > 0 else 0.0
    return r + 1 / len(levels) if r > 0 else 0.0


def _rank_variance(values: int) -> float:
    """Of Kendall's sum over all pairs of `values` in an order by chance: +1 for each that rises, -1 that falls."""
    return values * (values - 1) * (2 * values + 5) / 18


def _tied(values: Floats) -> float:
    """What the variance loses by values that are equal."""
    return sum(_rank_variance(int(times)) for times in np.unique(values, return_counts=True)[1])


def _tally(runs: Sequence[Blocks]) -> tuple[float, int]:
    return sum(float(block.sum()) for run in runs for block in run), sum(len(block) for run in runs for block in run)


def _newcombe(baseline: tuple[float, int], candidate: tuple[float, int], confidence: float) -> Interval:
    if not (baseline[1] and candidate[1]):
        return math.nan, math.nan
    (before, before_low, before_high), (after, after_low, after_high) = (
        _wilson(ones, count, confidence) for ones, count in (baseline, candidate)
    )
    difference = after - before
    return (
        difference - math.hypot(after - after_low, before_high - before),
        difference + math.hypot(after_high - after, before - before_low),
    )


def _wilson(ones: float, count: int, confidence: float) -> tuple[float, float, float]:
    """(share, low, high): Wilson's score interval of a share (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = ones / count
    centre = share + z * z / (2 * count)
    reach = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return share, (centre - reach) / scale, (centre + reach) / scale


def _percentile_interval(estimates: Floats, confidence: float) -> Interval:
    if not len(estimates):
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return float(low), float(high)
