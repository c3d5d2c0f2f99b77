"""Where a run's start-up ends, in simulated runs of which that is known."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from mlserve.bench.measuring.warm_up import find_warm_up

_spec = importlib.util.spec_from_file_location("made_samples", Path(__file__).with_name("made_samples.py"))
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

RUNS = 60
DURATION_S = 20.0


def found(course, *, rate_per_s=300, runs=RUNS, duration_s=DURATION_S):
    """What is found in each of `runs` runs; `course` makes latencies, and perhaps failures, of arrivals."""
    warm_ups = []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        due_s = made.arrivals(rng, rate_per_s, duration_s)
        made_s = course(rng, due_s)
        rows = made_s if isinstance(made_s, tuple) else (due_s, made_s)
        warm_ups.append(find_warm_up(made.make_samples(*rows), duration_s / 2))
    return warm_ups


def cut_s(warm_ups):
    return np.array([one.end_s for one in warm_ups])


def noisy(rng, due_s):
    return made.noisy(rng, len(due_s))


def cold(tau_s):
    return lambda rng, due_s: noisy(rng, due_s) * (1 + 2 * np.exp(-due_s / tau_s))


def stall(latency_s, due_s, at_s):
    return np.where((due_s > at_s) & (due_s < at_s + 1), latency_s + at_s + 1 - due_s, latency_s)


@pytest.mark.parametrize(
    "course",
    [
        noisy,
        lambda rng, due_s: made.noisy(rng, len(due_s), spread=1.0),
        lambda rng, due_s: 0.010 + rng.exponential(5e-5, len(due_s)),
        lambda rng, due_s: noisy(rng, due_s) * np.where(rng.uniform(size=len(due_s)) < 0.1, 10, 1),
        lambda rng, due_s: made.correlated(rng, len(due_s), 0.9),
        lambda rng, due_s: made.steady_queue(rng, 0.5, len(due_s) / DURATION_S, DURATION_S),
    ],
    ids=["noise", "heavy tail", "fixed time", "bimodal", "correlated", "queue at half load"],
)
@pytest.mark.parametrize("rate_per_s", [20, 300])
def test_a_steady_run_loses_nearly_nothing(course, rate_per_s):
    warm_ups = found(course, rate_per_s=rate_per_s)
    # Of 400 requests, 2% are hardly more than a block.
    assert np.mean(cut_s(warm_ups) <= (0.01 if rate_per_s > 20 else 0.02) * DURATION_S) >= 0.95
    assert np.mean(cut_s(warm_ups) == 0) >= 0.8
    assert all(one.over for one in warm_ups)


@pytest.mark.parametrize(("tau_s", "rate_per_s"), [(0.3, 300), (1.0, 300), (2.0, 300), (0.3, 20), (1.0, 20), (2.0, 20)])
def test_a_cold_start_is_cut_where_it_stops_to_matter(tau_s, rate_per_s):
    warm_ups = found(cold(tau_s), rate_per_s=rate_per_s)
    ends_s = cut_s(warm_ups)
    left = 2 * np.exp(-ends_s / tau_s)
    # What a few requests tell is less.
    assert np.mean(left < (0.25 if rate_per_s > 20 else 1.0)) >= 0.95
    assert np.mean(ends_s < 6 * tau_s) >= 0.95
    assert np.mean([one.found and one.over for one in warm_ups]) >= 0.9


def test_the_median_of_what_is_left_of_a_cold_start_is_that_of_a_warm_server():
    cold_s, left_s, warm_s = [], [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        due_s = made.arrivals(rng, 300, 10)
        base_s = noisy(rng, due_s)
        latency_s = base_s * (1 + 2 * np.exp(-due_s))
        end_s = find_warm_up(made.make_samples(due_s, latency_s), 5.0).end_s
        cold_s.append(np.quantile(latency_s, 0.99))
        left_s.append(np.quantile(latency_s[due_s >= end_s], 0.99))
        warm_s.append(np.quantile(base_s, 0.99))
    assert np.mean(left_s) == pytest.approx(np.mean(warm_s), rel=0.03)
    assert np.mean(cold_s) > 1.3 * np.mean(warm_s)


def test_a_start_up_that_ends_at_once_is_cut_there():
    warm_ups = found(lambda rng, due_s: noisy(rng, due_s) * np.where(due_s < 2, 3, 1))
    assert np.mean(np.abs(cut_s(warm_ups) - 2) < 0.1) >= 0.95


@pytest.mark.parametrize("rate_per_s", [20, 300])
def test_one_slow_first_request_is_cut_and_little_else(rate_per_s):
    warm_ups = found(
        lambda rng, due_s: np.where(np.arange(len(due_s)) == 0, 1.0, noisy(rng, due_s)), rate_per_s=rate_per_s
    )
    assert all(one.end_s > 0 for one in warm_ups)
    assert np.mean(cut_s(warm_ups) < 10 / rate_per_s) >= 0.9


def test_connections_that_open_in_the_first_tenth_of_a_second_are_cut():
    warm_ups = found(lambda rng, due_s: noisy(rng, due_s) + np.where(due_s < 0.1, 0.02, 0))
    assert np.mean((cut_s(warm_ups) > 0.08) & (cut_s(warm_ups) < 0.2)) >= 0.95


def test_failures_of_a_server_that_is_not_ready_are_cut():
    def course(rng, due_s):
        return due_s, noisy(rng, due_s), due_s < 0.5

    assert np.mean(np.abs(cut_s(found(course)) - 0.5) < 0.1) >= 0.95


def test_a_start_up_that_slows_one_request_in_ten_is_seen():
    def course(rng, due_s):
        return noisy(rng, due_s) * np.where((due_s < 3) & (rng.uniform(size=len(due_s)) < 0.1), 5, 1)

    ends_s = cut_s(found(course, rate_per_s=1000))
    assert np.mean((ends_s > 1.0) & (ends_s < 3.2)) >= 0.9


@pytest.mark.parametrize(
    "course",
    [
        lambda rng, due_s: noisy(rng, due_s) * (1 + due_s / DURATION_S),
        lambda rng, due_s: noisy(rng, due_s) * (2 - due_s / DURATION_S),
        lambda rng, due_s: stall(noisy(rng, due_s), due_s, 5.0),
        lambda rng, due_s: stall(noisy(rng, due_s), due_s, 14.0),
        lambda rng, due_s: made.queue(due_s, rng.exponential(1.1 / 300, len(due_s))),
    ],
    ids=["slower and slower", "quicker and quicker", "early stall", "late stall", "overload"],
)
def test_what_is_no_start_up_is_left_to_other_checks(course):
    warm_ups = found(course)
    assert np.mean(cut_s(warm_ups) <= 0.01 * DURATION_S) >= 0.95
    assert all(one.over for one in warm_ups)


@pytest.mark.parametrize("at_s", [7.0, 14.0])
def test_a_stall_later_hides_no_cold_start(at_s):
    warm_ups = found(lambda rng, due_s: stall(cold(1.0)(rng, due_s), due_s, at_s))
    assert np.mean((cut_s(warm_ups) > 1.8) & (cut_s(warm_ups) < 6)) >= 0.9


def test_a_start_up_that_outlasts_half_of_the_run_is_not_over():
    slow, quick = found(cold(7.0)), found(cold(1.0))
    assert np.mean([one.over for one in slow]) < 0.05
    assert all(one.end_s == DURATION_S / 2 for one in slow if not one.over)
    assert "still got quicker 10.0 s after" in next(one for one in slow if not one.over).reason
    assert all(one.over for one in quick)


@pytest.mark.parametrize("rows", [0, 1, 99])
def test_of_too_few_requests_nothing_is_claimed(rows):
    due_s = np.arange(rows) / 10
    warm_up = find_warm_up(made.make_samples(due_s, np.where(due_s < 1, 1.0, 0.01)), rows / 20)
    assert not warm_up.found
    assert warm_up.over
    assert "too few requests to tell" in warm_up.reason


def test_rows_that_may_not_all_be_there_are_not_looked_at():
    rng = np.random.default_rng(0)
    due_s = made.arrivals(rng, 300, 20)
    latency_s = cold(0.5)(rng, due_s)
    whole = find_warm_up(made.make_samples(due_s[due_s < 10], latency_s[due_s < 10]), 5.0)
    latency_s[due_s >= 10] = 100.0
    samples = made.make_samples(due_s, latency_s)
    assert find_warm_up(samples, 5.0, 10.0) == whole
    assert find_warm_up(samples, 5.0, math.inf) != whole
