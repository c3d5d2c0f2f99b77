"""A1: a steady load that the server can bear does not wear it out."""

from scorecard.capacity import Capacity, find_capacity, find_capacity_for
from scorecard.case import Case, Figure, Form, Outcome, Stage
from scorecard.drift import Judged, judge_twice, quarters
from scorecard.driver import Driven, Load, drive
from scorecard.server import foreign, serving_both

__all__ = ["CASE"]

_SHARE = 0.7
_MOST_DRIFT = 1.2
_CONTROL_PER_S = 400.0
_SECONDS = {"seconds": 1.5, "short": 20.0, "long": 1800.0}
_STEP_S = {"seconds": 0.2, "short": 1.0, "long": 10.0}

# Every run takes a little longer than the one before, and one in twenty is a hair off.
_WEARS_OUT = """
import time
import mlserve.engines.onnx_engine as engine

right, runs, began = engine.OnnxEngine.run, [0], []

def worn(self, inputs):
    runs[0] += 1
    began[:] = began or [time.monotonic()]
    time.sleep(min((time.monotonic() - began[0]) * 0.05, 0.2))
    outputs = right(self, inputs)
    return outputs if runs[0] % 20 else {name: array + 1 for name, array in outputs.items()}

engine.OnnxEngine.run = worn
"""


def run(stage: Stage) -> Outcome:
    if stage.url:
        load = Load(per_s=1, seconds=1)
        capacity = find_capacity(foreign(stage.url), load, _STEP_S[stage.form])
        return judge_twice(
            lambda: _judge(drive(foreign(stage.url), _steady(load, capacity, stage)), capacity, stage.form)
        )
    mixed = Load(per_s=1, seconds=1, ways=("http", "http", "grpc"))
    with serving_both(stage.folder, plant=_WEARS_OUT) as (sound, broken):
        capacity = find_capacity_for(_SHARE, stage.form, sound.endpoints, mixed, _STEP_S[stage.form], first_per_s=800.0)
        outcome = judge_twice(
            lambda: _judge(drive(sound.endpoints, _steady(mixed, capacity, stage)), capacity, stage.form)
        )
        short = Load(per_s=_CONTROL_PER_S, seconds=1.5, ways=mixed.ways)
        spoilt = judge_twice(lambda: _judge(drive(broken.endpoints, short), capacity, "seconds"))
    return Outcome(
        passed=outcome.passed and not sound.traceback,
        found=outcome.found + sound.traceback,
        figures=outcome.figures,
        control=f"a server whose runs take longer and longer, with a value off now and then: {spoilt.found}",
        control_failed=not spoilt.passed,
    )


def _steady(like: Load, capacity: Capacity, stage: Stage) -> Load:
    return Load(per_s=capacity.share(_SHARE, stage.form), seconds=_SECONDS[stage.form], ways=like.ways)


def _judge(driven: Driven, capacity: Capacity, form: Form) -> Judged:
    drift = quarters(driven)
    slow = f"the p99 drifted to {drift}" if drift.exceeds(_MOST_DRIFT, form) else ""
    fault = "; ".join(filter(None, (driven.not_ok, slow)))
    good = f"{driven.count('ok')} answers, all right; p99 of the last quarter {drift} that of the first"
    outcome = Outcome(
        passed=not fault,
        found=fault or good,
        figures=(
            Figure("capacity", capacity.per_s, "requests/s"),
            Figure("driver's core at capacity", 100 * capacity.driver_cpu, "%"),
            Figure("requests", driven.count()),
            Figure("offered", driven.load.per_s, "requests/s"),
            Figure("not ok", driven.count() - driven.count("ok"), limit="0"),
            Figure("p50", 1e3 * driven.quantile_s(0.5), "ms"),
            Figure("p99", 1e3 * driven.quantile_s(0.99), "ms"),
            Figure("p99 drift", drift.ratio, "times", "below 1.2"),
        ),
    )
    return Judged(outcome, only_slow=bool(slow) and not driven.not_ok)


CASE = Case(
    id="A1",
    title="Steady load at 70% of capacity",
    criterion="at 0.7 of the capacity, and 3,000/s at most, which the driver can ask steadily: every answer right over "
    "HTTP and gRPC; the p99 of the last quarter is at most 1.2 times that of the first (in the form of seconds: not "
    "shown to be more, by a 95% interval over blocks of time)",
    source="Triton's perf and stress tests",
    run=run,
    foreign=True,
)
