"""What `mlserve tune` leaves behind, made from numbers: its runs, and its two files as it writes them."""

from pathlib import Path

import msgspec

from mlserve.report.choice import SEARCH_FILE, Tried, Verdict
from mlserve.runs.load import Plan
from mlserve.tuning.choosing.aim import Aim
from mlserve.tuning.choosing.attempt import Attempt, Trial
from mlserve.tuning.choosing.record import Record, Search, as_written, write_record
from mlserve.tuning.choosing.standing import Settled
from mlserve.tuning.evidence import Objective
from mlserve.tuning.prediction.prediction import Prediction
from mlserve.tuning.serving import ServerOptions
from mlserve.tuning.setting import Setting

OBJECTIVE = Objective(percentile=0.99, limit_s=0.02, max_errors=0.001)

# Variant, median (ms), p99 foretold (s), state, why not.
SETTINGS = (
    ("int8", 2.6, 0.0050, "picked", ""),
    ("int4", 3.4, 0.0062, "met", "1.30 times the pick's p99"),
    ("fp32", 5.4, 0.0058, "met", "2.05 times the pick's p99"),
    ("bf16", 14.0, 0.0240, "missed", "p99 26.9 ms at 60/s, 1.35 times the limit"),
)


def save_search(folder: Path, made_runs, **changes) -> Path:
    """Four settings of one load: int8 is confirmed, bf16 misses the objective. `changes` are of the verdict."""
    folder.mkdir(parents=True)
    attempts, tried = [], []
    for number, (variant, median_ms, predicted_s, state, why) in enumerate(SETTINGS):
        for fidelity in ("short", "confirm") if state == "picked" else ("short",):
            name = f"{len(attempts) + 1:03}-{fidelity}-{variant}"
            one = made_runs.save(
                folder / name,
                made_runs.Load(median_ms),
                seed=len(attempts),
                minute=len(attempts),
                model=msgspec.structs.replace(made_runs.INT8, variant=variant, version=str(number + 1)),
                server=msgspec.structs.replace(made_runs.SERVER, max_batch_rows=4 << number),
            )
            trial = Trial(number=number, rate_per_s=60.0, fidelity=fidelity)
            attempts.append(Attempt(trial=trial, folder=one.name, seconds=30.0, met=state != "missed", valid=True))
        found_s = 1.79 * median_ms / 1000
        value = found_s if state != "missed" else None
        tried.append(
            Tried(
                number=number,
                label=f"{variant} rest 1x1 batch {4 << number}",
                state=state,
                why=why,
                value=value,
                low=value and 0.93 * value,
                high=value and 1.08 * value,
                predicted=predicted_s,
                measured=found_s,
                runs=len([one for one in attempts if one.number == number]),
            )
        )
    verdict = Verdict(
        pick=tried[0],
        confirmed=True,
        valid=True,
        rate_per_s=60.0,
        figure="p99",
        why="confirmed by a fresh run",
        runner_up=tried[1],
        flip=0.03,
        tried=tuple(tried),
        untried={"fp32 grpc 1x1 batch 64": "expected p99 12.0 ms to 19.0 ms"},
        importance={"variant": 0.61, "max_batch_rows": 0.22, "protocol": 0.04, "threads": 0.001},
        near=3,
        compared=4,
    )
    record = Record(
        mlserve="0.1.0",
        cores=2,
        budget_s=600.0,
        predictions=as_written([_prediction(*one[:3]) for one in SETTINGS]),
        left_out={"pruned": "loses 3.10% of its accuracy"},
        attempts=tuple(attempts),
        settled=Settled(number=0, rate_per_s=60.0, confirmed=True, why="confirmed by a fresh run"),
        verdict=msgspec.structs.replace(verdict, **changes),
    )
    write_record(folder, record)
    search = Search(
        models=("minilm@1", "minilm@2"),
        protocols=("rest",),
        aim=Aim(objective=OBJECTIVE, goal="latency", rate_per_s=60.0),
        plan=Plan(rate_per_s=1.0, duration_s=1.0, warm_up_s=1.0, payload=""),
        short_s=4.0,
        long_s=20.0,
    )
    (folder / SEARCH_FILE).write_bytes(msgspec.json.encode(search))
    return folder


def _prediction(variant: str, median_ms: float, p99_s: float) -> Prediction:
    return Prediction(
        setting=Setting(model=f"{variant}@1", variant=variant, options=ServerOptions(threads=1)),
        rate_per_s=60.0,
        p50_s=median_ms / 1000,
        p99_s=p99_s,
        objective_s=p99_s,
        mean_batch_rows=1.0,
        utilization=0.5,
        max_rate_per_s=400.0,
    )
