"""How much worse something became, and how sure that is: an estimate with Student's tails. Pure."""

import math
from typing import NamedTuple

import msgspec

from mlserve.stats import Floats, Interval

__all__ = ["CERTAIN", "Estimate", "Spread", "of_pairs", "of_two_sides", "plus"]


class Spread(NamedTuple):
    """A variance, and of how many degrees of freedom it is known; infinite where it is not estimated."""

    variance: float
    df: float


CERTAIN = Spread(0.0, math.inf)


class Estimate(msgspec.Struct, frozen=True):
    """`place` says how much worse, on a scale on which differences add up. `repeated` is the spread of `place` as what
    was repeated shows it, `floor` the standard deviation that the noise within the runs alone explains, and `lasting`
    the spread that more of these runs would not average out. `at_least`: it is as much worse or more, so that no bound
    from above is known.

    Few repeats may by chance agree better than they can. So the floor only ever widens: a bound is the wider of both.
    """

    place: float
    repeated: Spread
    floor: float = 0.0
    lasting: Spread = CERTAIN
    at_least: bool = False

    @property
    def deviation(self) -> float:
        """The standard deviation of `place`, of all that is known to spread it."""
        return max(math.sqrt(self._all.variance), self._least)

    def bounds(self, below: float, above: float) -> Interval:
        """What it lies between: below the first in the share `below` of cases, above the second in `above`."""
        return self.place - self._reach(below), math.inf if self.at_least else self.place + self._reach(above)

    def chance_beyond(self, limit: float) -> float:
        """How likely something that only just keeps `limit` looks at least so bad: one-sided."""
        return self._tail(self.place - limit) if self.deviation else float(self.place <= limit)

    def chance_within(self, limit: float) -> float:
        """How likely something that only just breaks `limit` looks at least so good: one-sided. A figure without any
        doubt is within a limit that it is equal to.
        """
        if self.at_least:
            return 1.0
        return self._tail(limit - self.place) if self.deviation else float(self.place > limit)

    def after(self, factor: float) -> "Estimate":
        """What it would be with `factor` times the runs, if all stayed as it is."""
        repeated = Spread(self.repeated.variance / factor, (self.repeated.df + 1) * factor - 1)
        return Estimate(self.place, repeated, self.floor / math.sqrt(factor), self.lasting, self.at_least)

    @property
    def _all(self) -> Spread:
        return plus(self.repeated, self.lasting)

    @property
    def _least(self) -> float:
        return math.hypot(self.floor, math.sqrt(self.lasting.variance))

    def _reach(self, level: float) -> float:
        """How far a bound lies from `place` that is wrong in the share `level` of cases."""
        from scipy.special import ndtri, stdtrit

        student = -float(stdtrit(self._all.df, level)) * math.sqrt(self._all.variance)
        return max(student, -float(ndtri(level)) * self._least, 0.0)

    def _tail(self, distance: float) -> float:
        """How likely a place lies `distance` beyond its limit by chance: as the likelier explanation says."""
        from scipy.special import ndtr, stdtr

        if distance <= 0:
            return 1.0
        deviation = math.sqrt(self._all.variance)
        student = float(stdtr(self._all.df, -distance / deviation)) if deviation else 0.0
        return max(student, float(ndtr(-distance / self._least)) if self._least else 0.0)


def of_pairs(places: Floats, noise: Floats) -> Estimate | None:
    """The mean of `places` [n], one a pair of runs, by Student's t. `noise` [n] is the deviation that each pair has
    from within its runs, 0 where that is unknown. None for fewer than two pairs.
    """
    pairs = len(places)
    if pairs < 2:
        return None
    floor = math.sqrt(float((noise**2).sum())) / pairs
    return Estimate(float(places.mean()), Spread(float(places.var(ddof=1)) / pairs, pairs - 1), floor)


def of_two_sides(before: Floats, after: Floats, noise: float) -> Estimate | None:
    """The mean of `after` [m] less that of `before` [n], runs that are no pairs, with `noise` from within them (Welch
    1947). None where a side has fewer than two.
    """
    if min(len(before), len(after)) < 2:
        return None
    spreads = [Spread(float(side.var(ddof=1)) / len(side), len(side) - 1) for side in (before, after)]
    return Estimate(float(after.mean() - before.mean()), plus(*spreads), noise)


def plus(*spreads: Spread) -> Spread:
    """Of a sum of independent terms; the degrees of freedom by Satterthwaite (1946)."""
    variance = sum(spread.variance for spread in spreads)
    parts = sum(spread.variance**2 / spread.df for spread in spreads)
    return Spread(variance, variance**2 / parts if parts else min(spread.df for spread in spreads))
