"""How long runs take without a profiler: cold and warm, against another model, and with more or fewer threads."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from statistics import median

from mlserve.engines.engine import Engine, EngineSettings
from mlserve.model.tensors import Tensors
from mlserve.optimize.diagnose.facts import ThreadTiming, Timing
from mlserve.optimize.diagnose.subject import Model

__all__ = ["affordable", "measure_timings", "thread_counts", "time_threads"]

_LONGEST_S = 1.0
_FEWEST, _MOST = 3, 200
# Every thread count loads the model once more; one that is large, or slow to load, is not worth it.
_MOST_OF_MEMORY = 4
_LONGEST_LOADING_S = 60.0


def measure_timings(engine: Engine, other: Engine | None, batches: Mapping[int, Tensors]) -> tuple[Timing, ...]:
    """One timing for each batch size of `batches` (rows -> inputs); runs of `other` are taken in turn with the own."""
    timings = []
    for rows, inputs in batches.items():
        first_run_s = _run_s(engine, inputs)
        own, *others = _in_turn([engine, *([other] if other else [])], inputs)
        timings.append(
            Timing(
                batch_rows=rows,
                runs=len(own),
                first_run_s=first_run_s,
                p50_s=median(own),
                against_p50_s=median(others[0]) if others else None,
            )
        )
    return tuple(timings)


def thread_counts(cores: int, asked: int) -> list[int]:
    """1, 2, 4, ... up to the cores, the cores, twice the cores, and what was asked for.

    `thread_counts(6, 3)` -> `[1, 2, 3, 4, 6, 12]`
    """
    doubled = [2**power for power in range(cores.bit_length())]
    return sorted({*doubled, cores, 2 * cores, asked})


def affordable(model: Model, counts: Sequence[int], open_s: float, memory_bytes: int) -> bool:
    """Whether a model that loads in `open_s` may be loaded once for each of `counts`, all at once."""
    fits = model.size_bytes * len(counts) <= memory_bytes // _MOST_OF_MEMORY
    return fits and open_s * len(counts) <= _LONGEST_LOADING_S


def time_threads(model: Model, counts: Sequence[int], inputs: Tensors) -> tuple[ThreadTiming, ...]:
    """The median time of a run on the CPU with each number of threads, in turn.

    Raises EngineError when the model does not load.
    """
    with ExitStack() as stack:
        engines = [stack.enter_context(closing(model.open(EngineSettings(threads=count)))) for count in counts]
        times = _in_turn(engines, inputs)
    return tuple(ThreadTiming(count, median(taken_s)) for count, taken_s in zip(counts, times, strict=True))


def _in_turn(engines: Sequence[Engine], inputs: Tensors) -> list[list[float]]:
    """Seconds of each run, engine by engine. Who begins rotates; the first turn warms up and is not counted."""
    times: list[list[float]] = [[] for _ in engines]
    started_s = time.perf_counter()
    turn = 0
    while turn <= _FEWEST or (turn <= _MOST and time.perf_counter() - started_s < _LONGEST_S):
        for position in range(len(engines)):
            number = (position + turn) % len(engines)
            taken_s = _run_s(engines[number], inputs)
            if turn:
                times[number].append(taken_s)
        turn += 1
    return times


def _run_s(engine: Engine, inputs: Tensors) -> float:
    before_s = time.perf_counter()
    engine.run(inputs)
    return time.perf_counter() - before_s
