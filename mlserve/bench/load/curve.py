"""The rate of a load over time, as straight pieces, and how many requests are due by then. Pure."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mlserve.bench.load.shape import first_rate_per_s
from mlserve.runs.load import Bursts, Plan, Ramp, Spikes, Steps

__all__ = ["Curve", "rate_curve"]

_Floats = npt.NDArray[np.float64]
# (length [s], rate where it begins [1/s], slope of the rate [1/s²])
_Piece = tuple[float, float, float]


class Curve:
    """The rate r(t) in straight pieces, from t = 0 [s] to `end_s`, and its integral L(t): the requests due before t, on
    average.

    L is 0 at 0 and never falls. Where the rate is 0 it stands still, and nothing is due.
    """

    def __init__(self, pieces: Sequence[_Piece], end_s: float) -> None:
        lengths_s, self._rates, self._slopes = np.array(pieces, np.float64).T
        self._starts_s = np.concatenate([[0.0], np.cumsum(lengths_s)[:-1]])
        lengths_s = np.clip(end_s - self._starts_s, 0.0, lengths_s)
        counts = np.cumsum(lengths_s * (self._rates + self._slopes * lengths_s / 2))
        self._counts = np.concatenate([[0.0], _whole_where_meant(counts)])

    @property
    def total(self) -> float:
        """L at the end."""
        return float(self._counts[-1])

    def instants_s(self, counts: _Floats) -> _Floats:
        """The instants t [n] where L(t) is `counts` [n], each in [0, total).

        Within a piece L(t) = L0 + r0·x + s·x²/2. Solved for x, in the form of the root that loses no digits where s is
        near 0: x = 2d / (r0 + √(r0² + 2·s·d)) with d = L(t) - L0.
        """
        # The last of the pieces that begin with the count: those before it are empty.
        piece = np.searchsorted(self._counts[:-1], counts, side="right") - 1
        rate, due = self._rates[piece], counts - self._counts[piece]
        root = np.sqrt(np.maximum(rate**2 + 2 * self._slopes[piece] * due, 0.0))
        instants: _Floats = self._starts_s[piece] + 2 * due / (rate + root)
        return instants


def rate_curve(plan: Plan) -> Curve:
    """The rate of `plan` until `plan.longest_s`. A replay has it for its warm-up only: the rest is the trace's.

    The warm-up has the first rate of the shape, whose own clock starts after it. Spikes and bursts go on for as long as
    it takes; a ramp and the last of some steps keep the rate that they came to. Bursts throughout have one clock from
    the run's first instant on.
    """
    first = first_rate_per_s(plan.shape, plan.rate_per_s)
    warm_up = (plan.warm_up_s, first, 0.0)
    if plan.arrivals == "replay":
        return Curve([warm_up], plan.warm_up_s)
    if isinstance(plan.shape, Bursts) and plan.shape.throughout:
        return Curve(_pieces(plan, plan.longest_s), plan.longest_s)
    return Curve([warm_up, *_pieces(plan, plan.longest_s - plan.warm_up_s)], plan.longest_s)


def _pieces(plan: Plan, left_s: float) -> list[_Piece]:
    rate, duration_s = plan.rate_per_s, plan.duration_s
    match plan.shape:
        case Ramp(to_per_s):
            return [(duration_s, rate, (to_per_s - rate) / duration_s), (left_s, to_per_s, 0.0)]
        case Steps(rates_per_s):
            each_s = duration_s / len(rates_per_s)
            return [*((each_s, step, 0.0) for step in rates_per_s), (left_s, rates_per_s[-1], 0.0)]
        case Spikes(factor, length_s, every_s):
            period: list[_Piece] = [(every_s - length_s, rate, 0.0), (length_s, rate * factor, 0.0)]
            return period * math.ceil(left_s / every_s)
        case Bursts(on_s, off_s):
            return [(on_s, rate, 0.0), (off_s, 0.0, 0.0)] * math.ceil(left_s / (on_s + off_s))
    return [(left_s, rate, 0.0)]


def _whole_where_meant(counts: _Floats) -> _Floats:
    """`counts` without the last digit's error of a sum: 3 requests fit into 10 ms at 300/s, not 2.9999999999999996.

    Where a rate falls to 0, that would be a request more or less, in a stretch that has none.
    """
    whole = np.rint(counts)
    meant: _Floats = np.where(np.abs(counts - whole) <= 1e-11 * np.maximum(whole, 1.0), whole, counts)
    return meant
