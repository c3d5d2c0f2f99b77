"""Latency against throughput: one point for each rate that was measured, and where the knee is. Pure."""

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from mlserve.report.measurement import Recorded
from mlserve.report.summary import Percentile, summarize
from mlserve.stats import quantile

__all__ = ["Curve", "Point", "curve_of"]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured at one rate, its VALID runs together, or all where none is (`valid` is then false).

    `percentile_s` is the latency at the objective's percentile, None where nothing was answered; `p50` and `p99` are
    refused where there are too few answers. `power` is the throughput over the mean latency.
    """

    rate_per_s: float
    answered_per_s: float
    mean_s: float | None
    percentile_s: float | None
    p50: Percentile
    p99: Percentile
    error_rate: float
    power: float
    runs: int
    valid: bool


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """Points by rising rate. `knee_per_s` is the rate with the greatest power, 0.0 where nothing was answered.

    Power is throughput over mean latency: below its greatest value more load buys throughput for little latency, above
    it latency for little throughput (Kleinrock 1979, "Power and deterministic rules of thumb for probabilistic problems
    in computer communications"). It needs no tuning, unlike the curvature of a curve through few points.
    """

    points: tuple[Point, ...]
    knee_per_s: float


def curve_of(runs: Iterable[Recorded], percentile: float) -> Curve:
    """The curve that open-loop `runs` show."""
    by_rate: dict[float, list[Recorded]] = {}
    for recorded in runs:
        by_rate.setdefault(recorded.run.plan.rate_per_s, []).append(recorded)
    points = tuple(_point(rate, by_rate[rate], percentile) for rate in sorted(by_rate))
    best = max(points, key=lambda point: point.power, default=None)
    return Curve(points=points, knee_per_s=best.rate_per_s if best is not None and best.power else 0.0)


def _point(rate_per_s: float, runs: Sequence[Recorded], percentile: float) -> Point:
    valid = [recorded for recorded in runs if recorded.run.certificate.valid]
    summary = summarize(valid or runs)
    latency_s = np.concatenate([recorded.samples.latency_s for recorded in valid or runs])
    return Point(
        rate_per_s=rate_per_s,
        answered_per_s=summary.answered_per_s,
        mean_s=summary.mean_s,
        percentile_s=quantile(latency_s, percentile) if len(latency_s) else None,
        p50=summary.percentile("p50"),
        p99=summary.percentile("p99"),
        error_rate=summary.error_rate,
        power=summary.answered_per_s / summary.mean_s if summary.mean_s else 0.0,
        runs=len(runs),
        valid=bool(valid),
    )
