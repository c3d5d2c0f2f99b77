"""The verdict on a candidate: of runs that lie there, and of runs that a live gate goes on making. Pure.

A wrong `fail` is what gets a gate switched off. A live gate therefore only suspects at first, with an error of 5% over
all limits and looks; fresh runs, which had no part in the suspicion, then decide with 5% of their own: 0.25% in all.
Runs that lie there cannot be made again, so a `fail` takes the evidence of 0.5% there. A `pass` is wrong in at most 5%
of candidates that are just as bad as allowed (docs/decisions).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mlserve.report.comparison import MORE_ERRORS
from mlserve.report.gating.calibration import GateCalibration
from mlserve.report.gating.estimate import CERTAIN, Spread
from mlserve.report.gating.evidence import Pair
from mlserve.report.gating.judging import Rules, judge
from mlserve.report.gating.likeness import cautions, faults, in_turn, one_measurement, unlike
from mlserve.report.gating.limits import ERROR_RATE, FIXED, Limit
from mlserve.report.gating.looks import LOOKS, Levels, looks_up_to, one_look, spent_over
from mlserve.report.gating.result import GateResult, MetricVerdict, Mode, Verdict
from mlserve.report.gating.tracks import Track, track_of_pairs, track_of_sides
from mlserve.report.gating.wording import fixed_verdict, live_verdict, saved_verdict
from mlserve.report.measurement import Measurement, Recorded

__all__ = ["Sides", "decide", "decide_pairs", "fitting", "judge_saved", "live_verdicts", "with_guard"]

_ERROR = 0.05
_ERROR_UNCONFIRMED = 0.005
_GUARD = Limit(ERROR_RATE, MORE_ERRORS)
# Past this many times the data, the honest answer is that the difference lies at the limit.
_MOST_TIMES_THE_DATA = 50


class Sides(NamedTuple):
    """The runs of both sides, and the notes on how they were made."""

    before: Sequence[Recorded]
    after: Sequence[Recorded]
    notes: Sequence[str]

    @property
    def faults(self) -> list[str]:
        """Why runs among them are INVALID."""
        return faults(self.before, "baseline") + faults(self.after, "candidate")


def decide(
    baseline: Measurement,
    candidate: Measurement,
    limits: Sequence[Limit],
    *,
    calibration: GateCalibration | None = None,
    ignore_differences: bool = False,
) -> GateResult:
    """The verdict on saved runs, from one look at all of them.

    Raises UsageError when the two were measured under unlike loads or on unlike machines, unless `ignore_differences`
    makes that a note.
    """
    notes = unlike(baseline, candidate, ignore_differences=ignore_differences) + cautions(baseline, candidate)
    calibration, unfit = fitting(calibration, candidate)
    notes += unfit
    before, after = baseline.runs, candidate.runs
    turns = in_turn(before, after)
    if not turns and min(len(before), len(after)) > 1:
        notes.append(
            "the runs were not taken in turn, so a change of the machine in between looks like one of the candidate"
        )
    pairs = [Pair(one, other) for one, other in zip(before, after, strict=True)] if turns else []

    def track(limit: Limit) -> Track:
        between, one_pair = _known(calibration, limit)
        if turns:
            return track_of_pairs(limit, pairs, between=between, one_pair=one_pair)
        return track_of_sides(limit, before, after, between)

    return judge_saved("saved", Sides(before, after, notes), limits, track, calibration)


def decide_pairs(
    pairs: Sequence[Pair],
    limits: Sequence[Limit],
    *,
    fresh: Sequence[Pair] = (),
    calibration: GateCalibration | None = None,
    ignore_differences: bool = False,
) -> GateResult:
    """The verdict of a live gate on all its runs so far, at least one pair; asked again after each block of A B B A.

    It looks only at `LOOKS`. What is `suspected` then is decided by `fresh` pairs alone, which must have been made
    after the suspicion, by servers that were started again.

    Raises UsageError as `decide` does.
    """
    everything = (*pairs, *fresh)
    before = one_measurement([pair.baseline for pair in everything], "baseline")
    after = one_measurement([pair.candidate for pair in everything], "candidate")
    notes = unlike(before, after, ignore_differences=ignore_differences) + cautions(before, after)
    calibration, unfit = fitting(calibration, after)
    sides = Sides(before.runs, after.runs, notes + unfit)

    def tracks(some: Sequence[Limit], of: Sequence[Pair]) -> list[Track]:
        known = [_known(calibration, limit) for limit in some]
        return [
            track_of_pairs(limit, of, between=between, one_pair=one_pair)
            for limit, (between, one_pair) in zip(some, known, strict=True)
        ]

    repeated = [limit for limit in with_guard(limits) if limit.metric not in FIXED]
    if sides.faults:
        repeated = [limit for limit in repeated if limit.metric == ERROR_RATE]
    metrics, suspected = live_verdicts(
        tracks(repeated, pairs), tracks(repeated, fresh) if fresh else [], (len(pairs), len(fresh)), _guards(limits)
    )
    metrics += _fixed([limit for limit in limits if limit.metric in FIXED], lambda limit: tracks([limit], pairs)[0])
    is_last_look = len(fresh if suspected else pairs) >= LOOKS[-1]
    return _result("relative", sides, metrics, calibration, suspected, is_last_look=is_last_look)


def live_verdicts(
    first: Sequence[Track], fresh: Sequence[Track], pairs: tuple[int, int], guards: Sequence[Limit] = ()
) -> tuple[list[MetricVerdict], list[str]]:
    """Verdicts on the limits of `first`, the evidence of `pairs[0]` pairs, and what of them is suspected still; `fresh`
    is the evidence of `pairs[1]` fresh pairs on the same limits, empty where there are none.
    """
    judged = judge(first, _live_rules(pairs[0]), guards)
    suspects = {one.track.limit for one in judged if one.verdict == "fail"}
    again = judge([track for track in fresh if track.limit in suspects], _live_rules(pairs[1]), guards)
    confirmed = {one.track.limit: one for one in again}
    metrics = [live_verdict(one, confirmed.get(one.track.limit)) for one in judged]
    suspected = [
        one.track.limit.metric
        for one, metric in zip(judged, metrics, strict=True)
        if one.verdict == "fail" and metric.verdict == "inconclusive"
    ]
    return metrics, suspected


def judge_saved(
    mode: Mode,
    sides: Sides,
    limits: Sequence[Limit],
    track: Callable[[Limit], Track],
    calibration: GateCalibration | None,
) -> GateResult:
    """The verdict where all evidence is there at once."""
    repeated = [limit for limit in with_guard(limits) if limit.metric not in FIXED]
    if sides.faults:
        repeated = [limit for limit in repeated if limit.metric == ERROR_RATE]
    runs = min(len(sides.before) or len(sides.after), len(sides.after))
    rules = Rules((runs,), one_look(_ERROR_UNCONFIRMED), one_look(_ERROR), runs)
    judged = judge([track(limit) for limit in repeated], rules, _guards(limits))
    further = range(runs + 1, _MOST_TIMES_THE_DATA * max(1, runs) + 1)
    metrics = [saved_verdict(one, further) for one in judged]
    metrics += _fixed([limit for limit in limits if limit.metric in FIXED], track)
    return _result(mode, sides, metrics, calibration)


def with_guard(limits: Sequence[Limit]) -> list[Limit]:
    """`limits`, errors first: a request that was not answered has no latency, so that a candidate which fails more of
    them only looks fast. They are limited even where nobody asked.
    """
    errors = [limit for limit in limits if limit.metric == ERROR_RATE]
    relative = [] if any(not limit.absolute for limit in errors) else [_GUARD]
    return [*relative, *errors, *(limit for limit in limits if limit.metric != ERROR_RATE)]


def fitting(calibration: GateCalibration | None, candidate: Measurement) -> tuple[GateCalibration | None, list[str]]:
    """`calibration` where it is of the machine that was measured on, else none, and a note that says why."""
    found = calibration.unlike(candidate.runs[0].run.machine) if calibration else []
    if not found:
        return calibration, []
    return None, [f"the calibration is of another machine ({'; '.join(found)}) and was not used; make one here"]


def _guards(limits: Sequence[Limit]) -> list[Limit]:
    return [_GUARD] if _GUARD not in limits else []


def _known(calibration: GateCalibration | None, limit: Limit) -> tuple[Spread, Spread | None]:
    if calibration is None or limit.absolute:
        return CERTAIN, None
    return calibration.between(limit.metric), calibration.one_pair(limit.metric)


def _live_rules(pairs: int) -> Rules:
    levels: Levels = spent_over(LOOKS, _ERROR)
    return Rules(looks_up_to(pairs), levels, levels, pairs)


def _fixed(limits: Sequence[Limit], track: Callable[[Limit], Track]) -> list[MetricVerdict]:
    """What no run says more of, so that there is one look and nothing to confirm."""
    rules = Rules((1,), one_look(_ERROR_UNCONFIRMED), one_look(_ERROR), 1)
    return [fixed_verdict(one) for one in judge([track(limit) for limit in limits], rules)]


def _result(
    mode: Mode,
    sides: Sides,
    metrics: Sequence[MetricVerdict],
    calibration: GateCalibration | None,
    suspected: Sequence[str] = (),
    *,
    is_last_look: bool = True,
) -> GateResult:
    invalid = sides.faults
    found = {metric.verdict for metric in metrics}
    if "fail" in found and not faults(sides.before, "baseline"):
        verdict: Verdict = "fail"
    else:
        verdict = "inconclusive" if invalid or found != {"pass"} else "pass"
    cleared = [metric.reason for metric in metrics if metric.verdict == "pass" and metric.reason]
    return GateResult(
        mode=mode,
        verdict=verdict,
        reasons=tuple(invalid + [metric.reason for metric in metrics if metric.verdict != "pass"]),
        metrics=tuple(metrics),
        notes=(*sides.notes, *cleared),
        baseline_runs=tuple(str(one.directory) for one in sides.before),
        candidate_runs=tuple(str(one.directory) for one in sides.after),
        suspected=tuple(suspected),
        settled=verdict != "inconclusive" or is_last_look,
        false_alarms=calibration.false_alarms if calibration else None,
    )
