"""The answer of a report in one sentence, and how sure it is. Pure functions of measurements."""

from collections.abc import Sequence

import msgspec

from mlserve.report.choice import Choice
from mlserve.report.comparison import Difference, compare_percentile
from mlserve.report.measurement import Measurement
from mlserve.report.names import Names
from mlserve.report.slo import Slo
from mlserve.report.summary import PERCENTILES, Percentile, Summary
from mlserve.units import format_duration, format_ratio

__all__ = ["Verdict", "judged_percentile", "keeps", "speak", "speak_of_choice"]

_REFERENCE = "fp32"
_DOUBT = ", though not beyond doubt"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What `variant` does under `load`, in one sentence, against the best that could take its place, `runner_up` ("" if
    none was measured there): `ratio` is of their latencies at `percentile`. `meets` is None without an objective, and
    where neither is shown: that it is kept, or that it is not.
    """

    sentence: str
    variant: str
    load: str
    percentile: str
    runner_up: str = ""
    ratio: Difference | None = None
    meets: bool | None = None


Judged = tuple[Measurement, Summary]
"""A measurement and its figures, which take long to find."""


def speak(
    judged: Sequence[Judged], names: Names, *, pick: str, max_accuracy_loss: float, slo: Slo | None = None
) -> Verdict | None:
    """The verdict on the variant called `pick`, or on the only one where that is "". None where nothing can be said:
    no VALID run of it, several variants and no pick, or too few answers and no objective.
    """
    valid = [one for one in judged if one[0].valid]
    called = list(dict.fromkeys(names.model(one.identity) for one, _ in valid))
    subject = pick or (called[0] if len(called) == 1 else "")
    mine = [one for one in valid if names.model(one[0].identity) == subject]
    if not mine:
        return None
    percentile = judged_percentile(slo)
    others = [
        one for one in valid if names.model(one[0].identity) != subject and _could_replace(one[0], max_accuracy_loss)
    ]
    chosen, summary = _telling(mine, others, slo)
    found = summary.percentile(percentile)
    if found.latency_s is None and slo is None:
        return None
    runner_up = _runner_up(chosen, others, percentile)
    ratio = _ratio(chosen, runner_up, percentile)
    load = names.load(chosen.conditions)
    name = names.model(runner_up.identity) if runner_up and ratio else ""
    return Verdict(
        sentence=_sentence(subject, load, summary, slo) + _against(name, ratio),
        variant=subject,
        load=load,
        percentile=percentile,
        runner_up=name,
        ratio=ratio,
        meets=keeps(summary, slo) if slo else None,
    )


def speak_of_choice(judged: Sequence[Judged], names: Names, choice: Choice, slo: Slo) -> Verdict | None:
    """The verdict on what a search picked, by its own objective or another `slo`. None where it picked nothing, or the
    runs that prove it are not there. What INVALID runs gave, or a run that no other confirmed, is not shown.
    """
    mine = [one for one in judged if any(run.directory.name in choice.folders for run in one[0].runs)]
    if choice.pick is None or not mine:
        return None
    measurement, summary = mine[-1]
    load = names.load(measurement.conditions)
    meets, sentence = None, choice.sentence
    if not measurement.valid:
        sentence = f"{choice.pick.label} promises most, but its figures are of INVALID runs."
    elif choice.valid and slo == choice.slo:
        meets = True
    elif choice.valid:
        meets, sentence = keeps(summary, slo), f"{_sentence(choice.pick.label, load, summary, slo)}."
    return Verdict(
        sentence=sentence,
        variant=names.model(measurement.identity),
        load=load,
        percentile=judged_percentile(slo),
        meets=meets,
    )


def judged_percentile(slo: Slo | None) -> str:
    """The percentile that a report speaks of: the objective's, where summaries have it, else p99."""
    return slo.name if slo and slo.name in PERCENTILES else "p99"


def keeps(summary: Summary, slo: Slo) -> bool | None:
    """Whether the figures keep to `slo`. None where its percentile is unknown, unless too many requests failed."""
    if summary.error_rate > slo.max_errors:
        return False
    latency_s = summary.percentile(slo.name).latency_s if slo.name in PERCENTILES else None
    return None if latency_s is None else latency_s <= slo.limit_s


def _could_replace(measurement: Measurement, max_accuracy_loss: float) -> bool:
    accuracy = measurement.model.accuracy
    return measurement.model.variant == _REFERENCE or (accuracy is not None and accuracy.loss <= max_accuracy_loss)


def _telling(mine: Sequence[Judged], others: Sequence[Judged], slo: Slo | None) -> Judged:
    """The load to speak of: one that keeps to the objective before one that does not, one that others were measured
    under too before one that they were not, then the heaviest, then the slowest.
    """
    contested = {one.conditions for one, _ in others}

    def weight(candidate: Judged) -> tuple[bool, bool, float, float]:
        measurement, summary = candidate
        latency_s = summary.percentile("p50").latency_s or 0.0
        kept = slo is None or bool(keeps(summary, slo))
        # Repeats and protocols share a plan, but not to the last request.
        rate_per_s = float(f"{summary.offered_per_s:.2g}")
        return kept, measurement.conditions in contested, rate_per_s, latency_s

    return max(mine, key=weight)


def _runner_up(chosen: Measurement, others: Sequence[Judged], percentile: str) -> Measurement | None:
    rivals: list[tuple[float, int, Measurement]] = []
    for number, (one, summary) in enumerate(others):
        if one.conditions == chosen.conditions:
            latency_s = summary.percentile(percentile).latency_s
            rivals += [(latency_s, number, one)] if latency_s is not None else []
    return min(rivals)[2] if rivals else None


def _ratio(chosen: Measurement, runner_up: Measurement | None, percentile: str) -> Difference | None:
    if runner_up is None:
        return None
    found = compare_percentile(percentile, PERCENTILES[percentile], runner_up, chosen, 0.95)
    return found if isinstance(found, Difference) else None


def _sentence(subject: str, load: str, summary: Summary, slo: Slo | None) -> str:
    """What was found, against `slo` where there is one; without its full stop."""
    found = summary.percentile(judged_percentile(slo))
    measured = f"{format_duration(found.latency_s)}{_bounds(found)}" if found.latency_s is not None else ""
    if slo is None:
        share = f"{100 * PERCENTILES[found.name]:.10g}%"
        return f"{subject} answers {share} of the requests within {measured} at {load}"
    limit = f"{slo.name} within {format_duration(slo.limit_s)}"
    failed = f"{summary.error_rate:.2%} of the requests failed, of {100 * slo.max_errors:.3g}% allowed"
    match keeps(summary, slo):
        case None:
            why = found.refused if found.name == slo.name else f"{slo.name} is not among the figures"
            return f"{subject} is not shown to keep {limit} at {load}: {why}"
        case True:
            doubt = _DOUBT if found.high_s is None or found.high_s > slo.limit_s else ""
            return f"{subject} keeps {limit} at {load}{doubt}: {measured}"
    slow = found.low_s is not None and found.low_s > slo.limit_s
    doubt = "" if slow or summary.error_rate > slo.max_errors else _DOUBT
    faults = [measured] if found.latency_s is not None and found.latency_s > slo.limit_s else []
    faults += [failed] if summary.error_rate > slo.max_errors else []
    return f"{subject} misses {limit} at {load}{doubt}: {', and '.join(faults)}"


def _bounds(found: Percentile) -> str:
    if found.low_s is None or found.high_s is None:
        return ""
    return f" ({format_duration(found.low_s)} to {format_duration(found.high_s)})"


def _against(name: str, ratio: Difference | None) -> str:
    if ratio is None:
        return "."
    times = f"{format_ratio(ratio.change)} that of the runner-up {name} ({format_ratio(ratio.low)} to "
    times += f"{format_ratio(ratio.high)})"
    return f"; {times}" + (", so their order may flip." if ratio.low <= 1 <= ratio.high else ".")
