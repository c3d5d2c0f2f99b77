"""The figures of a measurement, each with an interval or with the reason why there is none. Pure functions of rows."""

from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np

from mlserve.report.measurement import Recorded
from mlserve.runs.percentiles import PERCENTILES, Percentile, confidence_of, percentiles, too_few
from mlserve.runs.samples import DROPPED
from mlserve.stats import quantile

__all__ = ["PERCENTILES", "Percentile", "Summary", "summarize", "too_few"]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the measured part of one run, or of several taken together.

    `failures` counts what went wrong by its kind, requests dropped for want of room included. The rates are means over
    the runs: `offered_per_s` is what was due, `answered_per_s` and `rows_per_s` what was answered well.
    """

    percentiles: tuple[Percentile, ...]
    mean_s: float | None
    max_s: float | None
    scheduled: int
    answered: int
    failures: dict[str, int]
    error_rate: float
    offered_per_s: float
    answered_per_s: float
    rows_per_s: float
    dispatch_lag_p99_s: float | None

    def percentile(self, name: str) -> Percentile:
        """The percentile called `name`, one of `PERCENTILES`."""
        return next(percentile for percentile in self.percentiles if percentile.name == name)


def summarize(runs: Sequence[Recorded]) -> Summary:
    """The figures of `runs`, repeats of one measurement; at least one."""
    latency_s = np.concatenate([one.samples.latency_s for one in runs])
    lag_s = np.concatenate([one.samples.dispatch_lag_s for one in runs])
    scheduled = sum(len(one.samples) for one in runs)
    loaded_s = sum(one.run.window.duration_s for one in runs)
    answering_s = sum(_answering_s(one) for one in runs)
    rows = sum(int(one.samples.rows[one.samples.ok].sum()) for one in runs)
    return Summary(
        percentiles=percentiles(
            [(one.samples, one.run.window) for one in runs], confidence=confidence_of(runs[0].run.plan)
        ),
        mean_s=float(latency_s.mean()) if len(latency_s) else None,
        max_s=float(latency_s.max()) if len(latency_s) else None,
        scheduled=scheduled,
        answered=len(latency_s),
        failures=_failures(runs),
        error_rate=1 - len(latency_s) / scheduled if scheduled else 0.0,
        offered_per_s=scheduled / loaded_s,
        answered_per_s=len(latency_s) / answering_s,
        rows_per_s=rows / answering_s,
        dispatch_lag_p99_s=quantile(lag_s, 0.99) if len(lag_s) else None,
    )


def _answering_s(recorded: Recorded) -> float:
    """From the first instant of the measured part to its end, or to the last good answer where that came later."""
    return max(recorded.run.window.duration_s, float(recorded.answered_at_s.max(initial=0.0)))


def _failures(runs: Sequence[Recorded]) -> dict[str, int]:
    """By kind, the most frequent first; dropped requests last."""
    kinds = Counter(status for one in runs for status in one.samples.status[~one.samples.ok].tolist())
    dropped = kinds.pop(DROPPED, 0)
    return dict(kinds.most_common()) | ({DROPPED: dropped} if dropped else {})
