"""The figures of a measurement, each with an interval or with the reason why there is none. Pure functions of rows."""

from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np

from mlserve.report.measurement import Recorded
from mlserve.runs.samples import DROPPED
from mlserve.stats import Floats, bootstrap_interval, minimum_samples, quantile, quantile_of

__all__ = ["PERCENTILES", "Percentile", "Summary", "summarize", "too_few"]

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}


class Percentile(msgspec.Struct, frozen=True, kw_only=True):
    """One percentile. Latency counts from the scheduled instant, service time from sending (seconds).

    `low_s` and `high_s` bound the latency with 95% confidence. All are None where `refused` says why.
    """

    name: str
    latency_s: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    service_s: float | None = None
    refused: str = ""


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
    service_s = np.concatenate([one.samples.service_s for one in runs])
    lag_s = np.concatenate([one.samples.dispatch_lag_s for one in runs])
    scheduled = sum(len(one.samples) for one in runs)
    loaded_s = sum(one.run.window.duration_s for one in runs)
    answering_s = sum(_answering_s(one) for one in runs)
    rows = sum(int(one.samples.rows[one.samples.ok].sum()) for one in runs)
    return Summary(
        percentiles=tuple(_percentile(name, q, runs, latency_s, service_s) for name, q in PERCENTILES.items()),
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


def too_few(name: str, q: float, samples: int) -> str:
    """Why nothing may be said of percentile `name`; "" where there are samples enough."""
    needed = minimum_samples(q)
    if samples >= needed:
        return ""
    return f"{name} needs {needed:,} answered requests, there are {samples:,}"


def _percentile(name: str, q: float, runs: Sequence[Recorded], latency_s: Floats, service_s: Floats) -> Percentile:
    refused = too_few(name, q, len(latency_s))
    if refused:
        return Percentile(name=name, refused=refused)
    low_s, high_s = bootstrap_interval([one.latency_blocks for one in runs], quantile_of(q))
    known = not np.isnan(low_s)
    return Percentile(
        name=name,
        latency_s=quantile(latency_s, q),
        low_s=low_s if known else None,
        high_s=high_s if known else None,
        service_s=quantile(service_s, q),
    )


def _answering_s(recorded: Recorded) -> float:
    """From the first instant of the measured part to its end, or to the last good answer where that came later."""
    return max(recorded.run.window.duration_s, float(recorded.answered_at_s.max(initial=0.0)))


def _failures(runs: Sequence[Recorded]) -> dict[str, int]:
    """By kind, the most frequent first; dropped requests last."""
    kinds = Counter(status for one in runs for status in one.samples.status[~one.samples.ok].tolist())
    dropped = kinds.pop(DROPPED, 0)
    return dict(kinds.most_common()) | ({DROPPED: dropped} if dropped else {})
