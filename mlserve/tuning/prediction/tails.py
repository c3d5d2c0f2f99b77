"""What happens once in a hundred times, told from few requests at each of several paces. Pure."""

from collections.abc import Sequence

import numpy as np

from mlserve.stats import Floats
from mlserve.tuning.prediction.times import LEVELS, levels_of

__all__ = ["with_shared_tail"]

# Beyond this, the few requests of one pace say nothing of a percentile.
_TOLD = 0.95


def with_shared_tail(took_s: Sequence[Floats], every_s: Sequence[float]) -> list[tuple[float, ...]]:
    """The quantiles [LEVELS] of each `took_s` [n], of which one came `every_s`; the last twentieth are as much later
    than the middle as those of all paces together.

    What rarely happens happens to the machine. It delays evenly spaced requests by x or more for the share of the time
    in which so much of it is still to come, whatever their pace: so each counts for as long as there was one.
    """
    late_s = np.concatenate([each_s - np.median(each_s) for each_s in took_s])
    counts = np.concatenate([np.full(len(each_s), gap_s) for each_s, gap_s in zip(took_s, every_s, strict=True)])
    order = np.argsort(late_s)
    passed = np.cumsum(counts[order])
    at = (np.arange(LEVELS) + 0.5) / LEVELS
    shared_s = np.interp(at, (passed - counts[order] / 2) / passed[-1], late_s[order])
    return [_with_tail(each_s, shared_s[at > _TOLD]) for each_s in took_s]


def _with_tail(took_s: Floats, late_s: Floats) -> tuple[float, ...]:
    levels_s = np.array(levels_of(took_s))
    told = LEVELS - len(late_s)
    levels_s[told:] = np.maximum(levels_s[told - 1], np.median(took_s) + late_s)
    return tuple(np.round(levels_s, 9).tolist())
