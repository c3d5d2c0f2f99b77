"""Whether the measured part of a run was steady: its figures do not depend on when in it one looks. Pure."""

import math

import msgspec
import numpy as np

from mlserve.runs.percentiles import PERCENTILES
from mlserve.runs.samples import Samples
from mlserve.runs.window import Window
from mlserve.stats import Floats, minimum_samples, quantile, split_blocks, trend
from mlserve.units import format_duration

__all__ = ["Drift", "Trend", "drift"]

_GROWTH, _FLOOR_S = 2.0, 1e-3
_BLOCKS, _FEWEST_BLOCKS = 20, 8
_CONFIDENCE = 0.99
# By which factor a figure may change from the beginning to the end: the tail of a steady server wanders more.
_MOST_CHANGE = {"p50": 1.25, "p90": 1.25, "p99": 1.5}
_MOST_THROUGHPUT_CHANGE = 1.1


class Trend(msgspec.Struct, frozen=True, kw_only=True):
    """The course of one figure: "p50", "p90" or "p99" of latency in seconds, or "throughput", the answers for each
    request that was due (in a closed loop: answers per second).

    `early` and `late` are where the line through it begins and ends. `change` is late / early, with 99% confidence
    between `low` and `high`. Not `steady` where that is more than `limit`, or less than 1 / limit, without a doubt.
    """

    name: str
    early: float
    late: float
    change: float
    low: float
    high: float
    limit: float
    steady: bool


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """What was found: the median latency of the first and the last third, and the course of each figure that there are
    requests enough for.
    """

    early_s: float
    late_s: float
    trends: tuple[Trend, ...]

    @property
    def thirds_agree(self) -> bool:
        """Whether the last third's median is neither twice the first's nor half of it, a millisecond aside."""
        grown = self.late_s > max(_GROWTH * self.early_s, self.early_s + _FLOOR_S)
        shrunk = self.early_s > max(_GROWTH * self.late_s, self.late_s + _FLOOR_S)
        return not (grown or shrunk)

    @property
    def steady(self) -> bool:
        """Whether nothing drifts."""
        return self.thirds_agree and all(one.steady for one in self.trends)

    @property
    def found(self) -> str:
        """What drifts most, or, where nothing does, how the median went."""
        wandering = [one for one in self.trends if not one.steady]
        if not wandering or not self.thirds_agree:
            early, late = format_duration(self.early_s), format_duration(self.late_s)
            return f"median {early} in the first third, {late} in the last"
        worst = max(wandering, key=lambda one: abs(math.log(one.change)) / math.log(one.limit))
        shown = (
            (f"{one:.0%}" if worst.name == "throughput" else format_duration(one)) for one in (worst.early, worst.late)
        )
        return f"{worst.name} went from {' to '.join(shown)}"


def drift(samples: Samples, window: Window, *, closed: bool = False) -> Drift | None:
    """How the requests that were due in `window` went over it; None with fewer than 7 answers in its first or its last
    third.

    Two rules, for neither sees all. **Thirds**: where requests arrive faster than they are served the queue grows
    without end: from the start of a run, latency then grows in proportion to time, and the last third's median is five
    times the first third's. In simulated queues (M/M/1 and M/D/1, 1,000 to 10,000 requests) 10% too much load is found
    in 87% of runs or more, while at half load fewer than 1% alarm. Between 90% load and all of it, some alarm: there a
    queue wanders so slowly that the figures depend on when one looks.

    **Trends**: a server that gets slower bit by bit, or in its tail alone. The line through the logarithm of a
    percentile of each twentieth of the window (stats.trend). In simulation, latency that grows by half is found in 99%
    of runs, a tail that grows fourfold in 93%, and queues at up to 80% load alarm in fewer than 1%.

    Differences in latency below a millisecond are none.
    """
    inside = (samples.scheduled_s >= window.start_s) & (samples.scheduled_s < window.end_s)
    answered = inside & samples.ok
    due_s = samples.scheduled_s[answered] - window.start_s
    latency_s = np.maximum(samples.done_s[answered] - samples.scheduled_s[answered], 1e-9)
    third_s = window.duration_s / 3
    early, late = latency_s[due_s < third_s], latency_s[due_s >= 2 * third_s]
    if min(len(early), len(late)) < minimum_samples(0.5):
        return None
    trends = [_latency_trend(name, due_s / window.duration_s, latency_s) for name in _MOST_CHANGE]
    trends.append(
        _throughput_trend(
            (samples.scheduled_s[inside] - window.start_s) / window.duration_s,
            (samples.done_s[samples.ok] - window.start_s) / window.duration_s,
            closed=closed,
        )
    )
    return Drift(
        early_s=quantile(early, 0.5),
        late_s=quantile(late, 0.5),
        trends=tuple(one for one in trends if one is not None),
    )


def _latency_trend(name: str, at: Floats, latency_s: Floats) -> Trend | None:
    """The course of a percentile; `at` in [0, 1) is where in the window each request was due."""
    q = PERCENTILES[name]
    needed = minimum_samples(q)
    blocks = min(_BLOCKS, len(at) // needed)
    if blocks < _FEWEST_BLOCKS:
        return None
    # Blocks of equal counts: where the rate changes, blocks of equal times would be too few in the quiet parts.
    block_of = np.arange(len(at)) * blocks // len(at)
    figures = np.array([quantile(block, q) for block in split_blocks(latency_s, block_of)])
    middles = np.array([float(block.mean()) for block in split_blocks(at, block_of)])
    return _trend(name, middles, figures, _MOST_CHANGE[name], _FLOOR_S)


def _throughput_trend(due_at: Floats, done_at: Floats, *, closed: bool) -> Trend | None:
    edges = np.linspace(0, 1, _BLOCKS + 1)
    answers, due = np.histogram(done_at, edges)[0], np.histogram(due_at, edges)[0]
    filled = (due >= minimum_samples(0.5)) & (answers > 0)
    if filled.sum() < _FEWEST_BLOCKS:
        return None
    middles = (edges[:-1] + edges[1:])[filled] / 2
    figures = answers[filled] / (np.ones(int(filled.sum())) if closed else due[filled])
    return _trend("throughput", middles, figures, _MOST_THROUGHPUT_CHANGE, 0.0)


def _trend(name: str, at: Floats, figures: Floats, limit: float, floor: float) -> Trend:
    line = trend(at, np.log(figures), confidence=_CONFIDENCE)
    early, late = math.exp(line.start), math.exp(line.start + line.slope)
    certain = line.low > math.log(limit) or line.high < -math.log(limit)
    return Trend(
        name=name,
        early=early,
        late=late,
        change=math.exp(line.slope),
        low=math.exp(line.low),
        high=math.exp(line.high),
        limit=limit,
        steady=not (certain and abs(late - early) > floor),
    )
