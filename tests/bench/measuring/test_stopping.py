"""When a run may end: by the clock, by what was found of its warm-up, or by how narrow an interval is."""

import importlib.util
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import norm

from mlserve.bench.measuring.stopping import decide, measured_part
from mlserve.runs.load import Plan
from mlserve.runs.percentiles import confidence_of, looks_s
from mlserve.stats import bootstrap_interval, quantile, quantile_of

_spec = importlib.util.spec_from_file_location("made_samples", Path(__file__).with_name("made_samples.py"))
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

PLAN = Plan(rate_per_s=200, duration_s=10.0, warm_up_s=1.0)
FINDING = msgspec.structs.replace(PLAN, find_warm_up=True)
PRECISE = Plan(rate_per_s=200, duration_s=3.0, warm_up_s=0.0, precision=0.1, max_duration_s=60.0, percentile=0.9)


def noisy_run(seed, rate_per_s, duration_s, cold_s=0.0):
    rng = np.random.default_rng(seed)
    due_s = made.arrivals(rng, rate_per_s, duration_s)
    return due_s, made.noisy(rng, len(due_s)) * np.where(due_s < cold_s, 3, 1)


def course(due_s, latency_s, plan, step_s=0.5, most_s=200.0):
    """What is decided when the rows there were at the time are asked about every `step_s`: the last, and how often."""
    for asked in range(1, int(most_s / step_s)):
        there = due_s + latency_s <= asked * step_s
        decision = decide(made.make_samples(due_s[there], latency_s[there]), asked * step_s, plan)
        if decision.action == "stop":
            return decision, asked
    raise AssertionError("it never ends")


def test_without_a_precision_the_run_ends_as_planned():
    decision, _ = course(*noisy_run(0, 200, 20), PLAN)
    assert decision.at_s == 11.0
    assert decision.window.start_s == 1.0
    assert decision.warm_up is None
    assert decision.reason == "10.0 s measured"


def test_the_duration_counts_from_where_warm_up_was_found_to_end():
    cold, _ = course(*noisy_run(0, 200, 30, cold_s=3.0), FINDING)
    warm, _ = course(*noisy_run(0, 200, 30), FINDING)
    assert cold.warm_up.end_s == pytest.approx(3.0, abs=0.2)
    assert cold.at_s == cold.warm_up.end_s + FINDING.duration_s
    assert warm.at_s == pytest.approx(11.0, abs=0.1)


def test_a_run_that_does_not_warm_up_is_given_as_long_again_and_no_longer():
    due_s, latency_s = noisy_run(0, 200, 60)
    decision, _ = course(due_s, latency_s * (1 + 4 * np.exp(-due_s / 4)), FINDING)
    assert decision.at_s > 11.0
    assert decision.at_s <= FINDING.longest_s
    assert decision.warm_up.found


def test_the_measured_part_of_a_finished_run_is_what_was_decided_on():
    due_s, latency_s = noisy_run(0, 200, 30, cold_s=3.0)
    decision, _ = course(due_s, latency_s, FINDING)
    sent = due_s < decision.at_s
    warm_up, window = measured_part(made.make_samples(due_s[sent], latency_s[sent]), FINDING, decision.at_s)
    assert window.start_s == pytest.approx(decision.window.start_s, abs=0.1)
    assert window.end_s == decision.at_s
    fixed_warm_up, fixed = measured_part(made.make_samples(due_s[sent], latency_s[sent]), PLAN, decision.at_s)
    assert fixed.start_s == PLAN.warm_up_s
    assert fixed_warm_up == warm_up


def test_a_precision_ends_the_run_when_the_interval_is_narrow_and_a_finer_one_later():
    due_s, latency_s = noisy_run(0, 200, 70)
    rough, _ = course(due_s, latency_s, PRECISE)
    fine, _ = course(due_s, latency_s, msgspec.structs.replace(PRECISE, precision=0.05))
    assert PRECISE.duration_s <= rough.at_s < fine.at_s < 60
    assert rough.wide <= 0.1
    assert fine.wide <= 0.05
    assert fine.low_s < fine.value_s < fine.high_s
    assert fine.high_s - fine.value_s <= fine.value_s * 0.05
    assert "p90 is " in fine.reason


def test_the_time_limit_ends_it_otherwise():
    plan = msgspec.structs.replace(PRECISE, precision=0.001, max_duration_s=8.0)
    decision, _ = course(*noisy_run(0, 200, 20), plan)
    assert decision.at_s == 8.0
    assert decision.reason.startswith("8.00 s measured, the time limit; p90 is ")


def test_a_percentile_that_has_too_few_samples_never_ends_a_run():
    plan = msgspec.structs.replace(PRECISE, percentile=0.999, precision=10.0, max_duration_s=8.0)
    decision, _ = course(*noisy_run(0, 200, 20), plan)
    assert decision.at_s == 8.0
    assert decision.reason.startswith("8.00 s measured, the time limit; p99.9 needs 4,603 answers, there are ")


def test_how_often_one_asks_changes_nothing_but_the_delay():
    due_s, latency_s = noisy_run(3, 200, 70)
    often, asked_often = course(due_s, latency_s, PRECISE, step_s=0.1)
    seldom, asked_seldom = course(due_s, latency_s, PRECISE, step_s=1.0)
    assert asked_often > 5 * asked_seldom
    assert (often.value_s, often.low_s, often.high_s) == (seldom.value_s, seldom.low_s, seldom.high_s)
    assert abs(often.at_s - seldom.at_s) <= 1.0


def test_nothing_changes_before_the_instant_it_names():
    due_s, latency_s = noisy_run(0, 200, 70)
    plan = msgspec.structs.replace(PRECISE, precision=0.001)
    first = decide(made.make_samples(due_s[due_s < 9], latency_s[due_s < 9]), 9.1, plan)
    just_before = first.again_s - 0.01
    there = due_s + latency_s <= just_before
    before = decide(made.make_samples(due_s[there], latency_s[there]), just_before, plan)
    there = due_s + latency_s <= first.again_s + 0.3
    after = decide(made.make_samples(due_s[there], latency_s[there]), first.again_s + 0.3, plan)
    assert first.value_s == before.value_s != after.value_s


def test_requests_that_may_still_be_answered_are_waited_for():
    """Of a server that stalls, only the quick answers are there."""
    due_s = np.arange(0, 5, 0.005)
    stalled = due_s > 3
    samples = made.make_samples(due_s[~stalled], 0.01)
    decision = decide(samples, 5.0, msgspec.structs.replace(PRECISE, duration_s=4.0))
    assert decision.window.end_s <= 3.0
    assert decision.action == "go on"


def test_before_the_first_answer_it_goes_on():
    decision = decide(made.make_samples(np.empty(0), np.empty(0)), 0.5, FINDING)
    assert decision.action == "go on"
    assert decision.reason == "0.00 us of 10.0 s measured"


def test_looks_grow_to_the_longest_and_share_what_may_go_wrong():
    assert looks_s(PRECISE)[:3] == [2.0, 3.0, 4.5]
    assert looks_s(PRECISE)[-1] == 60.0
    assert confidence_of(PLAN) == 0.95
    assert 1 - 0.05 / len(looks_s(PRECISE)) < confidence_of(PRECISE) < 1
    once = msgspec.structs.replace(PRECISE, max_duration_s=0.0)
    assert looks_s(once) == [2.0, 3.0]


RUNS = 40


def _correlated(seed, n, r):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(n) * np.sqrt(1 - r * r)
    noise[0] = rng.standard_normal()
    return 1e-3 * np.exp(0.4 * lfilter([1], [1, -r], noise))


def _truth_s(q):
    return 1e-3 * np.exp(0.4 * norm.ppf(q))


def _at_looks(latency_s, plan):
    """The decision that ends the run, asked just after each look, which is when it can change."""
    due_s = np.arange(len(latency_s)) / plan.rate_per_s
    for look_s in looks_s(plan)[1:]:
        there = due_s < look_s + 1.0
        decision = decide(made.make_samples(due_s[there], latency_s[there]), look_s + 1.0, plan)
        if decision.action == "stop":
            return decision
    raise AssertionError("it never ends")


def _naive(latency_s, plan):
    """The plain interval at the first look at which it is narrow."""
    for look_s in looks_s(plan):
        values_s = latency_s[: round(look_s * plan.rate_per_s)]
        low_s, high_s = bootstrap_interval([np.array_split(values_s, 20)], quantile_of(plan.percentile), resamples=400)
        if high_s - low_s <= 2 * plan.precision * quantile(values_s, plan.percentile):
            return low_s, high_s
    return low_s, high_s


@pytest.mark.parametrize(("r", "q", "precision"), [(0.0, 0.99, 0.2), (0.8, 0.5, 0.2), (0.8, 0.9, 0.2)])
def test_the_last_interval_holds_the_truth_in_93_percent_of_runs(r, q, precision):
    """Latencies are lognormal, so that the truth is known: independent ones, and an AR(1) series."""
    plan = msgspec.structs.replace(PRECISE, precision=precision, percentile=q, max_duration_s=30.0, rate_per_s=100.0)
    decisions = [_at_looks(_correlated(seed, 100 * 31, r), plan) for seed in range(RUNS)]
    held = [decision.low_s <= _truth_s(q) <= decision.high_s for decision in decisions]
    assert np.mean(held) >= 0.93
    assert np.mean([decision.at_s < 30 for decision in decisions]) > 0.5


def test_who_stops_at_the_first_narrow_interval_is_wrong_more_often():
    """The control: the same runs, without the rules."""
    plan = msgspec.structs.replace(PRECISE, precision=0.25, percentile=0.99)
    intervals = [_naive(_correlated(seed, 200 * 60, 0.9), plan) for seed in range(RUNS)]
    assert np.mean([low_s <= _truth_s(0.99) <= high_s for low_s, high_s in intervals]) < 0.85
