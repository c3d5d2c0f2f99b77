"""When requests prove that an objective is met, or missed: right where the truth is known, and not sure too early."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import UsageError
from mlserve.stats import minimum_samples
from mlserve.tuning.evidence import (
    LEAST_REQUESTS,
    Objective,
    Requests,
    conclude,
    effective_samples,
    look,
    parse_slo,
    weigh,
)

P99 = Objective(percentile=0.99, limit_s=0.05, max_errors=0.001)


def requests(latency_s, failed=None, duration_s=10.0):
    count = len(latency_s)
    failed = np.zeros(count, bool) if failed is None else failed
    return Requests(np.linspace(0, duration_s, count), np.where(failed, math.inf, latency_s), failed)


def independent(count, share_over, rng):
    """Latencies of 10 ms and a bit, of which a share is over the limit."""
    latency_s = 0.01 * np.exp(0.1 * rng.standard_normal(count))
    return np.where(rng.uniform(size=count) < share_over, 0.1, latency_s)


def test_an_objective_is_read():
    assert parse_slo("p99=50ms", "0.1%") == P99
    assert parse_slo("p99.9=1s", "1%").percentile == pytest.approx(0.999)
    assert (P99.name, parse_slo("p99.9=1s").name) == ("p99", "p99.9")
    assert P99.words == "p99 within 50.0 ms, at most 0.1% errors"


@pytest.mark.parametrize(
    ("slo", "errors", "says"),
    [
        ("p99", "0", "write NAME=VALUE"),
        ("p99=50ms,p50=5ms", "0", "give one percentile"),
        ("mean=5ms", "0", "no percentile"),
        ("p100=5ms", "0", "no percentile"),
        ("p4=5ms", "0", "no percentile"),
        ("pnan=5ms", "0", "no percentile"),
        ("p99=fast", "0", "no duration"),
        ("p99=5ms", "many", "no ratio"),
        ("p99=5ms", "100%", "allows every request to fail"),
    ],
)
def test_what_is_no_objective_is_refused(slo, errors, says):
    with pytest.raises(UsageError, match=says):
        parse_slo(slo, errors)


@pytest.mark.parametrize(("over", "needed"), [(0, 459), (1, 662), (10, 2010)])
def test_for_independent_requests_the_rule_is_loadgen_s(over, needed):
    """MLPerf Inference, early stopping: how many requests prove p99 with so many over the limit (c = 0.99, d = 0)."""
    for count, proves in ((needed, True), (needed - 1, False)):
        latency_s = np.full(count, 0.01)
        if over:
            latency_s[:: count // over][:over] = 0.1
        assert (weigh(requests(latency_s), P99).chance_missed <= 0.01) == proves or over
    spread = np.full(needed, 0.01)
    spread[np.linspace(5, needed - 5, over).astype(int)] = 0.1
    assert weigh(requests(spread), P99).chance_missed == pytest.approx(0.01, rel=0.15)


def test_one_stretch_of_slow_requests_is_less_evidence_than_as_many_here_and_there():
    burst, spread = np.full(5000, 0.01), np.full(5000, 0.01)
    burst[1000:1040] = 0.1
    spread[np.linspace(1, 4998, 40).astype(int)] = 0.1
    assert weigh(requests(burst), P99).effective < 0.1 * weigh(requests(spread), P99).effective


def test_independent_values_are_worth_about_themselves_and_a_wandering_series_much_less():
    rng = np.random.default_rng(0)
    block_of = np.repeat(np.arange(20), 200)
    worth = [effective_samples(rng.standard_normal(4000), block_of) for _ in range(20)]
    assert 2000 < np.median(worth) <= 4000
    steps = rng.standard_normal((20, 4000))
    wandering = np.zeros((20, 4000))
    for number in range(1, 4000):  # an autoregressive series, of which n values are worth n / 39
        wandering[:, number] = 0.95 * wandering[:, number - 1] + steps[:, number]
    worth = [effective_samples(series, block_of) for series in wandering]
    assert 50 < np.median(worth) < 200


@given(st.lists(st.floats(0, 1e6), max_size=60))
def test_any_values_are_worth_from_one_to_as_many_as_there_are(values):
    worth = effective_samples(np.array(values), np.arange(len(values)) // 3)
    assert min(1, len(values)) <= worth <= max(1, len(values))


def test_what_is_clear_is_proven_and_what_is_near_is_not():
    rng = np.random.default_rng(1)
    good, near, bad = (weigh(requests(independent(3000, share, rng)), P99) for share in (0.001, 0.01, 0.05))
    assert look(good, P99, 1).met
    assert look(near, P99, 1) is None
    assert not look(bad, P99, 1).met
    assert not conclude(near, P99).sure


def test_a_system_that_just_misses_is_hardly_ever_called_good_however_often_one_looks():
    rng = np.random.default_rng(2)
    called_good = 0
    for _ in range(200):
        latency_s = independent(6000, 0.0101, rng)
        looks = (500 * 1.25 ** np.arange(12)).astype(int)
        verdicts = [look(weigh(requests(latency_s[:count]), P99), P99, number) for number, count in enumerate(looks, 1)]
        called_good += any(verdict is not None and verdict.met for verdict in verdicts)
    assert called_good <= 6  # 1% of 200, and what chance adds to that


def test_failures_count_against_the_objective_even_where_latency_is_fine():
    latency_s = np.full(4000, 0.01)
    failed = np.zeros(4000, bool)
    failed[::200] = True  # 0.5%: p99 holds, the errors do not
    verdict = conclude(weigh(requests(latency_s, failed), P99), P99)
    assert not verdict.met
    assert verdict.sure
    assert "20 failed" in verdict.why
    lenient = Objective(percentile=0.99, limit_s=0.05, max_errors=0.01)
    assert conclude(weigh(requests(latency_s, failed), lenient), lenient).met


def test_without_any_errors_allowed_one_failure_decides():
    strict = Objective(percentile=0.99, limit_s=0.05, max_errors=0.0)
    failed = np.zeros(2000, bool)
    assert conclude(weigh(requests(np.full(2000, 0.01), failed), strict), strict).met
    failed[7] = True
    assert look(weigh(requests(np.full(2000, 0.01), failed), strict), strict, 1).met is False


def test_a_queue_that_grows_does_not_pass_however_far_the_limit_still_is():
    rising = np.linspace(0.001, 0.02, 5000)
    evidence = weigh(requests(rising), P99)
    assert evidence.growing
    assert not conclude(evidence, P99).met
    level = weigh(requests(np.full(5000, 0.02)), P99)
    assert not level.growing
    assert conclude(level, P99).met


def test_nothing_proves_nothing():
    evidence = weigh(requests(np.empty(0)), P99)
    assert look(evidence, P99, 1) is None
    assert conclude(evidence, P99).met is False
    few = conclude(weigh(requests(np.full(20, 0.01)), P99), P99)
    assert (few.met, few.sure, few.enough) == (True, False, False)


@given(st.integers(0, 700), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.99]), st.integers(0, 99))
def test_nothing_is_decided_by_fewer_requests_than_the_percentile_takes(count, share_over, percentile, seed):
    objective = Objective(percentile=percentile, limit_s=0.05, max_errors=0.001)
    latency_s = independent(count, share_over, np.random.default_rng(seed))
    evidence = weigh(requests(latency_s), objective)
    verdict = conclude(evidence, objective)
    needed = minimum_samples(percentile)
    missed_early = verdict.sure and not verdict.met and count >= LEAST_REQUESTS
    assert verdict.enough == (count >= needed or missed_early)
    assert verdict.enough or not verdict.sure
    assert verdict.enough != (f"p{100 * percentile:g} takes {needed}" in verdict.why)
