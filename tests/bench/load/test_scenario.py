import msgspec
import pytest

from mlserve.bench.load.scenario import SCENARIOS, apply_scenario
from mlserve.bench.plan import check_plan
from mlserve.errors import UsageError
from mlserve.runs.load import Plan, Ramp

ASKED = Plan(rate_per_s=300, duration_s=5, warm_up_s=1, seed=4)


@pytest.mark.parametrize(
    ("name", "arrivals", "rate", "users", "rows", "percentile"),
    [
        ("single-stream", "closed", 0, 1, 1, 0.9),
        ("multi-stream", "closed", 0, 1, 8, 0.99),
        ("server", "poisson", 300, 0, 1, 0.99),
        ("offline", "closed", 0, 64, 32, 0.99),
    ],
)
def test_each_scenario_is_the_load_that_mlperf_describes(name, arrivals, rate, users, rows, percentile):
    plan = check_plan(apply_scenario(name, ASKED))
    assert (plan.arrivals, plan.rate_per_s, plan.users, plan.batch_rows) == (arrivals, rate, users, rows)
    assert (plan.scenario, plan.percentile) == (name, percentile)
    assert (plan.duration_s, plan.seed) == (5, 4)


@pytest.mark.parametrize(
    ("name", "field", "value", "flag"),
    [
        ("single-stream", "rate_per_s", 300.0, "--rps"),
        ("single-stream", "users", 4, "--users"),
        ("multi-stream", "batch_rows", 4, "--batch"),
        ("server", "arrivals", "constant", "--arrivals"),
        ("server", "shape", Ramp(900.0), "--shape"),
        ("offline", "percentile", 0.5, None),
        ("offline", "rate_per_s", 300.0, "--rps"),
        ("server", "rate_per_s", 700.0, None),
        ("offline", "users", 7, None),
        ("offline", "batch_rows", 128, None),
    ],
)
def test_a_flag_that_contradicts_a_scenario_is_refused_by_name_and_one_that_does_not_is_kept(name, field, value, flag):
    plan = msgspec.structs.replace(ASKED, **{field: value})
    if flag is None:
        assert getattr(apply_scenario(name, plan, {field}), field) == value
    else:
        with pytest.raises(UsageError, match=f"{flag} contradicts --scenario {name}"):
            apply_scenario(name, plan, {field})
        assert apply_scenario(name, plan).scenario == name  # a default gives way


def test_what_was_asked_for_may_be_what_the_scenario_says():
    assert apply_scenario("single-stream", msgspec.structs.replace(ASKED, batch_rows=1), {"batch_rows"}).users == 1


def test_an_unknown_scenario_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match=", ".join(SCENARIOS)):
        apply_scenario("burst", ASKED)
