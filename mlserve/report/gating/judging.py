"""From evidence to verdicts, over all limits and all looks. Pure.

Each limit has two hypotheses: that the candidate keeps it, whose rejection is a `fail`, and that it breaks it, whose
rejection is a `pass`. The first of all limits are one family, the second another; each is tested by Holm's procedure on
its own. So none of the first is rejected wrongly but in the share of gates that was allowed, and likewise the second.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from mlserve.report.gating.estimate import Estimate
from mlserve.report.gating.evidence import Evidence, Refused, limit_value, place_of, value_of
from mlserve.report.gating.limits import Limit, figure_unit
from mlserve.report.gating.looks import Levels, holm
from mlserve.report.gating.result import Finding, MetricVerdict, Verdict
from mlserve.report.gating.tracks import Track

__all__ = ["Judged", "Rules", "described", "enough_pairs", "is_broken", "judge"]

_NEVER, _AT_ONCE = 1.0, 0.0


class Rules(NamedTuple):
    """After which numbers of pairs the evidence was looked at, and at which levels a limit is broken and kept at each.
    `seen` is how many pairs there are: what they say is shown also before the first look.
    """

    looks: Sequence[int]
    breaks: Levels
    keeps: Levels
    seen: int


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """One limit: the evidence at the look that decided it, or at the last, and the levels it was held to there."""

    track: Track
    verdict: Verdict
    evidence: Evidence | Refused
    pairs: int
    below: float
    above: float


def judge(tracks: Sequence[Track], rules: Rules, guards: Sequence[Limit] = ()) -> list[Judged]:
    """A verdict on each track, in their order; the first look that decides is the one that counts.

    A limit of `guards` was not asked for: to keep it, it is enough that the candidate is found no worse.
    """
    below, above = rules.breaks(len(tracks)), rules.keeps(len(tracks))
    judged = [
        Judged(
            track=track,
            verdict="inconclusive",
            evidence=Refused("too few runs") if rules.looks else track.at(rules.seen),
            pairs=rules.seen,
            below=below,
            above=above,
        )
        for track in tracks
    ]
    for look in rules.looks:
        found = [track.at(look) for track in tracks]
        limits = [_limit_place(track.limit) for track in tracks]
        breaks = _held(judged, found, limits, rules.breaks, "fail", lambda one, limit: one.chance_beyond(limit))
        keeps = _held(judged, found, limits, rules.keeps, "pass", lambda one, limit: one.chance_within(limit))
        judged = [
            _next(one, evidence, limit, (look, broken_at, kept_at), guarded=one.track.limit in guards)
            for one, evidence, limit, broken_at, kept_at in zip(judged, found, limits, breaks, keeps, strict=True)
        ]
    return judged


def enough_pairs(judged: Judged, among: Sequence[int]) -> int | None:
    """The first of the numbers of pairs `among` that would about decide, if the figures stay as they are; None where
    none of them is likely to.
    """
    evidence = judged.evidence
    if isinstance(evidence, Refused):
        wanted = math.ceil(max(1, judged.pairs) * evidence.enough) if evidence.enough else math.inf
        return next((number for number in among if number >= wanted), None)
    limit = _limit_place(judged.track.limit)
    for number in among:
        later = evidence.after(number / judged.pairs)
        if later.chance_beyond(limit) <= judged.below or later.chance_within(limit) <= judged.above:
            return number
    return None


def is_broken(judged: Judged) -> bool:
    """Whether the figure as it is lies beyond the limit."""
    evidence = judged.evidence
    return not isinstance(evidence, Refused) and evidence.place > _limit_place(judged.track.limit)


def described(judged: Judged, reason: str, more_runs: int | None, *, confirmed: bool = False) -> MetricVerdict:
    """A verdict as plain data."""
    limit = judged.track.limit
    return MetricVerdict(
        metric=limit.metric,
        difference=_finding(judged),
        limit=limit_value(limit),
        verdict=judged.verdict,
        sense="at least" if limit.metric in ("max_rate", "accuracy") else "at most",
        unit=figure_unit(limit.metric) if limit.absolute else "points" if limit.in_points else "ratio",
        figure_unit=figure_unit(limit.metric),
        absolute=limit.absolute,
        pairs=judged.pairs,
        confirmed=confirmed,
        reason=reason,
        more_runs=more_runs,
    )


def _limit_place(limit: Limit) -> float:
    return place_of(limit, limit_value(limit))


def _held(
    judged: Sequence[Judged],
    found: Sequence[Evidence | Refused],
    limits: Sequence[float],
    levels: Levels,
    ending: Verdict,
    chance: Callable[[Evidence, float], float],
) -> list[float]:
    """The level that each is held to at this look, in the family whose rejection is `ending`; 0 for one that was
    rejected at an earlier look.
    """
    open_ones = [number for number, one in enumerate(judged) if one.verdict != ending]
    chances = [
        _NEVER if isinstance(evidence := found[number], Refused) else chance(evidence, limits[number])
        for number in open_ones
    ]
    held = dict(zip(open_ones, holm(chances, levels), strict=True))
    return [held.get(number, 0.0) for number in range(len(judged))]


def _next(
    judged: Judged, evidence: Evidence | Refused, limit: float, held: tuple[int, float, float], *, guarded: bool
) -> Judged:
    look, below, above = held
    verdict: Verdict = "inconclusive"
    if not isinstance(evidence, Refused):
        if evidence.chance_beyond(limit) <= below:
            verdict = "fail"
        elif evidence.chance_within(limit) <= above or (guarded and evidence.place <= 0):
            verdict = "pass"
    if judged.verdict == "fail" or (judged.verdict == "pass" and verdict != "fail"):
        return judged
    return Judged(
        track=judged.track,
        verdict=verdict,
        evidence=evidence,
        pairs=look,
        below=below or judged.below,
        above=above or judged.above,
    )


def _finding(judged: Judged) -> Finding | None:
    evidence, limit = judged.evidence, judged.track.limit
    before, after = judged.track.figures(judged.pairs)
    if isinstance(evidence, Refused) or after is None:
        return None
    ends = [value_of(limit, end) for end in evidence.bounds(judged.below, judged.above)]
    return Finding(
        baseline=None if limit.absolute else before,
        candidate=after,
        change=value_of(limit, evidence.place),
        low=min(ends),
        high=max(ends),
        spread=evidence.deviation if isinstance(evidence, Estimate) else None,
    )
