"""The arithmetic of evidence: exact quantiles, when there are enough samples for one, and intervals that respect
correlation. Pure functions of arrays; nothing here knows what a request is.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["Interval", "block_bootstrap", "minimum_samples", "quantile", "ratio_bootstrap", "split_blocks"]

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], float]
Interval = tuple[float, float]

_CONFIDENCE = 0.99


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
    """`values` [n] grouped by their block number `block_of` [n]; empty blocks do not appear."""
    order = np.argsort(block_of, kind="stable")
    edges = np.flatnonzero(np.diff(block_of[order])) + 1
    return [block for block in np.split(values[order], edges) if len(block)]


def block_bootstrap(
    blocks: Sequence[Floats], statistic: Statistic, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Percentile interval of `statistic` when whole blocks, not single values, are the unit of evidence.

    Requests within one stretch of a run share its queue and its stalls, so they are not independent; blocks nearly
    are. `(nan, nan)` with fewer than two blocks: one block says nothing about spread. (Efron and Tibshirani 1993, 8.6.)
    """
    estimates = _resampled(blocks, statistic, resamples, np.random.default_rng(seed))
    return _percentile_interval(estimates, confidence)


def ratio_bootstrap(
    baseline: Sequence[Floats],
    candidate: Sequence[Floats],
    statistic: Statistic,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of `statistic(candidate) / statistic(baseline)`, both resampled by blocks."""
    rng = np.random.default_rng(seed)
    below = _resampled(baseline, statistic, resamples, rng)
    above = _resampled(candidate, statistic, resamples, rng)
    return _percentile_interval(above / below if len(below) and len(above) else np.empty(0), confidence)


def _resampled(blocks: Sequence[Floats], statistic: Statistic, resamples: int, rng: np.random.Generator) -> Floats:
    if len(blocks) < 2:
        return np.empty(0)
    picks = rng.integers(len(blocks), size=(resamples, len(blocks)))
    return np.array([statistic(np.concatenate([blocks[i] for i in pick])) for pick in picks])


def _percentile_interval(estimates: Floats, confidence: float) -> Interval:
    if not len(estimates):
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return float(low), float(high)
