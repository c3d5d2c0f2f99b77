"""What a reader calls a load: closed loops and shapes are never taken for a steady rate."""

import pytest

from mlserve.bench.run_directory import default_label
from mlserve.report.conditions import conditions_of
from mlserve.report.measurement import group
from mlserve.report.names import Names
from mlserve.runs.load import Bursts, Ramp, Replay, RowShare, Spikes, Steps

CLOSED = {"arrivals": "closed", "users": 16, "rate_per_s": 60.0}


@pytest.mark.parametrize(
    ("plan", "load", "label"),
    [
        ({}, "60 requests/s over REST", "minilm-fp32-rest-60rps"),
        (CLOSED, "closed loop of 16 users over REST", "minilm-fp32-rest-closed-16users"),
        (
            CLOSED | {"users": 1, "scenario": "single-stream"},
            "closed loop of 1 user over REST, scenario single-stream",
            "minilm-fp32-rest-closed-1users-single-stream",
        ),
        ({"arrivals": "constant"}, "60 requests/s over REST, constant arrivals", "minilm-fp32-rest-60rps"),
        ({"shape": Ramp(200.0)}, "60 requests/s over REST, ramp to 200/s", "minilm-fp32-rest-60rps-ramp"),
        ({"shape": Steps((60.0, 90.0))}, "60 requests/s over REST, steps of 60, 90/s", "minilm-fp32-rest-60rps-steps"),
        (
            {"shape": Spikes(5.0, 1.0, 10.0)},
            "60 requests/s over REST, spikes of 5x for 1.00 s every 10.0 s",
            "minilm-fp32-rest-60rps-spikes",
        ),
        (
            {"shape": Bursts(1.0, 2.0)},
            "60 requests/s over REST, bursts of 1.00 s with pauses of 2.00 s",
            "minilm-fp32-rest-60rps-bursts",
        ),
        (
            {"arrivals": "replay", "shape": Replay("day.jsonl", "ab" * 32, 2.0)},
            "60 requests/s over REST, replay of day.jsonl (abababababab) at 2x speed",
            "minilm-fp32-rest-60rps-replay",
        ),
        (
            {"batch_rows": 32, "row_mix": (RowShare(1, 0.8), RowShare(32, 0.2)), "protocol": "rest-binary"},
            "60 requests/s of 1 (80%), 32 (20%) rows over REST (binary)",
            "minilm-fp32-rest-binary-60rps",
        ),
    ],
)
def test_every_kind_of_load_has_its_name(made_runs, plan, load, label):
    run = made_runs.record(made_runs.Load(), **plan).run
    assert conditions_of(run).load == load
    assert default_label(run.model, run.plan) == label


def test_loads_that_differ_in_anything_are_different_measurements(made_runs):
    plans = [{}, CLOSED, CLOSED | {"users": 4}, {"shape": Ramp(200.0)}, {"shape": Ramp(300.0)}, {"generators": 2}]
    runs = [made_runs.record(made_runs.Load(), **plan) for plan in plans for _ in range(2)]
    measurements = group(runs)
    assert [len(one.runs) for one in measurements] == [2] * len(plans)
    names = Names([one.identity for one in measurements], [one.conditions for one in measurements])
    assert len({names.load(one.conditions) for one in measurements}) == len(plans)
