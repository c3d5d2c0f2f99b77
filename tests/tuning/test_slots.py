"""Two loads that take turns: neither loses a request by it, and never are both due."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.bench.load.schedule import schedule
from mlserve.runs.load import Plan, Ramp
from mlserve.tuning.slots import shared_plan, slot_of

plans = st.builds(
    Plan,
    rate_per_s=st.floats(5, 2000),
    duration_s=st.floats(0.5, 20),
    warm_up_s=st.floats(0, 3),
    arrivals=st.sampled_from(["poisson", "constant"]),
    seed=st.integers(0, 1000),
)


@given(plans)
def test_requests_of_one_are_never_due_in_a_slot_of_the_other(plan):
    slot_s = slot_of(plan)
    if slot_s:
        due_s = schedule(shared_plan(plan, slot_s)) / 1e9
        other_s = due_s + slot_s
        assert set(np.floor(due_s / slot_s + 1e-6).astype(int) % 2) <= {0}
        assert set(np.floor(other_s / slot_s + 1e-6).astype(int) % 2) <= {1}
        within_s = (due_s + 1e-6) % slot_s
        assert (within_s <= 0.9 * slot_s + 3e-6).all()


@given(plans)
def test_each_has_as_many_requests_as_it_had(plan):
    slot_s = slot_of(plan)
    if slot_s:
        shared = shared_plan(msgspec.structs.replace(plan, arrivals="constant"), slot_s)
        due_s = schedule(shared) / 1e9
        measured = int((due_s >= shared.warm_up_s).sum())
        asked = plan.rate_per_s * plan.duration_s
        a_slot = 0.9 * slot_s * plan.rate_per_s
        assert asked - 2 <= measured <= asked + a_slot + 2
        assert shared.warm_up_s >= 2 * plan.warm_up_s - 1e-6


@pytest.mark.parametrize(
    "unlike",
    [
        {"arrivals": "closed", "users": 4, "rate_per_s": 0.0},
        {"shape": Ramp(100.0)},
        {"generators": 2},
        {"rate_per_s": 5.0, "duration_s": 2.0},
    ],
)
def test_a_load_that_cannot_take_turns_has_no_slot(unlike):
    plan = Plan(rate_per_s=50.0, duration_s=4.0, warm_up_s=0.0)
    assert slot_of(plan) == 0.2
    assert slot_of(msgspec.structs.replace(plan, **unlike)) == 0.0
