"""Latency against throughput: what a variant does as the load grows. Pure functions of a report's results."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from mlserve.report.report import Report, Result
from mlserve.report.verdict import judged_percentile, keeps

if TYPE_CHECKING:
    from mlserve.report.conditions import Conditions

__all__ = ["RateCurve", "RatePoint", "rate_curves"]


class RatePoint(msgspec.Struct, frozen=True, kw_only=True):
    """One rate: what was offered and answered a second, the latency with its 95% interval (seconds), None where there
    were too few answers. `keeps` is None without an objective.
    """

    offered_per_s: float
    answered_per_s: float
    latency_s: float | None
    low_s: float | None
    high_s: float | None
    error_rate: float
    valid: bool
    keeps: bool | None


class RateCurve(msgspec.Struct, frozen=True, kw_only=True):
    """`percentile` of one variant at two or more rates, all else alike: slowest rate first. `family` is what is alike:
    `over gRPC`. `best_per_s` is the highest rate of a VALID result that keeps to the objective, None if there is none.
    """

    variant: str
    family: str
    percentile: str
    points: tuple[RatePoint, ...]
    best_per_s: float | None


def rate_curves(report: Report) -> list[RateCurve]:
    """Every curve that the results make, in their order."""
    families: dict[tuple[str, Conditions], list[Result]] = {}
    for result in report.results:
        if result.conditions is not None:
            alike = msgspec.structs.replace(result.conditions, rate_per_s=0.0, users=min(1, result.conditions.users))
            families.setdefault((result.variant, alike), []).append(result)
    return [
        _curve(report, sorted(results, key=_offered))
        for results in families.values()
        if len({(one.rate_per_s, one.conditions and one.conditions.users) for one in results}) > 1
    ]


def _offered(result: Result) -> float:
    return result.summary.offered_per_s


def _curve(report: Report, results: Sequence[Result]) -> RateCurve:
    points = tuple(_point(report, one) for one in results)
    met = [point.offered_per_s for point in points if point.keeps and point.valid]
    return RateCurve(
        variant=results[0].variant,
        family=_family(results[0].load),
        percentile=judged_percentile(report.slo),
        points=points,
        best_per_s=max(met, default=None),
    )


def _point(report: Report, result: Result) -> RatePoint:
    found = result.summary.percentile(judged_percentile(report.slo))
    return RatePoint(
        offered_per_s=result.summary.offered_per_s,
        answered_per_s=result.summary.answered_per_s,
        latency_s=found.latency_s,
        low_s=found.low_s,
        high_s=found.high_s,
        error_rate=result.summary.error_rate,
        valid=result.valid,
        keeps=keeps(result.summary, report.slo) if report.slo else None,
    )


def _family(load: str) -> str:
    """`60 requests/s of 8 rows over gRPC` -> `of 8 rows over gRPC`."""
    for marker in (" requests/s ", " users ", " user "):
        before, found, after = load.partition(marker)
        if found:
            return f"closed loop {after}" if before.startswith("closed loop") else after
    return load
