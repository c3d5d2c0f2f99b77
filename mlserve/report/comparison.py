"""Two measurements, one figure, and how far apart they may be."""

import math

import msgspec

from mlserve.report.measurement import Measurement
from mlserve.report.summary import too_few
from mlserve.stats import (
    Statistic,
    difference_interval,
    mean_of,
    measured,
    minimum_samples,
    quantile_of,
    ratio_interval,
)

__all__ = [
    "MORE_ERRORS",
    "Difference",
    "Refusal",
    "compare_errors",
    "compare_mean",
    "compare_percentile",
    "confidence_of_each",
]

# How much larger a share of failed requests is borne where nobody said: as much as a certificate bears at all.
MORE_ERRORS = 0.01


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A figure of a baseline and of a candidate.

    `change` is their ratio for latencies (seconds), what the candidate has more for error rates (shares of the
    requests due); `low` and `high` bound it with `confidence`.
    """

    baseline: float
    candidate: float
    change: float
    low: float
    high: float
    confidence: float


class Refusal(msgspec.Struct, frozen=True):
    """Why there is no difference to state. `enough` is how many times the data it would take, None if unknown."""

    reason: str
    enough: float | None = None


def confidence_of_each(comparisons: int) -> float:
    """With what confidence each must hold so that all of them hold together with 95% (Bonferroni)."""
    return 1 - 0.05 / max(1, comparisons)


def compare_percentile(
    name: str, q: float, baseline: Measurement, candidate: Measurement, confidence: float
) -> Difference | Refusal:
    """Latency percentile `q`, called `name`, of the believed runs."""
    for side, measurement in (("baseline", baseline), ("candidate", candidate)):
        answered = sum(int(one.samples.ok.sum()) for one in measurement.believed)
        refused = too_few(name, q, answered)
        if refused:
            return Refusal(f"{side}: {refused}", minimum_samples(q) / answered if answered else None)
    return _compare(quantile_of(q), baseline, candidate, confidence)


def compare_mean(baseline: Measurement, candidate: Measurement, confidence: float) -> Difference | Refusal:
    """Mean latency of the believed runs."""
    return _compare(mean_of, baseline, candidate, confidence)


def compare_errors(baseline: Measurement, candidate: Measurement, confidence: float) -> Difference | Refusal:
    """The share of requests that failed or were dropped, over all runs.

    INVALID ones too: that a request was not answered is seen, whatever the clocks are worth, and to leave out a run
    because requests failed in it would hide just that.
    """
    before = [one.failure_blocks for one in baseline.counted]
    after = [one.failure_blocks for one in candidate.counted]
    if not (any(map(len, before)) and any(map(len, after))):
        return Refusal("no request was due")
    low, high = difference_interval(before, after, confidence=confidence)
    share_before, share_after = measured(before, mean_of), measured(after, mean_of)
    return Difference(
        baseline=share_before,
        candidate=share_after,
        change=share_after - share_before,
        low=low,
        high=high,
        confidence=confidence,
    )


def _compare(
    statistic: Statistic, baseline: Measurement, candidate: Measurement, confidence: float
) -> Difference | Refusal:
    before = [one.latency_blocks for one in baseline.believed]
    after = [one.latency_blocks for one in candidate.believed]
    low, high = ratio_interval(before, after, statistic, confidence=confidence)
    if math.isnan(low):
        return Refusal("all answers of a side fell into one stretch of time, which says nothing about spread")
    baseline_s, candidate_s = measured(before, statistic), measured(after, statistic)
    return Difference(
        baseline=baseline_s,
        candidate=candidate_s,
        change=candidate_s / baseline_s,
        low=low,
        high=high,
        confidence=confidence,
    )
