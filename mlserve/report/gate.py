"""Did it get worse? Pass, fail, or inconclusive; pure functions of two measurements.

An interval, not a figure, is held against the limit: `fail` only where even its better end is beyond the limit, `pass`
only where even its worse end is within, `inconclusive` between. One failed limit fails the gate, else one inconclusive
limit leaves it open. With k limits each interval holds with confidence 1 - 0.05/k, so that all hold together with 95%
(Bonferroni).

Requests that were not answered have no latency, so a candidate that fails more of them is judged by that first.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from mlserve.errors import UsageError
from mlserve.report.comparison import (
    MORE_ERRORS,
    Difference,
    Refusal,
    compare_errors,
    compare_mean,
    compare_percentile,
    confidence_of_each,
)
from mlserve.report.conditions import SERVER_FIELDS, Conditions, differences
from mlserve.report.measurement import Measurement, Recorded, group
from mlserve.units import parse_fraction, parse_limits

__all__ = ["GateResult", "Limit", "MetricVerdict", "Verdict", "decide", "judge", "one_measurement", "parse_gate_limits"]

# 1: first format (0.1.0)
FORMAT_VERSION = 1

Verdict = Literal["pass", "fail", "inconclusive"]

_ERROR_RATE = "error_rate"
_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d{1,3})?)")
# Past this many times the data, the honest answer is that the difference lies at the limit.
_MOST_TIMES_THE_DATA = 50.0

_COMPARABLE = tuple(field for field in Conditions.__struct_fields__ if field not in SERVER_FIELDS)


class Limit(msgspec.Struct, frozen=True):
    """How much worse `metric` may become: by a share of the baseline for latencies, by that share more of all requests
    for `error_rate`. `q` is the quantile of a percentile, None for the others.
    """

    metric: str
    tolerance: float
    q: float | None = None


class MetricVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """One limit, judged. `limit` is what `difference.change` may be at most; None is a difference that is unknown.

    `more_runs` is how many further runs like these, on each side, would decide if the figures stay as they are. None
    where nothing is open, or where no number is likely to help.
    """

    metric: str
    difference: Difference | None
    limit: float
    verdict: Verdict
    reason: str = ""
    more_runs: int | None = None


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict, the limits it follows from, and why where they alone do not say. `notes` do not change it."""

    format_version: int = FORMAT_VERSION
    verdict: Verdict
    reasons: tuple[str, ...]
    metrics: tuple[MetricVerdict, ...]
    notes: tuple[str, ...]
    baseline_runs: tuple[str, ...]
    candidate_runs: tuple[str, ...]


def parse_gate_limits(texts: Iterable[str]) -> tuple[Limit, ...]:
    """`["p99=10%,p50=5%", "error_rate=0.5%"]` -> limits, in that order.

    Raises UsageError for a name that is no metric, a value that is no ratio, and a metric limited twice.
    """
    limits: dict[str, Limit] = {}
    for text in texts:
        for metric, value in parse_limits(text).items():
            if metric in limits:
                raise UsageError(f"--max-regression limits {metric} twice; give each metric once")
            limits[metric] = Limit(metric, parse_fraction(value), _quantile_named(metric))
    if not limits:
        raise UsageError("nothing is limited; give --max-regression, such as --max-regression p99=10%")
    return tuple(limits.values())


def one_measurement(runs: Sequence[Recorded], side: str) -> Measurement:
    """`runs` as repeats of one measurement. Raises UsageError when they are of different models or conditions."""
    measurements = group(runs)
    if len(measurements) == 1:
        return measurements[0]
    first, second = measurements[:2]
    unlike = differences(first.conditions, second.conditions) or [
        f"{first.identity.full} against {second.identity.full}"
    ]
    raise UsageError(
        f"the {side} mixes {len(measurements)} measurements ({'; '.join(unlike)}); "
        "give a folder with repeats of one of them"
    )


def decide(
    baseline: Measurement, candidate: Measurement, limits: Sequence[Limit], *, ignore_differences: bool = False
) -> GateResult:
    """The verdict on `candidate`.

    Raises UsageError when the two were measured under unlike loads or on unlike machines, unless `ignore_differences`
    makes that a note.
    """
    notes = _unlike(baseline, candidate, ignore_differences=ignore_differences) + _cautions(baseline, candidate)
    invalid = _invalid(baseline, "baseline") + _invalid(candidate, "candidate")
    errors = _judge_errors(baseline, candidate, limits)
    verdicts = [errors]
    if not invalid:
        latencies = [limit for limit in limits if limit.metric != _ERROR_RATE]
        verdicts += [_judge_latency(limit, baseline, candidate, confidence_of_each(len(limits))) for limit in latencies]
    found = {verdict.verdict for verdict in verdicts}
    if "fail" in found and not _invalid(baseline, "baseline"):
        overall: Verdict = "fail"
    else:
        overall = "inconclusive" if invalid or found != {"pass"} else "pass"
    return GateResult(
        verdict=overall,
        reasons=tuple(invalid + [verdict.reason for verdict in verdicts if verdict.verdict != "pass"]),
        metrics=tuple(verdicts),
        notes=tuple(notes),
        baseline_runs=tuple(str(one.directory) for one in baseline.runs),
        candidate_runs=tuple(str(one.directory) for one in candidate.runs),
    )


def judge(low: float, high: float, limit: float) -> Verdict:
    """What an interval says about a limit from above; an unknown interval says nothing."""
    if low > limit:
        return "fail"
    return "pass" if high <= limit else "inconclusive"


def _quantile_named(metric: str) -> float | None:
    match = _PERCENTILE.fullmatch(metric)
    if match and float(match[1]) > 0:
        return round(float(match[1]) / 100, 6)  # 99.9 / 100 is not quite 0.999
    if metric in ("mean", _ERROR_RATE):
        return None
    raise UsageError(
        f"{metric!r} cannot be gated; use a latency percentile such as p50, p99 or p99.9, mean, or {_ERROR_RATE} "
        "(the rate of an open-loop load is set, so what a slower server changes is these)"
    )


def _judge_latency(limit: Limit, baseline: Measurement, candidate: Measurement, confidence: float) -> MetricVerdict:
    if limit.q is None:
        difference = compare_mean(baseline, candidate, confidence)
    else:
        difference = compare_percentile(limit.metric, limit.q, baseline, candidate, confidence)
    runs, allowed = min(len(baseline.runs), len(candidate.runs)), 1 + limit.tolerance
    if isinstance(difference, Refusal):
        return _unknown(limit.metric, difference, allowed, runs)
    verdict = judge(difference.low, difference.high, allowed)
    # Ratios add up as logarithms.
    places = [math.log(value) for value in (difference.change, difference.low, difference.high, allowed)]
    return _known(limit.metric, difference, allowed, verdict, _more_runs(places, runs))


def _judge_errors(baseline: Measurement, candidate: Measurement, limits: Sequence[Limit]) -> MetricVerdict:
    """Held to a limit of its own even when none was given; then a candidate that fails no more than the baseline
    passes however few requests there were.
    """
    stated = next((limit for limit in limits if limit.metric == _ERROR_RATE), None)
    allowed = stated.tolerance if stated else MORE_ERRORS
    runs = min(len(baseline.runs), len(candidate.runs))
    difference = compare_errors(baseline, candidate, confidence_of_each(len(limits) if stated else 1))
    if isinstance(difference, Refusal):
        return _unknown(_ERROR_RATE, difference, allowed, runs)
    verdict = judge(difference.low, difference.high, allowed)
    if verdict == "inconclusive" and stated is None and difference.change <= 0:
        verdict = "pass"
    places = [difference.change, difference.low, difference.high, allowed]
    return _known(_ERROR_RATE, difference, allowed, verdict, _more_runs(places, runs))


def _unknown(metric: str, refusal: Refusal, allowed: float, runs: int) -> MetricVerdict:
    more_runs = max(1, math.ceil(runs * refusal.enough) - runs) if refusal.enough else None
    wanted = f"; {_wanted(more_runs)}" if more_runs else ""
    return MetricVerdict(
        metric=metric,
        difference=None,
        limit=allowed,
        verdict="inconclusive",
        reason=f"{metric} is unknown: {refusal.reason}{wanted}",
        more_runs=more_runs,
    )


def _known(
    metric: str, difference: Difference, allowed: float, verdict: Verdict, more_runs: int | None
) -> MetricVerdict:
    if verdict != "inconclusive":
        reason = f"{metric} is worse than the limit, and by more than noise" if verdict == "fail" else ""
        return MetricVerdict(metric=metric, difference=difference, limit=allowed, verdict=verdict, reason=reason)
    wanted = _wanted(more_runs) if more_runs else "it lies so close that more data is unlikely to decide"
    return MetricVerdict(
        metric=metric,
        difference=difference,
        limit=allowed,
        verdict=verdict,
        reason=f"{metric} may lie on either side of the limit; {wanted}",
        more_runs=more_runs,
    )


def _wanted(more_runs: int) -> str:
    return f"about {more_runs} more run{'s' if more_runs > 1 else ''} like these on each side would decide"


def _more_runs(places: Sequence[float], runs: int) -> int | None:
    """From (change, low, high, limit) on a scale on which they add up.

    The end of the interval that lies beyond the limit must come as near to `change` as the limit is; its distance
    shrinks with the square root of the number of runs.
    """
    change, low, high, limit = places
    reach = high - change if change <= limit else change - low
    room = abs(limit - change)
    if room <= 0 or (reach / room) ** 2 > _MOST_TIMES_THE_DATA:
        return None
    return max(1, math.ceil(runs * (reach / room) ** 2) - runs)


def _unlike(baseline: Measurement, candidate: Measurement, *, ignore_differences: bool) -> list[str]:
    unlike = differences(baseline.conditions, candidate.conditions, _COMPARABLE)
    if unlike and not ignore_differences:
        raise UsageError(
            f"baseline and candidate cannot be compared: {'; '.join(unlike)}. Measure both alike, "
            "or give --ignore-differences"
        )
    return [f"compared although they differ: {difference}" for difference in unlike]


def _cautions(baseline: Measurement, candidate: Measurement) -> list[str]:
    """What a reader should know of how the runs were made."""
    notes = [
        f"the server's settings differ: {difference}"
        for difference in differences(baseline.conditions, candidate.conditions, SERVER_FIELDS)
    ]
    before, after = baseline.runs[0].run.machine.packages, candidate.runs[0].run.machine.packages
    notes += [
        f"the software differs: {name} {before.get(name, 'none')} against {after.get(name, 'none')}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]
    if min(len(baseline.runs), len(candidate.runs)) == 1:
        notes.append(
            "a side has one run only, so how much runs of the same server differ is not in the intervals; "
            "three of each, taken in turn, would show it"
        )
    elif not _in_turn(baseline, candidate):
        notes.append(
            "the runs were not taken in turn, so a change of the machine in between looks like one of the candidate"
        )
    return notes


def _in_turn(baseline: Measurement, candidate: Measurement) -> bool:
    before = [one.run.started_at for one in baseline.runs]
    after = [one.run.started_at for one in candidate.runs]
    return max(before) >= min(after) and max(after) >= min(before)


def _invalid(measurement: Measurement, side: str) -> list[str]:
    return [
        f"{side} {one.run.label} ({one.directory}) is INVALID: {check.name}: {check.found}, limit: {check.limit}. "
        f"{check.advice}"
        for one in measurement.runs
        for check in one.run.certificate.faults
    ]
