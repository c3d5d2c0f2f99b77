"""The figure that one run gives of a metric, and the noise that this figure has from within the run. Pure."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlserve.report.gating.evidence import Pair
from mlserve.report.gating.limits import Limit
from mlserve.report.measurement import Recorded
from mlserve.runs.load import Bursts
from mlserve.stats import (
    Blocks,
    Floats,
    Statistic,
    log_spread,
    mean_of,
    measured,
    quantile_of,
    shared_log_spread,
    split_blocks,
)

__all__ = ["Figures", "KeptFigures", "RunFigure", "figure_of", "noise_in_turns"]

_WHY_NOT = {
    "memory": "what the server's processes used is not known; let mlserve start the server on this machine",
    "start_up": "how long the server took to start is not known; let mlserve start it",
    "max_rate": "the highest rate was not sought; only a live gate seeks it",
}
_NO_RATE = "no run of the search for the highest rate can be believed, or they contradict one another"
# Memory is read in pages and now and then, and allocators take it in steps: equal readings are not equal needs.
_MEMORY_NOISE = 0.005
_MOST_BLOCKS = 20


class RunFigure(NamedTuple):
    """`value` is in seconds, bytes or requests per second, above zero, NaN where `refused` says why. `noise` is the
    standard deviation of its logarithm that the blocks of the run show, 0 where they show none. `at_most`: the true
    one is that or less, for not even so low a rate met the objective.
    """

    value: float
    noise: float = 0.0
    refused: str = ""
    at_most: bool = False


def figure_of(limit: Limit, recorded: Recorded, max_rate_per_s: float | None = None) -> RunFigure:
    """What `recorded` says of the metric of `limit`. The highest rate is no figure of one run, so it is handed over."""
    match limit.metric:
        case "memory":
            found = float(sum(one.rss_max_bytes for one in recorded.run.resources.processes if one.role == "server"))
        case "start_up":
            found = recorded.run.start_up_s or 0.0
        case "max_rate":
            found = max_rate_per_s or 0.0
        case _:
            return _latency(limit, recorded)
    if found > 0:
        return RunFigure(found, _MEMORY_NOISE if limit.metric == "memory" else 0.0)
    was_sought = limit.metric == "max_rate" and max_rate_per_s is not None
    return RunFigure(math.nan, refused=_NO_RATE if was_sought else _WHY_NOT[limit.metric])


def noise_in_turns(limit: Limit, baseline: Recorded, candidate: Recorded) -> float | None:
    """The standard deviation of the logarithm of the ratio of two runs that took turns, as what each turn of both shows
    it: what the machine did to both is not in it. None for a figure that is no latency, and for runs that did not.
    """
    shape = baseline.run.plan.shape
    if limit.metric in _WHY_NOT or not isinstance(shape, Bursts) or not Pair(baseline, candidate).in_turns:
        return None
    sides = _alike(_by_period(baseline, shape), _by_period(candidate, shape))
    noise = shared_log_spread(*sides, _statistic(limit))
    return None if math.isnan(noise) else noise


class Figures:
    """What is asked of runs."""

    def __call__(self, limit: Limit, recorded: Recorded, max_rate_per_s: float | None) -> RunFigure:
        """See figure_of."""
        return figure_of(limit, recorded, max_rate_per_s)

    def noise(self, limit: Limit, baseline: Recorded, candidate: Recorded) -> float | None:
        """See noise_in_turns."""
        return noise_in_turns(limit, baseline, candidate)


class KeptFigures(Figures):
    """Each, for which a run's blocks are drawn hundreds of times, once: for who looks at the same runs again and again.
    A run is known by its directory.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Limit, Path, float | None], RunFigure] = {}
        self._noise: dict[tuple[Limit, Path, Path], float | None] = {}

    def __call__(self, limit: Limit, recorded: Recorded, max_rate_per_s: float | None) -> RunFigure:
        key = limit, recorded.directory, max_rate_per_s
        if key not in self._kept:
            self._kept[key] = super().__call__(limit, recorded, max_rate_per_s)
        return self._kept[key]

    def noise(self, limit: Limit, baseline: Recorded, candidate: Recorded) -> float | None:
        key = limit, baseline.directory, candidate.directory
        if key not in self._noise:
            self._noise[key] = super().noise(limit, baseline, candidate)
        return self._noise[key]


def _latency(limit: Limit, recorded: Recorded) -> RunFigure:
    blocks = recorded.latency_blocks
    if not len(blocks):
        return RunFigure(math.nan, refused=f"no request of {recorded.directory} was answered")
    statistic = _statistic(limit)
    noise = log_spread(blocks, statistic)
    return RunFigure(measured([blocks], statistic), 0.0 if math.isnan(noise) else noise)


def _statistic(limit: Limit) -> Statistic:
    return mean_of if limit.q is None else quantile_of(limit.q)


def _by_period(recorded: Recorded, shape: Bursts) -> dict[int, Floats]:
    """The latencies of the answers, by the period that their requests were due in."""
    samples, period_s = recorded.samples, shape.on_s + shape.off_s
    # An instant that is rounded down must not fall into the period before.
    periods = ((samples.scheduled_s[samples.ok] + shape.off_s / 2) / period_s).astype(np.int64)
    blocks = split_blocks(samples.latency_s, periods)
    return dict(zip(np.unique(periods).tolist(), blocks, strict=True))


def _alike(before: dict[int, Floats], after: dict[int, Floats]) -> tuple[Blocks, Blocks]:
    """Both as blocks of the same periods, of which each holds several where there are many."""
    both = sorted(before.keys() & after.keys())
    each = max(1, len(both) // _MOST_BLOCKS)
    stretches = [both[first : first + each] for first in range(0, len(both), each)]
    joined = [[np.concatenate([side[one] for one in stretch]) for stretch in stretches] for side in (before, after)]
    return joined[0], joined[1]
