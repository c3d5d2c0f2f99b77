"""The verdict on a candidate: of runs that lie there, and of runs that a live gate goes on making. Pure.

A wrong `fail` is what gets a gate switched off. A live gate therefore only suspects at first, with an error of 5% over
all limits and looks; fresh runs, which had no part in the suspicion, then decide with 5% of their own: 0.25% in all.
Runs that lie there cannot be made again, so a `fail` takes the evidence of 0.5% there. A `pass` is wrong in at most 5%
of candidates that are just as bad as allowed (docs/decisions).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from mlserve.report.comparison import MORE_ERRORS
from mlserve.report.gating.blame import borne, is_spoilt, machine_faults, own_faults, told_of, tolerated
from mlserve.report.gating.calibration import GateCalibration, unfit
from mlserve.report.gating.estimate import CERTAIN, Spread, plus
from mlserve.report.gating.evidence import Pair, Refused
from mlserve.report.gating.figures import Figures
from mlserve.report.gating.judging import Rules, judge
from mlserve.report.gating.likeness import cautions, faults, in_turn, one_measurement, unlike
from mlserve.report.gating.limits import ERROR_RATE, FIXED, Limit
from mlserve.report.gating.looks import ERROR, LOOKS, Levels, looks_up_to, one_look, spent_over
from mlserve.report.gating.result import About, GateResult, MetricVerdict, Mode, Verdict
from mlserve.report.gating.tracks import FixedTrack, Track, rate_floor, track_of_pairs, track_of_sides
from mlserve.report.gating.wording import fixed_verdict, live_verdict, of_processes, saved_verdict
from mlserve.report.measurement import Measurement, Recorded

__all__ = [
    "Sides",
    "broken",
    "decide",
    "decide_pairs",
    "fitting",
    "judge_saved",
    "live_verdicts",
    "with_earlier",
    "with_guard",
    "with_hiccups",
]

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
    def standing(self) -> "_Standing":
        """What their certificates say. Where nothing is wrong with the baseline, what the candidate does by itself is
        evidence of it.
        """
        before, after = faults(self.before, "baseline"), faults(self.after, "candidate")
        own = [one for one in self.after if own_faults(one) and not machine_faults(one)]
        if before or len(own) < len([one for one in self.after if not one.run.certificate.valid]):
            return _Standing(invalid=before + after, base_fails=bool(before))
        bad = [f"the candidate is INVALID by its own doing: {reason}" for reason in after]
        return _Standing(notes=bad, refused=[] if tolerated(len(own), len(self.after)) else bad)


class _Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What the certificates of the runs allow: `invalid` says which are disturbed, so that there is no pass, `refused`
    why the candidate cannot pass although they are not, and `base_fails` keeps it from failing.
    """

    invalid: Sequence[str] = ()
    refused: Sequence[str] = ()
    notes: Sequence[str] = ()
    base_fails: bool = False


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
    figure: Figures = Figures(),  # noqa: B008  # it holds nothing
    resolution: float = 0.05,
    kept: bool = False,
) -> GateResult:
    """The verdict of a live gate on all its runs so far, at least one pair; asked again after each block of A B B A.

    It looks only at `LOOKS`. What is `suspected` then is decided by `fresh` pairs alone, which must have been made
    after the suspicion, by servers that were started again. Who asks again hands the same `KeptFigures` over as
    `figure`. `resolution` is how near a highest rate was sought. `kept`: all runs of a side asked the same process, so
    that they show nothing of how much processes differ, but what the calibration knows of it.

    Raises UsageError when the two were measured under unlike loads or on unlike machines.
    """
    everything = (*pairs, *fresh)
    before = one_measurement([pair.baseline for pair in everything], "baseline")
    after = one_measurement([pair.candidate for pair in everything], "candidate")
    notes = unlike(before, after, ignore_differences=False) + cautions(before, after)
    calibration, why_unfit = fitting(calibration, after, kept=kept, limits=limits)
    sides = Sides(before.runs, after.runs, notes + why_unfit)
    first, again = ([pair for pair in some if not is_spoilt(pair, limits)] for some in (pairs, fresh))

    def tracks(some: Sequence[Limit], of: Sequence[Pair]) -> list[Track]:
        if not of:
            return [FixedTrack(limit, Refused("no pair of runs can be believed"), None, None) for limit in some]
        known = [_known(calibration, limit, resolution) for limit in some]
        return [
            track_of_pairs(limit, of, between=between, one_pair=one_pair, figure=figure)
            for limit, (between, one_pair) in zip(some, known, strict=True)
        ]

    repeated = [limit for limit in with_guard(limits) if limit.metric not in FIXED]
    metrics, suspected = live_verdicts(
        tracks(repeated, first), tracks(repeated, again) if again else [], (len(first), len(again)), _guards(limits)
    )
    metrics += _fixed([limit for limit in limits if limit.metric in FIXED], lambda limit: tracks([limit], pairs)[0])
    about: About = "processes" if kept and (calibration is None or not calibration.kept) else "servers"
    if about == "processes":
        metrics = [of_processes(metric) for metric in metrics]
    is_last_look = len(again if suspected else first) >= LOOKS[-1]
    result = _result(sides, _standing(everything, limits), metrics, calibration, suspected, is_last_look=is_last_look)
    return msgspec.structs.replace(result, mode="relative", about=about)


def broken(result: GateResult | None, breaks: Sequence[str]) -> GateResult:
    """The `fail` of a candidate that does not work where the base does, as each of `breaks` says; `result` is what the
    runs that there are say of the limits, None without any.
    """
    known = result or GateResult(
        mode="relative", verdict="fail", reasons=(), metrics=(), notes=(), baseline_runs=(), candidate_runs=()
    )
    reason = f"{breaks[0]}; the base works, and another start confirms it: {breaks[-1]}"
    return msgspec.structs.replace(
        known, verdict="fail", settled=True, suspected=(), broken=breaks[0], reasons=(reason, *known.reasons)
    )


def with_hiccups(result: GateResult, hiccups: Sequence[str]) -> GateResult:
    """`result`, with a note of each time that the candidate did not work, and did when it was started again: no
    verdict follows from it, but whoever merges it should know.
    """
    notes = tuple(f"{how}; it worked when it was started again" for how in hiccups)
    return msgspec.structs.replace(result, notes=(*result.notes, *notes))


def with_earlier(result: GateResult, pairs: int, directory: Path) -> GateResult:
    """`result`, with a note of the pairs that an earlier call made: what changed since, and no digest shows, is not in
    them.
    """
    if not pairs:
        return result
    made = f"{pairs} pair was" if pairs == 1 else f"{pairs} pairs were"
    note = f"{made} made by an earlier call, and read from {directory}"
    return msgspec.structs.replace(result, notes=(*result.notes, note))


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
    standing = sides.standing
    invalid = Refused("runs that it would rest on are INVALID")
    runs = min(len(sides.before) or len(sides.after), len(sides.after))
    rules = Rules((runs,), one_look(_ERROR_UNCONFIRMED), one_look(ERROR), runs)
    tracks = [
        FixedTrack(limit, invalid, None, None) if standing.invalid and limit.metric != ERROR_RATE else track(limit)
        for limit in repeated
    ]
    judged = judge(tracks, rules, _guards(limits))
    further = range(runs + 1, _MOST_TIMES_THE_DATA * max(1, runs) + 1)
    metrics = [saved_verdict(one, further) for one in judged]
    metrics += _fixed([limit for limit in limits if limit.metric in FIXED], track)
    return msgspec.structs.replace(_result(sides, standing, metrics, calibration), mode=mode)


def with_guard(limits: Sequence[Limit]) -> list[Limit]:
    """`limits`, errors first: a request that was not answered has no latency, so that a candidate which fails more of
    them only looks fast. They are limited even where nobody asked.
    """
    errors = [limit for limit in limits if limit.metric == ERROR_RATE]
    relative = [] if any(not limit.absolute for limit in errors) else [_GUARD]
    return [*relative, *errors, *(limit for limit in limits if limit.metric != ERROR_RATE)]


def fitting(
    calibration: GateCalibration | None, candidate: Measurement, *, kept: bool = False, limits: Sequence[Limit] = ()
) -> tuple[GateCalibration | None, list[str]]:
    """`calibration` where it is of what was measured now: machine, model, load, and whether the servers were kept up;
    else none, and a note that says why. That its gates had other `limits` is a note only.
    """
    if calibration is None:
        return None, []
    why = unfit(calibration, candidate, kept=kept)
    if why:
        return None, [f"the calibration {why} and was not used; make one of this"]
    return calibration, calibration.cautions(limits)


def _guards(limits: Sequence[Limit]) -> list[Limit]:
    return [_GUARD] if _GUARD not in limits else []


def _known(calibration: GateCalibration | None, limit: Limit, resolution: float = 0.0) -> tuple[Spread, Spread | None]:
    lasting = rate_floor(limit, resolution) if limit.metric == "max_rate" else CERTAIN
    if calibration is None or limit.absolute:
        return lasting, None
    return plus(lasting, calibration.between(limit.metric)), calibration.one_pair(limit.metric)


def _standing(pairs: Sequence[Pair], limits: Sequence[Limit]) -> _Standing:
    """What the certificates of runs taken in turn allow: what either side alone did counts, and is told."""
    spoilt = [pair for pair in pairs if is_spoilt(pair, limits)]
    others = [pair for pair in pairs if not is_spoilt(pair, limits)]
    bad = {
        "base": [pair.baseline for pair in others if own_faults(pair.baseline)],
        "candidate": [pair.candidate for pair in others if own_faults(pair.candidate)],
    }
    told = {
        side: told_of(runs, len(pairs), side, "candidate" if side == "base" else "base")
        for side, runs in bad.items()
        if runs
    }
    beyond = [told[side] for side, runs in bad.items() if not tolerated(len(runs), len(pairs))]
    return _Standing(
        invalid=faults([pair.baseline for pair in spoilt], "baseline")
        + faults([pair.candidate for pair in spoilt], "candidate"),
        refused=beyond,
        notes=[one for one in (borne(others, limits), *told.values()) if one and one not in beyond],
        base_fails=not tolerated(len(bad["base"]), len(pairs)),
    )


def _live_rules(pairs: int) -> Rules:
    levels: Levels = spent_over(LOOKS, ERROR)
    return Rules(looks_up_to(pairs), levels, levels, pairs)


def _fixed(limits: Sequence[Limit], track: Callable[[Limit], Track]) -> list[MetricVerdict]:
    """What no run says more of, so that there is one look and nothing to confirm."""
    rules = Rules((1,), one_look(_ERROR_UNCONFIRMED), one_look(ERROR), 1)
    return [fixed_verdict(one) for one in judge([track(limit) for limit in limits], rules)]


def _result(
    sides: Sides,
    standing: _Standing,
    metrics: Sequence[MetricVerdict],
    calibration: GateCalibration | None,
    suspected: Sequence[str] = (),
    *,
    is_last_look: bool = True,
) -> GateResult:
    invalid = [*standing.invalid, *standing.refused]
    metrics = [_unproven(metric) for metric in metrics] if standing.refused else metrics
    found = {metric.verdict for metric in metrics}
    if "fail" in found and not standing.base_fails:
        verdict: Verdict = "fail"
    else:
        verdict = "inconclusive" if invalid or found != {"pass"} else "pass"
    notes = [metric.reason for metric in metrics if metric.verdict == "pass" and metric.reason]
    if any(map(_kept_by_guard, metrics)):
        notes.append("nobody limited error_rate, so that it passes where no more requests were found to fail")
    return GateResult(
        verdict=verdict,
        reasons=tuple(invalid + [metric.reason for metric in metrics if metric.verdict != "pass"]),
        metrics=tuple(metrics),
        notes=(*sides.notes, *standing.notes, *notes),
        baseline_runs=tuple(str(one.directory) for one in sides.before),
        candidate_runs=tuple(str(one.directory) for one in sides.after),
        suspected=tuple(suspected),
        settled=verdict != "inconclusive" or is_last_look,
        false_alarms=calibration.false_alarms if calibration else None,
    )


def _unproven(metric: MetricVerdict) -> MetricVerdict:
    """Of a server that does not bear its load, nothing but what it failed is worth a verdict that it is good."""
    if metric.verdict != "pass" or metric.metric in (ERROR_RATE, *FIXED):
        return metric
    reason = f"{metric.metric} is within the limit in runs that are INVALID, which shows nothing"
    return msgspec.structs.replace(metric, verdict="inconclusive", reason=reason)


def _kept_by_guard(metric: MetricVerdict) -> bool:
    """Whether it passed although its interval reaches beyond its limit."""
    found = metric.difference
    reaches_beyond = found is not None and found.high is not None and found.high > metric.limit
    return metric.metric == ERROR_RATE and metric.verdict == "pass" and reaches_beyond
