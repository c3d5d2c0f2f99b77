"""A gate's result as a reader sees it: the same words on the terminal, in Markdown, JUnit and a badge."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from mlserve.report.gating.result import Finding, GateResult, MetricVerdict, Verdict
from mlserve.units import format_bytes, format_duration, format_rate, format_ratio

__all__ = ["GateFigures", "GateRow", "Outcome", "gate_error", "gate_figures"]

Outcome = Verdict | Literal["error"]

_UNKNOWN = "-"


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
    failed = [one.metric for one in result.metrics if one.verdict == "fail"]
    if result.broken:
        return f"{candidate} does not work, and {base} does"
    match result.verdict:
        case "pass":
            return f"{candidate} is within every limit, for all that noise can do"
        case "fail":
            return f"{candidate} is worse than {base} by more than is allowed: {_listed(failed)}"
        case _:
            return f"it is not decided whether {candidate} is within the limits"


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
    found, unit, figure_unit = metric.difference, metric.unit, metric.figure_unit
    limit = _shown(metric.limit, unit, sign=True)
    if metric.absolute:
        limit = f"{'<=' if metric.sense == 'at most' else '>='} {limit}"
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
    interval = _interval(found, unit)
    base = _UNKNOWN if found.baseline is None else _shown(found.baseline, figure_unit)
    candidate, change = _shown(found.candidate, figure_unit), _shown(found.change, unit, sign=True)
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


def _interval(found: Finding, unit: str) -> str:
    if found.low is None or found.high is None:
        return _UNKNOWN
    if unit in ("ratio", "per_s") and not found.low:  # how far the highest rate fell is not known
        return f"at most {_shown(found.high, unit, sign=True)}"
    return f"{_shown(found.low, unit, sign=True).removesuffix(' pt')} to {_shown(found.high, unit, sign=True)}"


def _shown(value: float, unit: str, *, sign: bool = False) -> str:
    """`value` in its unit; `sign` for one that is a difference."""
    match unit:
        case "ratio":
            return format_ratio(value)
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


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "more requests failed"
