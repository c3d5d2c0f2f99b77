"""A gate's result as a reader sees it: the same words on the terminal, in Markdown, JUnit and a badge."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from mlserve.report.gating.result import Finding, GateResult, MetricVerdict, Verdict
from mlserve.units import format_bytes, format_duration, format_rate, format_ratio

__all__ = ["GateFigures", "GateRow", "Outcome", "gate_error", "gate_figures"]

Outcome = Verdict | Literal["error"]

_UNKNOWN = "-"
# Of a ratio: what three digits show of one near 1, and the finest limit that is of use.
_FEWEST_PLACES, _MOST_PLACES = 2, 5


class GateRow(msgspec.Struct, frozen=True, kw_only=True):
    """One limit, as texts. `change` and `interval` are against the base, or the candidate's own figure where `limit` is
    of that alone. `sentence` says it in one line, `reason` why it is not a pass.
    """

    metric: str
    base: str
    candidate: str
    change: str
    interval: str
    limit: str
    verdict: Verdict
    sentence: str
    reason: str


class GateFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The whole result, as texts. `base` and `candidate` name the two; `facts` say how it was measured, `notes` what a
    reader should know before believing it. `took_s` is the time of the measuring, 0.0 where nothing was measured. The
    verdict is `error` where the gate broke down before it had one.
    """

    verdict: Outcome
    base: str
    candidate: str
    headline: str
    rows: tuple[GateRow, ...]
    reasons: tuple[str, ...]
    facts: tuple[str, ...]
    notes: tuple[str, ...]
    took_s: float = 0.0


def gate_figures(result: GateResult, base: str, candidate: str, *, took_s: float = 0.0) -> GateFigures:
    """`result` in words; the two sides are called `base` and `candidate`."""
    return GateFigures(
        verdict=result.verdict,
        base=base,
        candidate=candidate,
        headline=_headline(result, base, candidate),
        rows=tuple(map(_row, result.metrics)),
        reasons=result.reasons,
        facts=tuple(_facts(result)),
        notes=result.notes,
        took_s=took_s,
    )


def gate_error(message: str, base: str, candidate: str, *, took_s: float = 0.0) -> GateFigures:
    """A gate that ended by an error, whose `message` the terminal shows as well."""
    return GateFigures(
        verdict="error",
        base=base,
        candidate=candidate,
        headline=f"the gate of {candidate} against {base} gave no verdict" if candidate else "the gate broke down",
        rows=(),
        reasons=(message,),
        facts=(),
        notes=(),
        took_s=took_s,
    )


def _headline(result: GateResult, base: str, candidate: str) -> str:
    if result.broken:
        return f"{candidate} does not work, and {base} does"
    match result.verdict:
        case "pass":
            return f"{candidate} is within every limit, for all that noise can do"
        case "fail":
            return f"{candidate} {', and '.join(_failures(result, base))}"
        case _:
            return f"it is not decided whether {candidate} is within the limits"


def _failures(result: GateResult, base: str) -> Iterator[str]:
    """What the candidate fails by: against the base, and by itself."""
    failed = [one for one in result.metrics if one.verdict == "fail"]
    against = [one.metric for one in failed if not one.absolute]
    alone = [f"{one.metric} {_limit(one)}" for one in failed if one.absolute]
    if against or not alone:
        yield f"is worse than {base} by more than is allowed: {', '.join(against) or 'more requests failed'}"
    if alone:
        yield f"does not keep {', '.join(alone)}"


def _facts(result: GateResult) -> Sequence[str]:
    if not result.metrics:
        return []
    baseline, candidate = len(result.baseline_runs), len(result.candidate_runs)
    runs = f"{baseline} {'run' if baseline == 1 else 'runs'} of the base, {candidate} of the candidate"
    trust = (
        "in at most 5% of gates is the lower end of any of the intervals too high, and in at most 5% an upper end too "
        "low: that allows for all limits together, and for every look at them"
    )
    facts = [runs, trust]
    if result.about == "processes":
        facts.append(
            "each side was one process, or two: this is a verdict of these processes, and other starts of the same "
            "servers may be some percent faster or slower; leave out --keep-servers, or calibrate with it"
        )
    if result.false_alarms is not None:
        facts.append(f"on this machine {result.false_alarms.words}")
    return facts


def _row(metric: MetricVerdict) -> GateRow:
    found, unit, figure_unit, limit = metric.difference, metric.unit, metric.figure_unit, _limit(metric)
    if found is None:
        sentence = f"{metric.metric} is unknown, limit {limit}"
        unknown = {"base": _UNKNOWN, "candidate": _UNKNOWN, "change": _UNKNOWN, "interval": _UNKNOWN}
        return GateRow(
            metric=metric.metric,
            **unknown,
            limit=limit,
            verdict=metric.verdict,
            sentence=sentence,
            reason=metric.reason,
        )
    places = _places(metric.limit)
    places += places > _FEWEST_PLACES  # beside a fine limit, one more shows on which side of it a change is
    interval = _interval(found, unit, places)
    base = _UNKNOWN if found.baseline is None else _shown(found.baseline, figure_unit)
    candidate, change = _shown(found.candidate, figure_unit), _shown(found.change, unit, sign=True, places=places)
    changed = f"{candidate} ({interval})" if metric.absolute else f"{base} -> {candidate}, {change} ({interval})"
    return GateRow(
        metric=metric.metric,
        base=base,
        candidate=candidate,
        change=_UNKNOWN if metric.absolute else change,
        interval=interval,
        limit=limit,
        verdict=metric.verdict,
        sentence=f"{metric.metric} {changed}, limit {limit}",
        reason=metric.reason,
    )


def _limit(metric: MetricVerdict) -> str:
    """`1.05x`, `1.002x`; `<= 50.0 ms` where it is of the candidate alone."""
    limit = _shown(metric.limit, metric.unit, sign=True, places=_places(metric.limit))
    return f"{'<=' if metric.sense == 'at most' else '>='} {limit}" if metric.absolute else limit


def _places(ratio: float) -> int:
    """How many decimal places a ratio takes that somebody wrote: 1.05 two, 1.002 three."""
    return max(_FEWEST_PLACES, len(f"{ratio:.{_MOST_PLACES}f}".rstrip("0").partition(".")[2]))


def _interval(found: Finding, unit: str, places: int) -> str:
    if found.low is None or found.high is None:
        return _UNKNOWN
    low, high = (_shown(value, unit, sign=True, places=places) for value in (found.low, found.high))
    if unit in ("ratio", "per_s") and not found.low:  # how far the highest rate fell is not known
        return f"at most {high}"
    return f"{low.removesuffix(' pt')} to {high}"


def _shown(value: float, unit: str, *, sign: bool = False, places: int = _FEWEST_PLACES) -> str:
    """`value` in its unit; `sign` for one that is a difference, `places` for how many decimals a ratio has."""
    match unit:
        case "ratio":
            usual = places == _FEWEST_PLACES or math.isnan(value)
            return format_ratio(value) if usual else f"{value:.{places}f}x"
        case "points":
            return f"{100 * value:{'+' if sign else ''}.2f} pt"
        case "s":
            return format_duration(value)
        case "share":
            return f"{value:.2%}"
        case "bytes":
            return format_bytes(value)
        case _:
            return format_rate(value)
