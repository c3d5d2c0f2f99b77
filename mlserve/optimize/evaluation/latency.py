"""How long variants take in process, measured turn by turn so that a slow moment of the machine hits all alike."""

import time
from collections.abc import Callable, Sequence
from statistics import median

from mlserve.engines.engine import Engine
from mlserve.model.artifact import Latency
from mlserve.model.rows import Rows

__all__ = ["measure_latency"]

BATCHES_ROWS = (1, 32)

_LONGEST_S = 2.0
_FEWEST, _MOST = 5, 200


def measure_latency(
    engines: Sequence[Engine], rows: Rows, on_progress: Callable[[], None] = lambda: None
) -> list[tuple[Latency, ...]]:
    """Per engine, its median time for a batch of 1 and of 32 rows; the first engine is what others are held against.

    Turn i gives every engine the same rows, in an order that rotates; turns go on for about two seconds a batch size,
    at least 5 and at most 200. The first turn is not counted. A model with a fixed number of rows
    is timed with that, and no batch is larger than the data.
    """
    per_size: list[list[Latency]] = []
    for size in _batch_sizes(engines[0], len(rows)):
        times = _take_turns(engines, rows, size)
        medians_s = [median(taken_s) for taken_s in times]
        per_size.append([Latency(size, p50_s, size / p50_s, p50_s / medians_s[0]) for p50_s in medians_s])
        on_progress()
    return [tuple(sizes[number] for sizes in per_size) for number in range(len(engines))]


def _batch_sizes(engine: Engine, rows: int) -> Sequence[int]:
    first = engine.inputs[0].shape
    if first and isinstance(first[0], int):
        return (first[0],)
    return tuple(size for size in BATCHES_ROWS if size <= rows)


def _take_turns(engines: Sequence[Engine], rows: Rows, size: int) -> list[list[float]]:
    times: list[list[float]] = [[] for _ in engines]
    started_s = time.perf_counter()
    turn = 0
    while turn <= _FEWEST or (turn <= _MOST and time.perf_counter() - started_s < _LONGEST_S):
        start = turn * size % max(len(rows) - size + 1, 1)
        inputs = rows.batch(start, start + size)
        for position in range(len(engines)):
            number = (position + turn) % len(engines)
            before_s = time.perf_counter()
            engines[number].run(inputs)
            taken_s = time.perf_counter() - before_s
            if turn:
                times[number].append(taken_s)
        turn += 1
    return times
