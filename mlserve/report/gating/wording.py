"""What a verdict on one limit says, and how many more runs it would take. Pure."""

from collections.abc import Sequence

import msgspec

from mlserve.report.gating.evidence import Refused
from mlserve.report.gating.judging import Judged, described, enough_pairs, is_broken
from mlserve.report.gating.limits import FIXED
from mlserve.report.gating.looks import LOOKS
from mlserve.report.gating.result import MetricVerdict

__all__ = ["fixed_verdict", "live_verdict", "of_processes", "saved_verdict"]

_BROKEN = "is worse than the limit, and by more than noise"


def saved_verdict(judged: Judged, further: Sequence[int]) -> MetricVerdict:
    """Of runs that lie there; `further` are the numbers of runs a side that there could be."""
    if judged.verdict == "fail":
        return described(judged, f"{judged.track.limit.metric} {_BROKEN}", None)
    return _kept_or_open(judged, enough_pairs(judged, further), "like these")


def live_verdict(first: Judged, second: Judged | None) -> MetricVerdict:
    """Of the runs of a live gate, and of the fresh ones that were made where those raised a suspicion."""
    if first.verdict != "fail":
        wanted = enough_pairs(first, [look for look in LOOKS if look > first.pairs])
        confirming = wanted if wanted and is_broken(first) else 0
        return _kept_or_open(first, wanted + confirming if wanted else None, "")
    return msgspec.structs.replace(_suspected(first, second), was_suspected=True)


def of_processes(metric: MetricVerdict) -> MetricVerdict:
    """Of processes that stayed up: what further runs of them confirm is true of them, and of no other start."""
    if metric.metric in FIXED or not metric.confirmed:
        return metric
    return msgspec.structs.replace(metric, confirmed=False, reason=f"{metric.reason}, of the same processes")


def fixed_verdict(judged: Judged) -> MetricVerdict:
    """Of what belongs to a model, which no further run changes."""
    metric = judged.track.limit.metric
    if isinstance(judged.evidence, Refused):
        return described(judged, f"{metric} is unknown: {judged.evidence.reason}", None)
    if judged.verdict == "fail":
        return described(judged, f"{metric} is worse than the limit", None, confirmed=True)
    open_reason = f"{metric} may lie on either side of the limit; more rows of data would tell"
    return described(judged, "" if judged.verdict == "pass" else open_reason, None)


def _kept_or_open(judged: Judged, wanted: int | None, like: str) -> MetricVerdict:
    if judged.verdict == "pass":
        return described(judged, "", None)
    metric = judged.track.limit.metric
    more = wanted - judged.pairs if wanted else None
    told = f"about {_runs(more, 'more', like)} on each side would decide" if more else ""
    if isinstance(judged.evidence, Refused):
        reason = f"{metric} is unknown: {judged.evidence.reason}"
        return described(judged, f"{reason}; {told}" if told else reason, more)
    told = told or "it lies so close that more data is unlikely to decide"
    return described(judged, f"{metric} may lie on either side of the limit; {told}", more)


def _runs(number: int, kind: str, like: str = "") -> str:
    return f"{number} {kind} run{'s' if number != 1 else ''}{f' {like}' if like else ''}"


def _suspected(first: Judged, second: Judged | None) -> MetricVerdict:
    metric = first.track.limit.metric
    if second is None:
        wanted = enough_pairs(first, LOOKS) or LOOKS[0]
        suspicion = msgspec.structs.replace(first, verdict="inconclusive")
        reason = f"{metric} looks worse than the limit; {_runs(wanted, 'fresh')} on each side must confirm it"
        return described(suspicion, reason, wanted)
    if second.verdict == "fail":
        reason = f"{metric} {_BROKEN}; {_runs(second.pairs, 'fresh')} of each side confirm it"
        return described(second, reason, None, confirmed=True)
    if second.verdict == "pass":
        return described(second, f"{metric} looked worse than the limit; {_runs(second.pairs, 'fresh')} clear it", None)
    wanted_in_all = enough_pairs(second, [look for look in LOOKS if look > second.pairs])
    more = wanted_in_all - second.pairs if wanted_in_all else None
    told = f"about {_runs(more, 'more')} on each side would tell" if more else "more are unlikely to"
    return described(second, f"{metric} looked worse than the limit, and the fresh runs do not tell yet; {told}", more)
