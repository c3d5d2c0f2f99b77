import math

import msgspec
import pytest

from mlserve.bench.plan import check_arrivals, check_plan
from mlserve.errors import UsageError
from mlserve.runs.load import Plan

GOOD = Plan(rate_per_s=100, duration_s=1, warm_up_s=0)


def test_a_sound_plan_is_returned_as_it_is():
    assert check_plan(GOOD) is GOOD


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
    ],
)
def test_a_value_no_run_can_have_is_refused_by_its_flag(field, value, flag):
    with pytest.raises(UsageError, match=flag):
        check_plan(msgspec.structs.replace(GOOD, **{field: value}))


def test_both_kinds_of_arrivals_are_known():
    assert [check_arrivals(kind) for kind in ("poisson", "constant")] == ["poisson", "constant"]
