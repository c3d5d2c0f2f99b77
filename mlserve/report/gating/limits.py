"""What may be limited, and how far: `p99=5%` against a baseline, `p99<=50ms` of the candidate alone."""

import re
from collections.abc import Iterable
from typing import Literal

import msgspec

from mlserve.errors import UsageError
from mlserve.units import parse_bytes, parse_duration_s, parse_fraction

__all__ = ["ERROR_RATE", "FIXED", "METRICS", "Limit", "Sense", "Unit", "figure_unit", "parse_gate_limits"]

Sense = Literal["at most", "at least"]
Unit = Literal["s", "share", "bytes", "per_s"]

ERROR_RATE = "error_rate"
METRICS = ("mean", ERROR_RATE, "max_rate", "accuracy", "memory", "size", "start_up")
"""Every metric but the percentiles of latency."""
FIXED = ("accuracy", "size")
"""What belongs to a model and not to a run, so that no further run says more of it."""

_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d{1,3})?)")
_LIMIT = re.compile(r"\s*([^\s<>=]+)\s*(<=|>=|=)\s*([^\s<>=]+)\s*")
_HIGHER_IS_BETTER = ("max_rate", "accuracy")


class Limit(msgspec.Struct, frozen=True):
    """How much worse `metric` may become than the baseline: by a share of it, or by `tolerance` points for error rate
    and accuracy (0.01 is one point).

    With `absolute` it is a limit of the candidate alone, `tolerance` being the figure: seconds, a share, bytes or
    requests a second. `sense` says on which side of it the candidate must stay. `q` is the quantile of a percentile.
    """

    metric: str
    tolerance: float
    q: float | None = None
    sense: Sense = "at most"
    absolute: bool = False

    @property
    def key(self) -> tuple[str, bool]:
        """What may be limited only once."""
        return self.metric, self.absolute

    @property
    def text(self) -> str:
        """`p99=5%`, `p99<=50ms`, as it is written."""
        if not self.absolute:
            return f"{self.metric}={100 * self.tolerance:.10g}%"
        sign = "<=" if self.sense == "at most" else ">="
        match figure_unit(self.metric):
            case "s":
                figure = f"{1000 * self.tolerance:.10g}ms"
            case "share":
                figure = f"{100 * self.tolerance:.10g}%"
            case "bytes":
                figure = f"{self.tolerance / 1e6:.10g}MB"
            case "per_s":
                figure = f"{self.tolerance:.10g}"
        return f"{self.metric}{sign}{figure}"

    @property
    def is_latency(self) -> bool:
        """Whether it is a percentile or the mean of latency."""
        return self.q is not None or self.metric == "mean"

    @property
    def in_points(self) -> bool:
        """Whether a change of it is a difference, not a ratio."""
        return self.metric in (ERROR_RATE, "accuracy")


def parse_gate_limits(texts: Iterable[str], said_by: str = "--max-regression") -> tuple[Limit, ...]:
    """`["p99=10%,p50=5%", "error_rate=0.5%", "p99<=50ms"]` -> limits, in that order.

    Raises UsageError for a name that is no metric, a value that is none of it, a bound from the wrong side, and a
    metric limited twice; `said_by` is the flag or key that the message names.
    """
    limits: dict[tuple[str, bool], Limit] = {}
    for part in (part for text in texts for part in text.split(",")):
        limit = _limit(part)
        if limit.key in limits:
            raise UsageError(f"{said_by} limits {limit.metric} twice; give each metric once")
        limits[limit.key] = limit
    if not limits:
        raise UsageError(f"nothing is limited; give {said_by}, such as {said_by} p99=10%")
    return tuple(limits.values())


def figure_unit(metric: str) -> Unit:
    """What a figure of `metric` is counted in: `s`, `share`, `per_s` or `bytes`."""
    if metric in (ERROR_RATE, "accuracy"):
        return "share"
    if metric in ("memory", "size"):
        return "bytes"
    return "per_s" if metric == "max_rate" else "s"


def _limit(part: str) -> Limit:
    match = _LIMIT.fullmatch(part)
    if not match:
        raise UsageError(f"{part!r} is no limit; write NAME=VALUE, such as p99=10%, or a bound, such as p99<=50ms")
    metric, sign, value = match.groups()
    q = _quantile_named(metric)
    if sign == "=":
        return Limit(metric, _worse_by(metric, value), q)
    sense: Sense = "at least" if metric in _HIGHER_IS_BETTER else "at most"
    right_sign = ">=" if sense == "at least" else "<="
    if sign != right_sign:
        raise UsageError(f"{part.strip()!r} bounds {metric} from its good side; write {metric}{right_sign}{value}")
    return Limit(metric, _bound(metric, value), q, sense, absolute=True)


def _worse_by(metric: str, value: str) -> float:
    tolerance = parse_fraction(value, most_bare=1.0)
    if metric == "max_rate" and tolerance >= 1:
        raise UsageError(f"max_rate={value} lets it fall to nothing; give less than 100%")
    return tolerance


def _bound(metric: str, value: str) -> float:
    match figure_unit(metric):
        case "s":
            return parse_duration_s(value)
        case "share":
            return parse_fraction(value, most_bare=1.0)
        case "bytes":
            return parse_bytes(value)
    return _parse_rate(metric, value)


def _parse_rate(metric: str, value: str) -> float:
    try:
        rate = float(value)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise UsageError(f"{metric}>={value}: that is no rate; write requests per second, such as {metric}>=800")
    return rate


def _quantile_named(metric: str) -> float | None:
    match = _PERCENTILE.fullmatch(metric)
    if match and float(match[1]) > 0:
        return round(float(match[1]) / 100, 6)  # 99.9 / 100 is not quite 0.999
    if metric in METRICS:
        return None
    raise UsageError(
        f"{metric!r} cannot be gated; use a latency percentile such as p50, p99 or p99.9, or one of "
        f"{', '.join(METRICS)} (the rate of an open-loop load is set, so what a slower server changes is these)"
    )
