"""What runs say of a limit: how much worse the candidate is, on a scale on which differences add up. Pure.

Ratios add up as logarithms, shares as they are. The unit of evidence is the run, or the pair of runs taken in turn, not
the request: what a run has in common, such as where its process lies in memory, no number of requests averages out.
"""

import math
from typing import NamedTuple, Protocol

import msgspec

from mlserve.report.gating.limits import Limit
from mlserve.report.measurement import Recorded
from mlserve.runs.load import Bursts
from mlserve.stats import Gap, Interval

__all__ = ["Evidence", "Pair", "Refused", "Shares", "limit_value", "place_of", "value_of"]

_HALVINGS = 30


class Pair(msgspec.Struct, frozen=True):
    """Two runs, of the baseline and of the candidate, in turns or one after the other, in whichever order. `max_rates`
    are the highest rates at which each met its objective (requests per second), where they were sought; `rates_at_most`
    says of which that is the lowest that was tried, and failed.
    """

    baseline: Recorded
    candidate: Recorded
    max_rates: tuple[float, float] | None = None
    rates_at_most: tuple[bool, bool] = (False, False)

    @property
    def in_turns(self) -> bool:
        """Whether both were asked at once, in turns, and not one after the other."""
        shape = self.baseline.run.plan.shape
        return isinstance(shape, Bursts) and shape.throughout and self.candidate.run.plan.shape == shape


class Refused(NamedTuple):
    """Why nothing can be said yet, and how many times the runs that would take; None where more runs are no help."""

    reason: str
    enough: float | None = None


class Evidence(Protocol):
    """How much worse something is. `Estimate` is one, `Shares` another."""

    @property
    def place(self) -> float:
        """How much worse it was found."""

    def bounds(self, below: float, above: float) -> Interval:
        """What it lies between: below the first in the share `below` of cases, above the second in `above`."""

    def chance_beyond(self, limit: float) -> float:
        """How likely something that only just keeps `limit` looks at least so bad: one-sided."""

    def chance_within(self, limit: float) -> float:
        """How likely something that only just breaks `limit` looks at least so good: one-sided."""

    def after(self, factor: float) -> "Evidence":
        """What it would be with `factor` times the runs, if all stayed as it is."""


class Shares(msgspec.Struct, frozen=True):
    """Shares of failed requests. Failures come in bursts and are few, so neither runs nor requests are counted as the
    evidence: see `Gap`, whose interval is asked at the level that is wanted.
    """

    gap: Gap

    @property
    def place(self) -> float:
        """How many more of all requests fail, as a share."""
        return self.gap.found

    def bounds(self, below: float, above: float) -> Interval:
        return self.gap.interval(1 - 2 * below)[0], self.gap.interval(1 - 2 * above)[1]

    def chance_beyond(self, limit: float) -> float:
        return self._smallest_level(lambda level: self.gap.interval(1 - 2 * level)[0] > limit)

    def chance_within(self, limit: float) -> float:
        return self._smallest_level(lambda level: self.gap.interval(1 - 2 * level)[1] < limit)

    def after(self, factor: float) -> "Shares":
        (ones, values), (later_ones, later_values) = self.gap.before, self.gap.after
        drawn = self.place + (self.gap.drawn - self.place) / math.sqrt(factor)
        more = (ones * factor, round(values * factor)), (later_ones * factor, round(later_values * factor))
        return Shares(Gap(*more, drawn))

    def _smallest_level(self, clear: "_Clear") -> float:
        """The smallest level at which the bound is `clear` of the limit, by bisection over its logarithm; 0.5 for none,
        and never less than the re-drawn measurements can tell.
        """
        if not clear(0.499):
            return 0.5
        low, high = math.log(1e-9), math.log(0.499)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if clear(math.exp(middle)) else (middle, high)
        return max(math.exp(high), 1 / (len(self.gap.drawn) + 1) if len(self.gap.drawn) else 0.0)


class _Clear(Protocol):
    def __call__(self, level: float, /) -> bool: ...


def place_of(limit: Limit, value: float) -> float:
    """A ratio to the baseline, a difference in points, or a figure, on the scale: more is worse. The sign of a
    difference says already which is worse.
    """
    if limit.in_points:
        return -value if limit.metric == "accuracy" else value
    return -math.log(value) if limit.metric == "max_rate" else math.log(value)


def value_of(limit: Limit, place: float) -> float:
    """The reverse of `place_of`."""
    if limit.in_points:
        return -place if limit.metric == "accuracy" else place
    return math.exp(-place if limit.metric == "max_rate" else place)


def limit_value(limit: Limit) -> float:
    """What the change, or the figure, may be at most or at least."""
    if limit.absolute or limit.metric == "error_rate":
        return limit.tolerance
    if limit.metric == "accuracy":
        return -limit.tolerance
    return 1 - limit.tolerance if limit.metric == "max_rate" else 1 + limit.tolerance
