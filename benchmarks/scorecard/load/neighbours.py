"""A8: a model that is asked far too much leaves the other model on the machine its speed."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.drift import Judged
from scorecard.driver import Driven, Load, drive, driving
from scorecard.known import MODEL, publish
from scorecard.server import Server, serving

__all__ = ["CASE"]

_BUSY = "busy"
_RUN_S, _ROWS = 0.02, 4
_PER_S = 6.0
_TIMES_CAPACITY = 5.0
_MOST_TIMES = 2.0
_TRIES = 3
_SLOWER = "times that of before"
_SECONDS = {"seconds": 2.0, "short": 20.0, "long": 120.0}
_FLAGS = ("--threads", "1", "--max-batch-rows", str(_ROWS), "--max-wait", "1s")

# A model runs whenever it likes, the longer the more rows it has, and holds what the others need.
_UNFAIR = """
import threading
import mlserve.engines.onnx_engine as engine
import mlserve.serve.batching.share as share

right, holding = engine.OnnxEngine.run, threading.Lock()

def greedy(self, inputs):
    with holding:
        for _ in range(len(next(iter(inputs.values()))) ** 2):
            outputs = right(self, inputs)
    return outputs

engine.OnnxEngine.run = greedy
share.DeviceShare.take = lambda self, turns: float("inf")
share.DeviceShare.give = lambda self, turns, compute_s: None
"""


def run(stage: Stage) -> Outcome:
    root = stage.folder / "store"
    for name in (MODEL, _BUSY):
        publish(root, name, run_s=_RUN_S)
    with ExitStack() as stack, ThreadPoolExecutor(2) as threads:
        starting = [
            serving(stage.folder, MODEL, _BUSY, "--store", root, *_FLAGS, plant=plant) for plant in ("", _UNFAIR)
        ]
        fair, unfair = [each.result() for each in [threads.submit(stack.enter_context, one) for one in starting]]
        capacity_per_s = _capacity_per_s(fair)
        per_s = _TIMES_CAPACITY * max(capacity_per_s, _ROWS / _RUN_S)
        seconds = _SECONDS[stage.form]
        busy = Load(per_s=per_s, seconds=seconds + 1, model=_BUSY, seed=1)
        for plays in range(1, _TRIES + 1):  # noqa: B007  # told below
            outcome, only_slow = _play(fair, busy)
            if not only_slow:  # what was lost or wrong is not asked again
                break
        # Its capacity is a sixteenth, and what waits there has no end.
        slower = Load(per_s=100.0, seconds=min(seconds, 3.0) + 1, model=_BUSY, seed=1, timeout_s=2.0)
        spoilt = _play(unfair, slower).outcome
    return Outcome(
        passed=outcome.passed,
        found=outcome.found,
        figures=(
            Figure("capacity of the busy model", capacity_per_s, "requests/s"),
            *outcome.figures,
            Figure("plays", plays, limit=f"at most {_TRIES}"),
        ),
        control=f"models that take no turns, and whose runs grow with their rows: {spoilt.found}",
        control_failed=_SLOWER in spoilt.found,  # what the driver gave up on is no proof of unfairness
    )


def _play(server: Server, busy: Load) -> Judged:
    """The quiet model alone for a second less, then both."""
    solo = drive(server.endpoints, _quiet(busy.seconds - 1))
    with driving(server.endpoints, _quiet(busy.seconds), busy) as running:
        pass
    beside, refused = running.all_driven
    return _judge(solo, beside, refused, server)


def _quiet(seconds: float) -> Load:
    return Load(per_s=_PER_S, seconds=seconds, arrivals="poisson")


def _capacity_per_s(server: Server) -> float:
    """How many answers a second the busy model gives by itself, when there is always enough to do."""
    flooded = drive(server.endpoints, Load(per_s=2 * _ROWS / _RUN_S, seconds=0.6, model=_BUSY, seed=2))
    return flooded.count("ok") / flooded.took_s


def _judge(solo: Driven, quiet: Driven, busy: Driven, server: Server) -> Judged:
    alone_s, beside_s = solo.quantile_s(0.99), quiet.quantile_s(0.99, from_s=1.0)
    times = beside_s / alone_s
    slow = f"its p99 became {times:.2f} {_SLOWER}" if not times <= _MOST_TIMES else ""
    faults = [
        solo.not_ok,
        quiet.not_ok,
        busy.fault,
        "the busy model was not busy" if not busy.count("shed") else "",
        server.traceback,
    ]
    worse = "; ".join(filter(None, faults))
    fault = "; ".join(filter(None, (worse, slow)))
    refused = f"{quiet.count('ok')} answers beside {busy.count('shed')} that the busy model refused"
    outcome = Outcome(
        passed=not fault,
        found=fault or f"{refused}; p99 {times:.2f} times",
        figures=(
            Figure("its answers meanwhile", busy.per_s(from_s=1.0), "requests/s"),
            Figure("its load", busy.load.per_s, "requests/s"),
            Figure("p99 of the other, alone", 1e3 * alone_s, "ms"),
            Figure("p99 of the other, beside it", 1e3 * beside_s, "ms", "at most 2 times"),
            Figure("the other's p50, alone", 1e3 * solo.quantile_s(0.5), "ms"),
            Figure("the other's p50, beside it", 1e3 * quiet.quantile_s(0.5, from_s=1.0), "ms"),
            Figure("shed of the other", quiet.count("shed"), limit="0"),
        ),
    )
    return Judged(outcome, only_slow=bool(slow) and not worse)


CASE = Case(
    id="A8",
    title="A model beside one that is asked five times too much",
    criterion="the p99 of the model that is asked little is at most twice what it is alone, and nothing of it is shed",
    source="Triton's rate limiter, TensorFlow Serving's SharedBatchScheduler",
    run=run,
)
