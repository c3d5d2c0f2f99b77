"""Of each limit, the evidence that a number of pairs of runs, or all of the runs, hold of it. Pure."""

import math
from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np

from mlserve.model.artifact import Accuracy
from mlserve.report.gating.estimate import CERTAIN, Estimate, Spread, of_pairs, of_two_sides, plus
from mlserve.report.gating.evidence import Evidence, Pair, Refused, Shares, place_of
from mlserve.report.gating.figures import Figures, RunFigure, figure_of
from mlserve.report.gating.limits import ERROR_RATE, FIXED, Limit
from mlserve.report.measurement import Recorded
from mlserve.runs.percentiles import too_few
from mlserve.runs.run import ServedModel
from mlserve.stats import Floats, minimum_samples, share_difference

__all__ = [
    "ErrorTrack",
    "FixedTrack",
    "RatioTrack",
    "Track",
    "loss_spread",
    "rate_floor",
    "track_of_pairs",
    "track_of_sides",
]

_RESAMPLES = 2000
_Z95 = 1.959963984540054
# What is an error, so that less of it is better and no figure of it is a floor.
_ERRORS = ("mae",)


class Track(Protocol):
    """The evidence on one limit, as it grew."""

    @property
    def limit(self) -> Limit:
        """What it is evidence of."""

    def at(self, pairs: int) -> Evidence | Refused:
        """What the first `pairs` pairs say."""

    def figures(self, pairs: int) -> tuple[float | None, float | None]:
        """Baseline and candidate over the first `pairs` pairs; None where there is none."""


class RatioTrack(msgspec.Struct, frozen=True, kw_only=True):
    """Figures above zero, one a run. `before` is empty for a limit of the candidate alone.

    `noises` is the noise of each pair where it is not that of its two runs apart.

    `between` is what gates, or sessions, of the same server differ by although their runs agree; `one_pair` what single
    pairs of the same server differ by, where that is known from elsewhere.
    """

    limit: Limit
    before: tuple[RunFigure, ...]
    after: tuple[RunFigure, ...]
    answers: tuple[tuple[int, int], ...] = ()
    in_pairs: bool = True
    noises: tuple[float | None, ...] = ()
    between: Spread = CERTAIN
    one_pair: Spread | None = None

    def at(self, pairs: int) -> Evidence | Refused:
        before, after = self._until(pairs)
        refused = next((one.refused for one in (*before, *after) if one.refused), "")
        if refused:
            return Refused(refused)
        if any(one.at_most for one in before):
            return Refused(
                "not even the base met the objective at any rate that was tried; give a wider --slo, or longer runs"
            )
        few = self._too_few(pairs)
        if few:
            return few
        found = self._estimate(before, after)
        if found is None:
            return Refused("one run says nothing of how much runs differ", 4.0 / max(1, len(after)))
        return msgspec.structs.replace(found, lasting=self.between, at_least=any(one.at_most for one in after))

    def figures(self, pairs: int) -> tuple[float | None, float | None]:
        before, after = self._until(pairs)
        return _typical(before), _typical(after)

    def _until(self, pairs: int) -> tuple[tuple[RunFigure, ...], tuple[RunFigure, ...]]:
        return (self.before[:pairs], self.after[:pairs]) if self.in_pairs else (self.before, self.after)

    def _too_few(self, pairs: int) -> Refused | None:
        if self.limit.q is None or not self.answers:
            return None
        counts = self.answers[:pairs] if self.in_pairs else self.answers
        sides = {"baseline": sum(one for one, _ in counts), "candidate": sum(other for _, other in counts)}
        for side, answered in list(sides.items())[int(self.limit.absolute) :]:
            refused = too_few(self.limit.metric, self.limit.q, answered)
            if refused:
                enough = minimum_samples(self.limit.q) / answered if answered else None
                return Refused(f"{side}: {refused}", enough)
        return None

    def _estimate(self, before: Sequence[RunFigure], after: Sequence[RunFigure]) -> Estimate | None:
        places_after, noise_after = self._places(after)
        if self.limit.absolute:
            return of_pairs(places_after, noise_after)
        places_before, noise_before = self._places(before)
        if not self.in_pairs:
            noise = math.hypot(_noise_of_mean(noise_before), _noise_of_mean(noise_after))
            found = of_two_sides(places_before, places_after, noise)
            if found is None and self.between.variance:  # the runs alone show nothing of it, but it is known
                return Estimate(float(places_after.mean() - places_before.mean()), CERTAIN, noise)
            return found
        places, noises = places_after - places_before, self._of_each(np.hypot(noise_before, noise_after))
        if len(places) == 1 and self.one_pair is not None:
            return Estimate(float(places[0]), self.one_pair, float(noises[0]))
        return of_pairs(places, noises)

    def _of_each(self, apart: Floats) -> Floats:
        """The noise of each pair [n]."""
        known = self.noises[: len(apart)] or [None] * len(apart)
        return np.array([each if one is None else one for one, each in zip(known, apart, strict=True)])

    def _places(self, figures: Sequence[RunFigure]) -> tuple[Floats, Floats]:
        places = np.array([place_of(self.limit, one.value) for one in figures], np.float64)
        return places, np.array([one.noise for one in figures], np.float64)


class ErrorTrack(msgspec.Struct, frozen=True):
    """Requests that failed, over all runs; INVALID ones too, for that a request was not answered is seen whatever the
    clocks are worth.
    """

    limit: Limit
    before: tuple[Recorded, ...]
    after: tuple[Recorded, ...]
    in_pairs: bool = True

    def at(self, pairs: int) -> Evidence | Refused:
        before, after = self._until(pairs)
        blocks = None if self.limit.absolute else [one.failure_blocks for one in before]
        gap = share_difference(blocks, [one.failure_blocks for one in after], resamples=_RESAMPLES)
        return Refused("no request was due") if math.isnan(gap.found) else Shares(gap)

    def figures(self, pairs: int) -> tuple[float | None, float | None]:
        before, after = self._until(pairs)
        return _share(before), _share(after)

    def _until(self, pairs: int) -> tuple[tuple[Recorded, ...], tuple[Recorded, ...]]:
        return (self.before[:pairs], self.after[:pairs]) if self.in_pairs else (self.before, self.after)


class FixedTrack(msgspec.Struct, frozen=True):
    """What belongs to the models: no run says more of it."""

    limit: Limit
    found: Estimate | Refused
    before: float | None
    after: float | None

    def at(self, pairs: int) -> Evidence | Refused:
        return self.found

    def figures(self, pairs: int) -> tuple[float | None, float | None]:
        return self.before, self.after


def track_of_pairs(
    limit: Limit,
    pairs: Sequence[Pair],
    *,
    between: Spread = CERTAIN,
    one_pair: Spread | None = None,
    figure: Figures = Figures(),  # noqa: B008  # it holds nothing
) -> Track:
    """The evidence of runs taken in turn."""
    before, after = tuple(pair.baseline for pair in pairs), tuple(pair.candidate for pair in pairs)
    if limit.metric == ERROR_RATE:
        return ErrorTrack(limit, before, after)
    if limit.metric in FIXED:
        return _fixed(limit, before[0].run.model, after[0].run.model)
    return RatioTrack(
        limit=limit,
        before=() if limit.absolute else _figures(limit, pairs, 0, figure),
        after=_figures(limit, pairs, 1, figure),
        answers=tuple((_answers(pair.baseline), _answers(pair.candidate)) for pair in pairs),
        noises=() if limit.absolute else tuple(figure.noise(limit, pair.baseline, pair.candidate) for pair in pairs),
        between=between,
        one_pair=one_pair,
    )


def rate_floor(limit: Limit, resolution: float) -> Spread:
    """What a highest rate, sought to within `resolution`, or the ratio of two, may be off by: it lies anywhere in so
    wide a step, and as the steps are the same in every search, no number of them averages that out.
    """
    return Spread((1 if limit.absolute else 2) * math.log1p(resolution) ** 2 / 12, math.inf)


def track_of_sides(
    limit: Limit, before: Sequence[Recorded], after: Sequence[Recorded], between: Spread = CERTAIN
) -> Track:
    """The evidence of runs that were not taken in turn, or of which one side has more; `before` may be empty for a
    limit of the candidate alone.
    """
    if limit.metric == ERROR_RATE:
        return ErrorTrack(limit, tuple(before), tuple(after), in_pairs=False)
    if limit.metric in FIXED:
        return _fixed(limit, before[0].run.model if before else None, after[0].run.model)
    return RatioTrack(
        limit=limit,
        before=() if limit.absolute else tuple(figure_of(limit, one) for one in before),
        after=tuple(figure_of(limit, one) for one in after),
        answers=((sum(map(_answers, before)), sum(map(_answers, after))),),
        in_pairs=False,
        between=between,
    )


def _figures(limit: Limit, pairs: Sequence[Pair], side: int, figure: Figures) -> tuple[RunFigure, ...]:
    """Those of one side, 0 for the baseline; what is no rate is at most nothing."""
    found = []
    for pair in pairs:
        rate = pair.max_rates[side] if pair.max_rates else None
        at_most = limit.metric == "max_rate" and pair.rates_at_most[side]
        found.append(figure(limit, (pair.baseline, pair.candidate)[side], rate)._replace(at_most=at_most))
    return tuple(found)


def _fixed(limit: Limit, before: ServedModel | None, after: ServedModel) -> FixedTrack:
    """`before` is None where a limit of the candidate alone is held against nothing."""
    if limit.metric == "size":
        return _size(limit, before.size_bytes if before else None, after.size_bytes)
    values = [model.accuracy.value if model and model.accuracy else None for model in (before, after)]
    found = _accuracy_kept(limit, after) if before is None or limit.absolute else _accuracy_lost(before, after)
    return FixedTrack(limit, found, *values)


def _size(limit: Limit, before: int | None, after: int | None) -> FixedTrack:
    found: Estimate | Refused = Refused("the size of the model is known only for a version of a store")
    if after and limit.absolute:
        found = Estimate(place_of(limit, after), CERTAIN)
    elif after and before:
        found = Estimate(place_of(limit, after / before), CERTAIN)
    return FixedTrack(limit, found, before, after)


def _accuracy_kept(limit: Limit, after: ServedModel) -> Estimate | Refused:
    if after.accuracy is None:
        return Refused("the candidate has no measured accuracy; measure it with mlserve optimize --data")
    if after.accuracy.metric in _ERRORS:
        return Refused(f"{after.accuracy.metric} is an error, of which less is better; limit its growth: accuracy=1%")
    spread = loss_spread(after.accuracy)
    return spread if isinstance(spread, Refused) else Estimate(place_of(limit, after.accuracy.value), spread)


def _accuracy_lost(before: ServedModel, after: ServedModel) -> Estimate | Refused:
    """What the candidate lost more than the baseline of what both were held against. The rows are the same on both
    sides, so what is said of the difference is on the careful side.
    """
    if after.sha256 and after.sha256 == before.sha256:
        return Estimate(0.0, CERTAIN)
    lost = after.accuracy
    if lost is None:
        return Refused("the candidate has no measured accuracy; measure it with mlserve optimize --data")
    spread = loss_spread(lost)
    if isinstance(spread, Refused):
        return spread
    if before.variant == lost.reference:
        return Estimate(lost.loss, spread)
    base = before.accuracy
    if base is None or (base.metric, base.data, base.reference) != (lost.metric, lost.data, lost.reference):
        return Refused("the accuracies of both were not measured alike: metric, data and reference must agree")
    other = loss_spread(base)
    return other if isinstance(other, Refused) else Estimate(lost.loss - base.loss, plus(spread, other))


def loss_spread(accuracy: Accuracy) -> Spread | Refused:
    """How far a measured loss of accuracy may be off, by the chance of the rows that it was measured on."""
    if accuracy.loss_low is None or accuracy.loss_high is None:
        return Refused("an accuracy has no interval; measure it again with mlserve optimize --data")
    return Spread(((accuracy.loss_high - accuracy.loss_low) / (2 * _Z95)) ** 2, math.inf)


def _typical(figures: Sequence[RunFigure]) -> float | None:
    """The geometric mean over the runs, so that the ratio of two is the ratio that is judged."""
    if not figures or any(one.refused for one in figures):
        return None
    return math.exp(sum(math.log(one.value) for one in figures) / len(figures))


def _noise_of_mean(noise: Floats) -> float:
    return math.sqrt(float((noise**2).sum())) / max(1, len(noise))


def _share(runs: Sequence[Recorded]) -> float | None:
    due = sum(len(one.samples) for one in runs)
    return sum(int((~one.samples.ok).sum()) for one in runs) / due if due else None


def _answers(recorded: Recorded) -> int:
    return int(recorded.samples.ok.sum())
