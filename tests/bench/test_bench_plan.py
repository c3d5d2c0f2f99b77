import math

import msgspec
import pytest

from mlserve.bench.plan import check_arrivals, check_plan
from mlserve.errors import UsageError
from mlserve.runs.load import Bursts, Plan, Ramp, Replay, RowShare, Spikes, Steps

OPEN = Plan(rate_per_s=100, duration_s=1, warm_up_s=0)
CLOSED = Plan(rate_per_s=0, duration_s=1, warm_up_s=0, arrivals="closed", users=4)
REPLAY = Plan(rate_per_s=100, duration_s=1, warm_up_s=0, arrivals="replay", shape=Replay("t", "ab"))
MIX = (RowShare(1, 0.75), RowShare(8, 0.25))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shape": Ramp(1.0)},
        {"shape": Steps((100.0, 50.0))},
        {"shape": Spikes(5.0, 0.1, 0.5), "precision": 0.05, "max_duration_s": 2.0},
        {"shape": Bursts(0.1, 0.4), "find_warm_up": True},
        {"row_mix": MIX, "batch_rows": 8},
        {"generators": 64, "percentile": 0.9999, "max_errors": 0.0},
        {"scenario": "server"},
    ],
)
def test_a_sound_plan_is_returned_as_it_is(changes):
    plan = msgspec.structs.replace(OPEN, **changes)
    assert check_plan(plan) is plan


@pytest.mark.parametrize("plan", [CLOSED, REPLAY, msgspec.structs.replace(CLOSED, precision=0.1, max_duration_s=1.0)])
def test_a_closed_loop_and_a_replay_are_sound_plans(plan):
    assert check_plan(plan) is plan


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("rate_per_s", 0.0, "--rps"),
        ("rate_per_s", -1.0, "--rps"),
        ("rate_per_s", math.nan, "--rps"),
        ("rate_per_s", math.inf, "--rps"),
        ("rate_per_s", 1e7, "--rps"),
        ("rate_per_s", 0.1, "--duration"),
        ("duration_s", 0.0, "--duration"),
        ("duration_s", math.inf, "--duration"),
        ("duration_s", 1e9, "--duration"),
        ("warm_up_s", -1.0, "--warm-up"),
        ("warm_up_s", math.nan, "--warm-up"),
        ("timeout_s", 0.0, "--timeout"),
        ("batch_rows", 0, "--batch"),
        ("seed", -1, "--seed"),
        ("max_in_flight", 0, "--max-in-flight"),
        ("protocol", "soap", "--protocol"),
        ("arrivals", "burst", "--arrivals"),
        ("scenario", "rush", "--scenario"),
        ("users", 3, "--users"),
        ("generators", 0, "--workers"),
        ("generators", 65, "--workers"),
        ("max_errors", 1.5, "--errors"),
        ("max_errors", math.nan, "--errors"),
        ("percentile", 0.4, "--percentile"),
        ("percentile", 1.0, "--percentile"),
        ("precision", -0.1, "--precision"),
        ("precision", 0.1, "--max-duration"),
        ("max_duration_s", 5.0, "--precision"),
        ("shape", Ramp(1e7), "--shape"),
        ("shape", Steps(()), "--shape"),
        ("shape", Steps((200.0, 300.0)), "--rps 100 contradicts --shape"),
        ("shape", Steps((100.0, 0.0)), "--shape"),
        ("shape", Spikes(1e6, 0.1, 0.5), "--shape"),
        ("shape", Spikes(2.0, 0.5, 0.5), "--shape"),
        ("shape", Bursts(1e-6, 1e-6), "--shape"),
        ("shape", Replay("t", "ab"), "--replay"),
        ("arrivals", "replay", "--replay"),
        ("row_mix", MIX, "--batch 1 contradicts the mix"),
        ("row_mix", (RowShare(1, 0.5),), "add up to 0.5"),
        ("row_mix", (RowShare(0, 1.0),), "--batch 0"),
    ],
)
def test_a_value_no_run_can_have_is_refused_by_its_flag(field, value, flag):
    with pytest.raises(UsageError, match=flag):
        check_plan(msgspec.structs.replace(OPEN, **{field: value}))


@pytest.mark.parametrize(
    ("plan", "changes", "flag"),
    [
        (CLOSED, {"rate_per_s": 10.0}, "--rps 10 contradicts --users 4"),
        (CLOSED, {"users": 0}, "--users"),
        (CLOSED, {"users": 1_000_000}, "--users"),
        (CLOSED, {"shape": Ramp(5.0)}, "--shape contradicts --users"),
        (OPEN, {"shape": Ramp(5.0), "precision": 0.1, "max_duration_s": 9.0}, "--precision contradicts --shape"),
        (OPEN, {"shape": Steps((100.0, 5.0)), "find_warm_up": True}, "--warm-up"),
        (REPLAY, {"precision": 0.1, "max_duration_s": 9.0}, "--precision contradicts --replay"),
        (REPLAY, {"find_warm_up": True}, "--warm-up"),
        (OPEN, {"precision": 0.1, "max_duration_s": 0.5}, "--max-duration 0.5 s is less than --duration"),
        (OPEN, {"precision": 0.1, "max_duration_s": 1e7}, "--duration"),
    ],
)
def test_two_that_contradict_each_other_are_refused_by_name(plan, changes, flag):
    with pytest.raises(UsageError, match=flag):
        check_plan(msgspec.structs.replace(plan, **changes))


def test_every_kind_of_arrivals_is_known():
    assert [check_arrivals(kind) for kind in ("poisson", "constant")] == ["poisson", "constant"]
