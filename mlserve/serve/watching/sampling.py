"""Which of many requests are looked at one by one. Pure: chance is an argument."""

import random
import sys
from collections.abc import Callable, Sequence
from math import log

__all__ = ["Allowance", "Sampler"]


class Sampler:
    """Chooses each request of a stream with probability `share`, at a cost for the chosen ones alone.

    The gaps between successes of a Bernoulli process are geometric: floor(log(1 - u) / log(1 - share)) for a uniform u
    of [0, 1) (Devroye, Non-Uniform Random Variate Generation, 1986, X.2.1).
    """

    def __init__(self, share: float, uniform: Callable[[], float] = random.random) -> None:
        self._share, self._uniform = share, uniform
        self._skip = self._gap()

    def choose(self, count: int) -> Sequence[int]:
        """The positions chosen among the next `count` requests, ascending."""
        if self._skip >= count:
            self._skip -= count
            return ()
        chosen: list[int] = []
        while self._skip < count:
            chosen.append(self._skip)
            self._skip += 1 + self._gap()
        self._skip -= count
        return chosen

    def _gap(self) -> int:
        if self._share >= 1.0:
            return 0
        if self._share <= 0.0:
            return sys.maxsize
        return int(log(1.0 - self._uniform()) / log(1.0 - self._share))


class Allowance:
    """At most `per_s` of something in any second that begins with the first of them. The caller brings the time."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._since_s, self._taken = float("-inf"), 0
        self.refused = 0

    def take(self, now_s: float) -> bool:
        """Whether one more is allowed; `refused` counts those that were not, until the caller sets it back."""
        if now_s - self._since_s >= 1.0:
            self._since_s, self._taken = now_s, 0
        if self._taken < self._per_s:
            self._taken += 1
            return True
        self.refused += 1
        return False
