"""Where the start-up of a run ends: the change point between requests that are slower than later ones, and the rest.

A server that has just started is slow for a while: it compiles, allocates, fills its caches, and opens connections.
A warm-up of a fixed length cuts too much of it or too little. Pure functions of rows.
"""

import math

import msgspec
import numpy as np
import numpy.typing as npt

from mlserve.runs.samples import Samples
from mlserve.stats import Floats, quantile
from mlserve.units import format_duration

__all__ = ["WarmUp", "find_warm_up"]

# A block is short, so that a start-up of a tenth of a second is seen, and yet more than one request.
_BLOCK_ROWS, _MOST_BLOCKS = 5, 1000
_FEWEST_BLOCKS = 20
_MOST_RANKS = 20_000
# Each window is compared with the same stretch of the reference, of which there must be so many.
_FEWEST_WINDOWS = 10
_MANY_WINDOWS = 100
# Several lengths of window, of two signals, are looked at: together they alarm in a few percent of steady runs.
_CHANCE = 0.0005
# Smaller differences do not matter to any figure: of latency, and of the share of slow requests.
_SLOWER_SHARE, _SLOWER_S, _SHARE_OF_SLOW = 0.05, 1e-4, 0.05
_TAIL = 0.9
# Whether latency falls on and on is asked where the start-up takes longer than this share of the run.
_LONG = 1 / 8
_FALLS_ON, _STILL_FALLS, _AS_MUCH = 0.03, 0.1, 0.5
_NORMAL_QUARTILE = 0.6745  # of a normal distribution: from the median to it, in standard deviations
_QUARTILE = 0.75


class WarmUp(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. `end_s`, since the run's first instant, is where it may be cut: 0 where nothing was `found`.

    Not `over`: requests still got quicker at the latest instant at which the search may cut, which `end_s` then is, so
    that what follows holds warm-up too.
    """

    end_s: float
    found: bool
    over: bool
    reason: str


def find_warm_up(samples: Samples, most_s: float, until_s: float = math.inf) -> WarmUp:
    """The end of the start-up in `samples`, all the rows of a run; at most `most_s`, half of the run. Rows that were
    due at `until_s` or later are not looked at: not all of them may be there yet.

    What is due from `most_s` on is the reference: it shows how slow requests are, and how much that wanders. The
    start-up ends at the first block of a few requests from which on nothing is slower than it, whether over that block
    or over any longer window that begins there. Slower means a difference that chance makes in one window of a
    thousand, and that matters: by the rank in the reference, so that a stall counts for no more than its requests; or
    by the share of requests beyond its 90th percentile, so that a start-up that slows a few of them is seen too. The
    spread is that of windows, not of requests, and so holds what neighbours have in common. A failed or dropped
    request is slower than any other.

    A queue that grows from the first request is no start-up, for it gets slower; neither is latency that falls as much
    in the second half as in the first. Both are left to steadiness.
    """
    rows = int(np.searchsorted(samples.scheduled_s, until_s))
    latency_s = np.where(samples.ok, samples.done_s - samples.scheduled_s, math.inf)[:rows]
    due_s = samples.scheduled_s[:rows]
    reference_s = latency_s[due_s >= most_s]
    block_rows = max(_BLOCK_ROWS, math.ceil(len(due_s) / _MOST_BLOCKS))
    blocks = len(due_s) // block_rows
    if blocks < _FEWEST_BLOCKS or len(reference_s) < _FEWEST_BLOCKS // 2 * block_rows:
        needed = _FEWEST_BLOCKS * _BLOCK_ROWS
        return WarmUp(end_s=0.0, found=False, over=True, reason=f"too few requests to tell, it takes {needed}")
    reference = np.sort(reference_s[:: math.ceil(len(reference_s) / _MOST_RANKS)])
    # What is within the least difference that matters of the reference must not count as slower than it.
    relevant_s = np.minimum(latency_s / (1 + _SLOWER_SHARE), latency_s - _SLOWER_S)
    rank = np.searchsorted(reference, relevant_s, side="right") / len(reference)
    beyond = (relevant_s > reference[math.ceil(_TAIL * len(reference)) - 1]).astype(np.float64)
    first = blocks - len(reference_s) // block_rows
    slow = _slow(_block_means(rank, block_rows), first) | _slow(_block_means(beyond, block_rows), first)
    slow_blocks = blocks if slow.all() else int(np.argmin(slow))
    slow_rows = slow_blocks * block_rows or _slow_first_rows(relevant_s, reference_s.max(), block_rows)
    if not slow_rows:
        return _NONE
    end_s = float(due_s[slow_rows]) if slow_rows < len(due_s) else most_s
    return _judged(end_s, most_s, due_s[-1], latency_s[samples.ok[:rows]])


_NONE = WarmUp(end_s=0.0, found=False, over=True, reason="the first requests were no slower than later ones")
_FALLS = WarmUp(end_s=0.0, found=False, over=True, reason="latency falls through the whole run, which is no warm-up")


def _block_means(signal: Floats, rows: int) -> Floats:
    blocks = len(signal) // rows
    means: Floats = signal[: blocks * rows].reshape(blocks, rows).mean(axis=1)
    return means


def _slow(means: Floats, first: int) -> npt.NDArray[np.bool_]:
    """Whether any window that begins at each block is slower than windows in the reference, the blocks from `first`."""
    slow = np.zeros(len(means), np.bool_)
    sums = np.concatenate([[0.0], np.cumsum(means)])
    width = 1
    while (len(means) - first) // width >= _FEWEST_WINDOWS:
        window = (sums[width:] - sums[:-width]) / width
        slow[: len(window)] |= window > _most(window[first:], (len(means) - first) / width)
        width *= 2
    return slow


def _most(windows: Floats, independent: float) -> float:
    """What one more window exceeds once in a thousand times; `windows` overlap, `independent` of them do not.

    Student's interval of one more observation. Where there are many, the spread is taken from the median and the upper
    quartile if that is less: a stall in the reference must not hide a start-up.
    """
    from scipy.special import stdtrit

    middle, upper = np.quantile(windows, [0.5, _QUARTILE])
    spread = float(windows.std())
    if len(windows) >= _MANY_WINDOWS and upper > middle:
        spread = min(spread, float(upper - middle) / _NORMAL_QUARTILE)
    reach = float(stdtrit(independent - 1, 1 - _CHANCE)) * math.sqrt(1 + 1 / independent) * spread
    return float(middle) + max(_SHARE_OF_SLOW, reach)


def _slow_first_rows(relevant_s: Floats, slowest_s: float, block_rows: int) -> int:
    """How many requests it takes to have seen the last of the first few that is slower than `slowest_s`.

    The first few are at most a block, and 1% of all: so rarely is one of them the slowest by chance.
    """
    few = max(1, min(block_rows, len(relevant_s) // 100))
    slower = np.flatnonzero(relevant_s[:few] > slowest_s)
    return int(slower[-1]) + 1 if len(slower) else 0


def _judged(end_s: float, most_s: float, length_s: float, answered_s: Floats) -> WarmUp:
    """The start-up that seems to end at `end_s`, unless latency falls on in the second half.

    By how much latency falls from the first quarter of the answers to the second, and from the third to the fourth: in
    a decaying start-up the second is a small part of the first. Their lower quartiles, which no stall moves much.
    """
    over = end_s < most_s
    if end_s > _LONG * length_s:
        first_s, second_s, third_s, last_s = (quantile(part, 1 - _QUARTILE) for part in np.array_split(answered_s, 4))
        early_s, late_s = first_s - second_s, third_s - last_s
        if late_s > max(_FALLS_ON * last_s, _AS_MUCH * early_s):
            return _FALLS
        over = over and late_s <= _STILL_FALLS * last_s
    if not over:
        reason = f"requests still got quicker {format_duration(most_s)} after the beginning"
        return WarmUp(end_s=most_s, found=True, over=False, reason=reason)
    return WarmUp(end_s=end_s, found=True, over=True, reason=f"slower than later ones until {format_duration(end_s)}")
