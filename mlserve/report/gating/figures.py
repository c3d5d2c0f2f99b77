"""The figure that one run gives of a metric, and the noise that this figure has from within the run. Pure."""

import math
from typing import NamedTuple

from mlserve.report.gating.limits import Limit
from mlserve.report.measurement import Recorded
from mlserve.stats import log_spread, mean_of, measured, quantile_of

__all__ = ["RunFigure", "figure_of"]

_WHY_NOT = {
    "memory": "what the server's processes used is not known; let mlserve start the server on this machine",
    "start_up": "how long the server took to start is not known; let mlserve start it",
    "max_rate": "the highest rate was not sought; only a live gate seeks it",
}


class RunFigure(NamedTuple):
    """`value` is in seconds, bytes or requests per second, above zero, NaN where `refused` says why. `noise` is the
    standard deviation of its logarithm that the blocks of the run show, 0 where they show none.
    """

    value: float
    noise: float = 0.0
    refused: str = ""


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
    return RunFigure(found) if found > 0 else RunFigure(math.nan, refused=_WHY_NOT[limit.metric])


def _latency(limit: Limit, recorded: Recorded) -> RunFigure:
    blocks = recorded.latency_blocks
    if not len(blocks):
        return RunFigure(math.nan, refused=f"no request of {recorded.directory} was answered")
    statistic = mean_of if limit.q is None else quantile_of(limit.q)
    noise = log_spread(blocks, statistic)
    return RunFigure(measured([blocks], statistic), 0.0 if math.isnan(noise) else noise)
