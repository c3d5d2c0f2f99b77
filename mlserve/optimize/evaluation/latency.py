"""How long variants take in process, measured turn by turn so that a slow moment of the machine hits all alike."""

import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from mlserve.engines.engine import Engine
from mlserve.model.artifact import Latency
from mlserve.model.rows import Rows
from mlserve.model.tensors import Tensors
from mlserve.stats import Floats, bootstrap_interval, quantile, quantile_of

__all__ = ["measure_latency", "separable"]

BATCHES_ROWS = (1, 32)

_LONGEST_S = 2.0
_FEWEST, _MOST = 5, 200
# Neighbouring turns share the machine's mood, so that stretches of them are the unit of evidence.
_STRETCHES = 20


def measure_latency(
    engines: Sequence[Engine],
    rows: Rows,
    on_progress: Callable[[], None] = lambda: None,
    *,
    clock_s: Callable[[], float] = time.perf_counter,
) -> list[tuple[Latency, ...]]:
    """Per engine, its median time for a batch of 1 and of 32 rows; the first engine is what others are held against.

    A turn gives every engine the same rows, in an order drawn anew: what one leaves behind (threads that still spin)
    hits no other more than the rest. Each runs them twice, and the second run counts: it finds its own weights in the
    cache and its memory reserved, as a server that answers with one model does. Turns go on for about two seconds a
    batch size, at least 5 and at most 200. The ratio is that of the same turn, its interval a bootstrap over stretches
    of turns. A model with a fixed number of rows is timed with that, and no batch is larger than the data.
    """
    per_size: list[list[Latency]] = []
    for size in _batch_sizes(engines[0], len(rows)):
        times_s = _take_turns(engines, rows, size, clock_s)
        per_size.append([_latency(size, taken_s, times_s[0]) for taken_s in times_s])
        on_progress()
    return [tuple(sizes[number] for sizes in per_size) for number in range(len(engines))]


def separable(one: Latency, other: Latency) -> bool:
    """Whether two variants, timed in the same turns, differ by more than their intervals against the reference.

    Intervals that overlap say that they are not known to differ; one without an interval is not known either.
    """
    ends = (one.against_fp32_low, one.against_fp32_high, other.against_fp32_low, other.against_fp32_high)
    if any(end is None for end in ends):
        return False
    low, high, other_low, other_high = (end for end in ends if end is not None)
    return high < other_low or other_high < low


def _batch_sizes(engine: Engine, rows: int) -> Sequence[int]:
    first = engine.inputs[0].shape
    if first and isinstance(first[0], int):
        return (first[0],)
    return tuple(size for size in BATCHES_ROWS if size <= rows)


def _latency(size: int, taken_s: Floats, reference_s: Floats) -> Latency:
    ratios = taken_s / reference_s
    p50_s, ratio = quantile(taken_s, 0.5), quantile(ratios, 0.5)
    low, high = bootstrap_interval([np.array_split(ratios, min(_STRETCHES, len(ratios)))], quantile_of(0.5))
    known = not math.isnan(low)
    return Latency(
        size, p50_s, size / p50_s, ratio, min(low, ratio) if known else None, max(high, ratio) if known else None
    )


def _take_turns(engines: Sequence[Engine], rows: Rows, size: int, clock_s: Callable[[], float]) -> list[Floats]:
    """The seconds each engine took [turns]."""
    rng = np.random.default_rng(0)
    times_s: list[list[float]] = [[] for _ in engines]
    started_s = clock_s()
    turn = 0
    while turn < _FEWEST or (turn < _MOST and clock_s() - started_s < _LONGEST_S):
        start = turn * size % max(len(rows) - size + 1, 1)
        inputs = rows.batch(start, start + size)
        for number in rng.permutation(len(engines)).tolist():
            times_s[number].append(_timed_s(engines[number], inputs, clock_s))
        turn += 1
    return [np.array(taken_s) for taken_s in times_s]


def _timed_s(engine: Engine, inputs: Tensors, clock_s: Callable[[], float]) -> float:
    engine.run(inputs)
    before_s = clock_s()
    engine.run(inputs)
    return clock_s() - before_s
