"""How fast the machine was while runs were timed, over again: what slows one run slows the next ones too."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

__all__ = ["Replay"]


class Replay:
    """Work done over time, as runs showed it one after the other, without end: after the last comes the first.

    `took_s` is how long each took, `typical_s` how long its like typically takes [n].
    """

    def __init__(self, took_s: Sequence[float], typical_s: Sequence[float]) -> None:
        """Raises ValueError for no runs, and for one that took no time."""
        if not took_s or min(*took_s, *typical_s) <= 0:
            raise ValueError("a replay needs runs that took time")
        self._at_s = [0.0, *accumulate(took_s)]
        self._done_s = [0.0, *accumulate(typical_s)]
        self.span_s = self._at_s[-1]
        """How long all of it took (seconds)."""

    def took_s(self, since_s: float, work_s: float) -> float:
        """How long what typically takes `work_s` takes, if it is begun `since_s` after the beginning."""
        at_s = since_s % self.span_s
        ahead, done_s = divmod(_along(self._at_s, self._done_s, at_s) + work_s, self._done_s[-1])
        return (ahead * self.span_s + _along(self._done_s, self._at_s, done_s)) - at_s


def _along(known: Sequence[float], wanted: Sequence[float], value: float) -> float:
    """What of `wanted` is at `value` of `known`, on a line from one to the next; both rise."""
    place = min(bisect_right(known, value), len(known) - 1)
    low, high = known[place - 1], known[place]
    return wanted[place - 1] + (value - low) / (high - low) * (wanted[place] - wanted[place - 1])
