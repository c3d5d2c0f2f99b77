"""Stalls: stretches without an answer while requests were due. Pure functions of rows."""

from collections.abc import Sequence

import msgspec
import numpy as np

from mlserve.report.measurement import Recorded
from mlserve.stats import quantile

__all__ = ["Stall", "find_stalls"]

# Behind a healthy server one or two requests come due between two answers; a full batch of 32 answers at once, but then
# the median latency is at least as long as the batch.
_FEWEST_DUE = 10
_MEDIANS = 5
_MOST = 20


class Stall(msgspec.Struct, frozen=True):
    """For `duration_s` from `at_s` on, since the start of the measured part, nothing was answered; `due` requests came
    due in that time.
    """

    at_s: float
    duration_s: float
    due: int


def find_stalls(runs: Sequence[Recorded]) -> tuple[Stall, ...]:
    """The longest stalls of `runs`, in time order, at most 20: ten or more requests came due, and none was answered
    for five times the median latency.
    """
    found = [stall for one in runs for stall in _stalls(one)]
    longest = sorted(found, key=lambda stall: -stall.duration_s)[:_MOST]
    return tuple(sorted(longest, key=lambda stall: stall.at_s))


def _stalls(recorded: Recorded) -> list[Stall]:
    answered_s = np.sort(recorded.answered_at_s)
    if len(answered_s) < 2:
        return []
    median_s = quantile(np.sort(recorded.samples.latency_s), 0.5)
    gaps_s = np.diff(answered_s)
    before = np.searchsorted(recorded.due_s, answered_s, side="right")
    due = np.diff(before)
    stalled = (due >= _FEWEST_DUE) & (gaps_s >= _MEDIANS * median_s)
    return [
        Stall(float(answered_s[number]), float(gaps_s[number]), int(due[number])) for number in np.flatnonzero(stalled)
    ]
