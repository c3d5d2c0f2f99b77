"""The answer of a report in one sentence, and how sure it is. Pure functions of measurements."""

from collections.abc import Sequence

import msgspec

from mlserve.report.comparison import Difference, compare_percentile
from mlserve.report.measurement import Measurement
from mlserve.report.names import Names
from mlserve.report.slo import Slo
from mlserve.report.summary import PERCENTILES, Percentile, Summary
from mlserve.units import format_duration, format_ratio

__all__ = ["Verdict", "judged_percentile", "keeps", "speak"]

_REFERENCE = "fp32"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What `variant` does under `load`, in one sentence, against the best that could take its place, `runner_up` ("" if
    none was measured there): `ratio` is of their latencies at `percentile`. `meets` is None without an objective.
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
    no VALID run of it, or several variants and no pick.
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
    if found.latency_s is None:
        return None
    runner_up = _runner_up(chosen, others, percentile)
    ratio = _ratio(chosen, runner_up, percentile)
    load = names.load(chosen.conditions)
    name = names.model(runner_up.identity) if runner_up and ratio else ""
    meets = keeps(summary, slo) if slo else None
    missed = f", which misses {slo.words}" if slo and not meets else ""
    return Verdict(
        sentence=_sentence(subject, load, found, slo if meets else None) + missed + _against(name, ratio),
        variant=subject,
        load=load,
        percentile=percentile,
        runner_up=name,
        ratio=ratio,
        meets=meets,
    )


def judged_percentile(slo: Slo | None) -> str:
    """The percentile that a report speaks of: the objective's, where summaries have it, else p99."""
    return slo.name if slo and slo.name in PERCENTILES else "p99"


def keeps(summary: Summary, slo: Slo) -> bool:
    """Whether the figures keep to `slo`; not where its percentile is unknown."""
    if slo.name not in PERCENTILES:
        return False
    latency_s = summary.percentile(slo.name).latency_s
    return latency_s is not None and latency_s <= slo.limit_s and summary.error_rate <= slo.max_errors


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
        kept = slo is None or keeps(summary, slo)
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


def _sentence(subject: str, load: str, found: Percentile, slo: Slo | None) -> str:
    latency_s = found.latency_s or 0.0
    bounds = (
        f" ({format_duration(found.low_s)} to {format_duration(found.high_s)})"
        if found.low_s is not None and found.high_s is not None
        else ""
    )
    if slo is None:
        share = f"{100 * PERCENTILES[found.name]:.10g}%"
        return f"{subject} answers {share} of the requests within {format_duration(latency_s)}{bounds} at {load}"
    doubt = ", though not beyond doubt" if found.high_s is None or found.high_s > slo.limit_s else ""
    limit = f"{slo.name} within {format_duration(slo.limit_s)}"
    return f"{subject} keeps {limit} at {load}{doubt}: {format_duration(latency_s)}{bounds}"


def _against(name: str, ratio: Difference | None) -> str:
    if ratio is None:
        return "."
    times = f"{format_ratio(ratio.change)} that of the runner-up {name} ({format_ratio(ratio.low)} to "
    times += f"{format_ratio(ratio.high)})"
    return f"; {times}" + (", so their order may flip." if ratio.low <= 1 <= ratio.high else ".")
