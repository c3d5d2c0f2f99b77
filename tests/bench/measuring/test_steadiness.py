"""What drifts is found, and what merely wanders is not, in simulated runs."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from mlserve.bench.measuring.steadiness import drift
from mlserve.runs.window import Window

_spec = importlib.util.spec_from_file_location("made_samples", Path(__file__).with_name("made_samples.py"))
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

RUNS = 40


def share_unsteady(course, *, rate_per_s=200, duration_s=20.0, runs=RUNS):
    """The share of simulated runs in which something drifts; `course` makes (arrivals, latencies) with a generator."""
    found = []
    for seed in range(runs):
        due_s, latency_s = course(np.random.default_rng(seed), rate_per_s, duration_s)
        found.append(drift(made.make_samples(due_s, latency_s), Window(0.0, duration_s)))
    return np.mean([not one.steady for one in found])


def growing(by, share=1.0):
    """Latency that grows in a straight line to 1 + `by` times, of a share of the requests."""

    def course(rng, rate_per_s, duration_s):
        due_s = made.arrivals(rng, rate_per_s, duration_s)
        chosen = rng.uniform(size=len(due_s)) < share
        return due_s, made.noisy(rng, len(due_s)) * np.where(chosen, 1 + by * due_s / duration_s, 1)

    return course


def queue_at(load, *, fixed=False):
    def course(rng, rate_per_s, duration_s):
        due_s = made.arrivals(rng, rate_per_s, duration_s)
        mean_s = load / rate_per_s
        service_s = np.full(len(due_s), mean_s) if fixed else rng.exponential(mean_s, len(due_s))
        return due_s, made.queue(due_s, service_s)

    return course


@pytest.mark.parametrize("fixed", [False, True])
def test_ten_percent_too_much_load_is_found_and_half_load_is_steady(fixed):
    for rate_per_s, duration_s in ((100, 10.0), (200, 20.0)):
        assert share_unsteady(queue_at(1.1, fixed=fixed), rate_per_s=rate_per_s, duration_s=duration_s) >= 0.87
        assert share_unsteady(queue_at(0.5, fixed=fixed), rate_per_s=rate_per_s, duration_s=duration_s) <= 0.025


@pytest.mark.parametrize("load", [0.7, 0.8])
def test_a_queue_that_wanders_is_steady(load):
    def course(rng, rate_per_s, duration_s):
        return made.steady_queue(rng, load, rate_per_s, duration_s)

    assert share_unsteady(course, rate_per_s=500) <= 0.025


def test_latency_that_grows_by_half_is_found_either_way_round():
    def shrinking(rng, rate_per_s, duration_s):
        due_s, latency_s = growing(0.5)(rng, rate_per_s, duration_s)
        return due_s, latency_s[::-1]

    assert share_unsteady(growing(0.5)) >= 0.95
    assert share_unsteady(shrinking) >= 0.95
    assert share_unsteady(growing(0.05)) == 0


def test_a_server_that_gets_slower_in_its_tail_alone_is_found():
    course = growing(6.0, share=0.04)
    due_s, latency_s = course(np.random.default_rng(0), 600, 20.0)
    found = drift(made.make_samples(due_s, latency_s), Window(0.0, 20.0))
    assert [one.name for one in found.trends if not one.steady] == ["p99"]
    assert found.thirds_agree
    assert found.found.startswith("p99 went from ")
    assert share_unsteady(course, rate_per_s=600, runs=20) >= 0.9


@pytest.mark.parametrize("at_s", [2.0, 10.0, 18.0])
def test_a_stall_is_no_drift(at_s):
    def course(rng, rate_per_s, duration_s):
        due_s = made.arrivals(rng, rate_per_s, duration_s)
        latency_s = made.noisy(rng, len(due_s))
        return due_s, np.where((due_s > at_s) & (due_s < at_s + 1), latency_s + at_s + 1 - due_s, latency_s)

    assert share_unsteady(course, runs=20) == 0


def test_answers_that_stay_away_more_and_more_are_a_trend_of_throughput():
    rng = np.random.default_rng(0)
    due_s = made.arrivals(rng, 300, 20)
    lost = rng.uniform(size=len(due_s)) < 0.5 * due_s / 20
    latency_s = made.noisy(rng, len(due_s))
    losing = drift(made.make_samples(due_s, latency_s, lost), Window(0.0, 20.0))
    whole = drift(made.make_samples(due_s, latency_s), Window(0.0, 20.0))
    assert [one.name for one in losing.trends if not one.steady] == ["throughput"]
    assert losing.found.startswith("throughput went from ")
    assert whole.steady


def test_in_a_closed_loop_throughput_is_answers_per_second():
    latency_s = np.linspace(0.010, 0.013, 1700)
    due_s = np.concatenate([[0.0], np.cumsum(latency_s)[:-1]])
    samples = made.make_samples(due_s, latency_s)
    window = Window(0.0, float(due_s[-1]))
    of_closed, of_open = (drift(samples, window, closed=closed).trends[-1] for closed in (True, False))
    assert of_closed.name == of_open.name == "throughput"
    assert (of_closed.steady, of_open.steady) == (False, True)
    assert of_closed.change == pytest.approx(10 / 13, rel=0.05)


def test_only_the_window_counts_and_differences_below_a_millisecond_are_none():
    rng = np.random.default_rng(0)
    due_s = made.arrivals(rng, 300, 20)
    latency_s = made.noisy(rng, len(due_s)) * np.where(due_s < 5, 5, 1)
    samples = made.make_samples(due_s, latency_s)
    assert not drift(samples, Window(0.0, 20.0)).steady
    assert drift(samples, Window(5.0, 20.0)).steady
    quick = made.make_samples(due_s, 0.0002 * (1 + due_s / 20))
    slow = made.make_samples(due_s, 0.02 * (1 + due_s / 20))
    assert drift(quick, Window(0.0, 20.0)).steady
    assert not drift(slow, Window(0.0, 20.0)).steady


def test_of_too_few_requests_nothing_is_said():
    assert drift(made.make_samples(np.arange(6) * 0.1, 0.01), Window(0.0, 0.6)) is None
    assert drift(made.make_samples(np.arange(60) * 0.1, 0.01), Window(0.0, 6.0)).steady
