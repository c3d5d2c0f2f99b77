"""Whether one stretch of a load was slower than another, beyond what chance explains."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scorecard.case import Form, Outcome
from scorecard.driver import Driven
from scorecard.judging import Answered

from mlserve.stats import Blocks, measured, quantile_of, ratio_interval, split_blocks

__all__ = ["Drift", "Judged", "compare", "judge_twice", "middle", "quarters"]

_BLOCKS = 10
_RESAMPLES = 400
# Of a load.
_OPENING = 0.1


class Drift(NamedTuple):
    """`ratio` of the later p99 to the earlier, and its interval, (nan, nan) where there is too little of either; `what`
    that is: of confidence, or from the lowest to the highest of several.
    """

    ratio: float
    interval: tuple[float, float]
    what: str = "95% interval"

    def exceeds(self, limit: float, form: Form) -> bool:
        """Whether the ratio is above `limit`. A load of seconds has a p99 of a few requests: there the whole interval
        has to be, where there is one.
        """
        low = self.interval[0]
        return (low if form == "seconds" and not math.isnan(low) else self.ratio) > limit

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.ratio:.2f} times" + ("" if math.isnan(low) else f" ({self.what} {low:.2f} to {high:.2f})")


class Judged(NamedTuple):
    """What was found. `only_slow`: nothing is wrong but times, which other work on the machine makes, too."""

    outcome: Outcome
    only_slow: bool = False


def judge_twice(play: Callable[[], Judged]) -> Outcome:
    """What `play` finds; where only times were wrong, what it finds the second time: a disturbance has gone by then."""
    first = play()
    return play().outcome if first.only_slow else first.outcome


def quarters(driven: Driven) -> Drift:
    """The p99 of the last quarter of a load beside that of its first, without what connections took to open."""
    quarter_s = driven.load.seconds / 4
    good = [one for one in driven.answers if one.kind == "ok"]
    first = [one for one in good if _OPENING * driven.load.seconds <= one.due_s < quarter_s]
    last = [one for one in good if one.due_s >= 3 * quarter_s]
    return compare(first, last)


def compare(before: Sequence[Answered], after: Sequence[Answered]) -> Drift:
    """The p99 of `after` beside that of `before`; neighbours in time stand for each other, not for themselves."""
    earlier, later = _blocks(before), _blocks(after)
    if not earlier or not later:
        return Drift(math.nan, (math.nan, math.nan))
    p99 = quantile_of(0.99)
    ratio = measured([later], p99) / measured([earlier], p99)
    return Drift(ratio, ratio_interval([earlier], [later], p99, resamples=_RESAMPLES))


def middle(drifts: Sequence[Drift]) -> Drift:
    """The one in the middle of several, and the lowest and the highest in place of an interval; of one, that one."""
    if len(drifts) == 1:
        return drifts[0]
    ratios = [drift.ratio for drift in drifts]
    return Drift(float(np.median(ratios)), (min(ratios), max(ratios)), "from")


def _blocks(answers: Sequence[Answered]) -> Blocks:
    if not answers:
        return []
    due_s = np.array([one.due_s for one in answers])
    latency_s = np.array([one.latency_s for one in answers])
    at = np.searchsorted(np.sort(due_s), due_s, side="left")
    return split_blocks(latency_s, (at * _BLOCKS // len(answers)).astype(np.int64))
