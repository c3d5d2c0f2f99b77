"""The figure that one run gives of a metric, and the noise that this figure has from within the run. Pure."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mlserve.report.gating.limits import Limit
from mlserve.report.measurement import Recorded
from mlserve.stats import log_spread, mean_of, measured, quantile_of

__all__ = ["FigureOf", "KeptFigures", "RunFigure", "figure_of"]

_WHY_NOT = {
    "memory": "what the server's processes used is not known; let mlserve start the server on this machine",
    "start_up": "how long the server took to start is not known; let mlserve start it",
    "max_rate": "the highest rate was not sought; only a live gate seeks it",
}
_NO_RATE = "no run of the search for the highest rate can be believed, or they contradict one another"
# Memory is read in pages and now and then, and allocators take it in steps: equal readings are not equal needs.
_MEMORY_NOISE = 0.005


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


FigureOf = Callable[[Limit, Recorded, float | None], RunFigure]


class KeptFigures:
    """`figure_of`, which draws each run's blocks hundreds of times, once for each run and limit: for who looks at the
    same runs again and again. A run is known by its directory.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Limit, Path, float | None], RunFigure] = {}

    def __call__(self, limit: Limit, recorded: Recorded, max_rate_per_s: float | None) -> RunFigure:
        key = limit, recorded.directory, max_rate_per_s
        if key not in self._kept:
            self._kept[key] = figure_of(limit, recorded, max_rate_per_s)
        return self._kept[key]


def _latency(limit: Limit, recorded: Recorded) -> RunFigure:
    blocks = recorded.latency_blocks
    if not len(blocks):
        return RunFigure(math.nan, refused=f"no request of {recorded.directory} was answered")
    statistic = mean_of if limit.q is None else quantile_of(limit.q)
    noise = log_spread(blocks, statistic)
    return RunFigure(measured([blocks], statistic), 0.0 if math.isnan(noise) else noise)
