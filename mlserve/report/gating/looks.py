"""Errors are spent over the looks that a gate takes, and over the metrics that it holds (docs/decisions). Pure."""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import pairwise

import numpy as np

from mlserve.stats import Floats

__all__ = ["ERROR", "LOOKS", "Levels", "holm", "looks_up_to", "one_look", "spent_over"]

LOOKS = (4, 6, 8, 12, 16, 24, 32, 48, 64)
"""After how many pairs of runs a gate that goes on looks at them. Each look comes after at most half as much again as
the one before, or after one more block of A B B A.
"""

ERROR = 0.05
"""How often at most a family of limits errs, over all looks: in what a gate suspects, and in what it passes."""

Levels = Callable[[int], float]
"""(how many hypotheses are open) -> at what chance of error each of them may be rejected."""

_GRID = 161
_FAR = 6.0


def looks_up_to(pairs: int) -> list[int]:
    """The looks that can have been taken at `pairs` pairs."""
    return [look for look in LOOKS if look <= pairs]


def one_look(error: float) -> Levels:
    """The levels of a single look at all there is."""

    def level(open_hypotheses: int) -> float:
        return error / max(1, open_hypotheses)

    return level


def spent_over(looks: Sequence[int], error: float) -> Levels:
    """The same level at each of `looks`, so that all of them together err with `error` (Pocock 1977)."""
    return partial(_level_at_each, tuple(looks), error)


def holm(chances: Sequence[float], levels: Levels) -> list[float]:
    """At which level each of `chances`, by which hypotheses may be rejected, is held (Holm 1979).

    A hypothesis is rejected where its chance is at most its level. The likeliest to be rejected is held to the level of
    all; each that is rejected leaves its share to the others; from the first that is not, all are held to its level.
    """
    held = [0.0] * len(chances)
    open_hypotheses, stopped = len(chances), False
    for place in sorted(range(len(chances)), key=lambda place: chances[place]):
        held[place] = levels(open_hypotheses)
        stopped = stopped or chances[place] > held[place]
        open_hypotheses -= not stopped
    return held


@cache
def _level_at_each(looks: tuple[int, ...], error: float, open_hypotheses: int) -> float:
    from scipy.optimize import brentq
    from scipy.special import ndtr, ndtri

    aim = error / max(1, open_hypotheses)
    if len(looks) == 1:
        return aim
    lowest, highest = -float(ndtri(aim)), -float(ndtri(aim / len(looks)))
    bound = brentq(lambda bound: _chance_to_cross(looks, bound) - aim, lowest, highest + 0.05, xtol=1e-4)
    return float(ndtr(-bound))


def _chance_to_cross(looks: Sequence[int], bound: float) -> float:
    """How likely a mean of independent normal values lies `bound` standard errors above zero at any of `looks`.

    The density of the sums that have not crossed yet, carried from look to look by numerical integration (Armitage,
    McPherson and Rowe 1969).
    """
    from scipy.special import ndtr

    sums = _inside(looks[0], bound)
    density = np.exp(-(sums**2) / (2 * looks[0])) / math.sqrt(2 * math.pi * looks[0])
    crossed = float(ndtr(-bound))
    for before, look in pairwise(looks):
        step, more = sums[1] - sums[0], look - before
        weights = density * step
        weights[[0, -1]] /= 2
        crossed += float(weights @ ndtr((sums - bound * math.sqrt(look)) / math.sqrt(more)))
        after = _inside(look, bound)
        density = np.exp(-((after[:, None] - sums) ** 2) / (2 * more)) @ weights / math.sqrt(2 * math.pi * more)
        sums = after
    return crossed


def _inside(look: int, bound: float) -> Floats:
    return np.linspace(-_FAR, bound, _GRID) * math.sqrt(look)
