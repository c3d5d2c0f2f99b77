"""When a history changed its level: E-divisive change points. Pure."""

import math

import numpy as np

from mlserve.stats import Floats

__all__ = ["LEAST_ENTRIES", "change_points"]

LEAST_ENTRIES = 4
"""How many entries a level needs at least to be one."""

# Of few values even the clearest step is met by 2 of all the ways to share them out between its two sides: 2 of 70 for
# four and four, 2 of 252 for five and five. No order of them could be rarer, so that the level is not held below that.
_RAREST = 3
_FEW = 20
_ORDERS_OF_FEW, _ORDERS = 4999, 999


def change_points(values: Floats, *, level: float = 0.01, seed: int = 0) -> list[int]:
    """The places in `values` [n], in time order, from which on they are distributed otherwise than before.

    Matteson and James (2014), "A nonparametric approach for multiple change point analysis of multivariate data": the
    place with the largest energy distance between what lies before it and a stretch after it is a change, where at most
    the share `level` of orders drawn at random has one so large; both parts are then searched likewise. The stretch may
    end before the values do, or a rise that is followed by a fall would hide behind it. The orders are drawn from
    `seed`, so that the same history has the same changes; drawing ends as soon as there are too many.

    Fewer than eleven values cannot show a change at 1%: eight are held to 4.3%, nine to 2.4%, ten to 1.2%.
    """
    return _search(values, level, np.random.default_rng(seed))


def _search(values: Floats, level: float, rng: np.random.Generator) -> list[int]:
    if len(values) < 2 * LEAST_ENTRIES or not float(np.ptp(values)):
        return []
    place, distance = _widest_split(values)
    if not _is_rare(values, distance, max(level, _RAREST / math.comb(len(values), len(values) // 2)), rng):
        return []
    before, after = _search(values[:place], level, rng), _search(values[place:], level, rng)
    return [*before, place, *(place + later for later in after)]


def _is_rare(values: Floats, distance: float, level: float, rng: np.random.Generator) -> bool:
    """Whether at most the share `level` of orders drawn at random is split as wide as `distance`."""
    orders = _ORDERS_OF_FEW if len(values) <= _FEW else _ORDERS
    allowed, as_wide = math.floor(level * (orders + 1)) - 1, 0
    least = distance * (1 - 1e-12)  # sums in another order differ in their last digits
    for _ in range(orders):
        as_wide += _widest_split(rng.permutation(values))[1] >= least
        if as_wide > allowed:
            return False
    return True


def _widest_split(values: Floats) -> tuple[int, float]:
    """Where the energy distance is largest, and that distance, times n m / (n + m) for n values before and m after.

    With d(A) the sum of the distances between all values of A, that is d(A and B) / (n + m) - d(A) / n - d(B) / m.
    """
    count = len(values)
    sums = np.zeros((count + 1, count + 1))
    sums[1:, 1:] = np.abs(values[:, None] - values).cumsum(0).cumsum(1)
    until = sums.diagonal()
    place, end = (side.ravel() for side in np.meshgrid(np.arange(count + 1), np.arange(count + 1), indexing="ij"))
    fits = (place >= LEAST_ENTRIES) & (end - place >= LEAST_ENTRIES)
    place, end = place[fits], end[fits]
    after = until[end] - 2 * sums[place, end] + until[place]
    distance = until[end] / end - until[place] / place - after / (end - place)
    widest = int(distance.argmax())
    return int(place[widest]), float(distance[widest])
