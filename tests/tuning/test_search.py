"""The search: right for a server of which the truth is known, in few steps, whatever chance does."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.tuning.evidence import Objective, Requests, conclude, look, weigh
from mlserve.tuning.search import Step, Try, bracket_of, is_confirmed, next_try

SERVICE_S = 0.001
P99 = Objective(percentile=0.99, limit_s=0.01, max_errors=0.001)


def step(rate, met, blame=""):
    return Step(rate_per_s=float(rate), met=met, sure=True, blame=blame)


def follow(verdict_at, start, resolution=0.05, most=1e6, least=0.0):
    """The steps of a whole search, and how it ended."""
    steps = []
    while isinstance(found := next_try(steps, start, resolution, most_per_s=most, least_per_s=least), Try):
        steps.append(step(found.rate_per_s, verdict_at(found.rate_per_s, len(steps))))
    return found, steps


@given(st.floats(2.0, 1e5), st.floats(0.05, 20.0), st.sampled_from([0.02, 0.05, 0.2]))
def test_without_chance_the_truth_lies_in_a_bracket_as_narrow_as_asked(truth, start_share, resolution):
    end, steps = follow(lambda rate, _: rate <= truth, start_share * truth, resolution)
    bracket = bracket_of(steps)
    assert end == "found"
    assert bracket.passed_per_s <= truth < bracket.failed_per_s
    assert bracket.failed_per_s <= bracket.passed_per_s * (1 + resolution / 2) * 1.001
    assert all(is_confirmed(steps, rate) for rate in (bracket.passed_per_s, bracket.failed_per_s))
    assert len(steps) <= 7 + math.ceil(math.log2(math.log(2) / math.log(1 + resolution / 2))) + 2


def test_a_server_that_never_meets_it_and_one_that_always_does_end_the_search():
    assert follow(lambda *_: False, 1000)[0] == "nothing passes"
    end, steps = follow(lambda *_: True, 1000, most=10_000)
    assert (end, steps[-1].rate_per_s) == ("nothing fails", 10_000)


@given(st.floats(0.5, 1e4), st.floats(0.5, 1e4), st.floats(0.5, 1e4))
def test_no_rate_is_tried_of_which_a_run_tells_nothing(truth, start, least):
    end, steps = follow(lambda rate, _: rate <= truth, start, least=least)
    assert min(step.rate_per_s for step in steps) >= least * 0.999
    if end == "runs too short":
        assert truth < steps[-1].rate_per_s <= least * 1.001
    else:
        assert end == "found" or (end == "nothing passes" and least <= start / 2**9)
        assert bool(bracket_of(steps).passed_per_s) == (end == "found")


def test_runs_that_contradict_one_another_are_decided_by_one_more():
    said = [step(100, True), step(102, False), step(100, False)]
    assert next_try(said, 100, 0.05, most_per_s=1e6) == Try(rate_per_s=50.0)
    said = [step(99, True), step(100, True), step(102, False), step(100, True), step(102, True)]
    assert next_try(said, 100, 0.05, most_per_s=1e6) == Try(rate_per_s=102.0, confirming=True)
    assert bracket_of([*said, step(102, False)]).failed_per_s == 102.0
    assert bracket_of([*said, step(102, True)]).passed_per_s == 102.0


def test_pure_chance_ends_all_the_same():
    rng = np.random.default_rng(0)
    for _ in range(50):
        end, steps = follow(lambda *_: rng.uniform() < 0.5, 100)
        assert end in ("found", "nothing passes", "nothing fails", "undecided")
        assert len(steps) <= 40


def test_a_step_that_is_no_evidence_is_repeated_once():
    good, late = step(100, True), step(200, False, "generator on time: 9 ms")
    assert next_try([good, late], 100, 0.05, most_per_s=1e6) == Try(rate_per_s=200.0)
    assert next_try([good, late, late], 100, 0.05, most_per_s=1e6) == "spoilt"
    assert next_try([good, late, step(200, False)], 100, 0.05, most_per_s=1e6) == Try(rate_per_s=141.4)
    assert math.isinf(bracket_of([good, late]).failed_per_s)


# A queue of which the truth is known


def waiting_beyond(load, limit):
    """P(a request waits longer than `limit` services), Poisson arrivals and one fixed service time (Crommelin 1932)."""
    terms = [(load * (number - limit), number) for number in range(math.floor(limit) + 1)]
    return 1 - (1 - load) * sum(a**number / math.factorial(number) * math.exp(-a) for a, number in terms)


def highest_rate():
    """Where p99 of the latency, waiting and service, is just the limit."""
    low, high = 0.1, 0.99
    for _ in range(50):
        middle = (low + high) / 2
        late = waiting_beyond(middle, P99.limit_s / SERVICE_S - 1)
        low, high = (middle, high) if late <= 1 - P99.percentile else (low, middle)
    return low / SERVICE_S


def run_of(rate_per_s, seed, duration_s=20.0, warm_up_s=2.0):
    """One run of the queue, looked at as the driver does; whether it met the objective."""
    rng = np.random.default_rng(seed)
    count = rng.poisson(rate_per_s * (warm_up_s + duration_s))
    due_s = np.sort(rng.uniform(0, warm_up_s + duration_s, count))
    walk = np.cumsum(np.concatenate([[0.0], SERVICE_S - np.diff(due_s)]))
    latency_s = walk - np.minimum.accumulate(np.minimum(walk, 0.0)) + SERVICE_S
    looks, seen = 0, 300.0
    for elapsed_s in np.arange(warm_up_s + 2, warm_up_s + duration_s, 0.5):
        settled = (due_s >= warm_up_s) & (due_s < elapsed_s - P99.limit_s)
        if settled.sum() < seen:
            continue
        looks, seen = looks + 1, 1.25 * settled.sum()
        known_s = np.where(due_s + latency_s <= elapsed_s, latency_s, np.inf)[settled]
        verdict = look(weigh(Requests(due_s[settled], known_s, np.zeros(len(known_s), bool)), P99), P99, looks)
        if verdict is not None:
            return verdict.met, elapsed_s
    measured = due_s >= warm_up_s
    every = Requests(due_s[measured], latency_s[measured], np.zeros(int(measured.sum()), bool))
    return conclude(weigh(every, P99), P99).met, warm_up_s + duration_s


def test_the_formula_is_that_of_the_queue():
    assert highest_rate() == pytest.approx(775, rel=0.01)  # by simulation of 2,000,000 requests
    assert waiting_beyond(0.5, 0.0) == pytest.approx(0.5)


def test_the_rate_found_is_within_the_resolution_of_the_truth():
    truth, found, counts, spent_s = highest_rate(), [], [], []
    for seed in range(20):
        taken_s = []

        def verdict_at(rate, number, seed=seed, taken_s=taken_s):
            met, elapsed_s = run_of(rate, [seed, number])
            taken_s.append(elapsed_s)
            return met

        end, steps = follow(verdict_at, 3000.0 if seed % 2 else 700.0)
        assert end == "found"
        found.append(bracket_of(steps).passed_per_s / truth)
        counts.append(len(steps))
        spent_s.append(sum(taken_s))
    assert np.mean(np.abs(np.array(found) - 1) <= 0.05) >= 0.95
    assert np.mean(counts) <= 15
    assert np.mean(spent_s) < 0.95 * np.mean(counts) * 22  # the early stop saves something


def test_a_run_well_below_the_truth_and_one_above_it_are_stopped_early():
    truth = highest_rate()
    for share, met, within_s in ((0.5, True, 15.0), (1.3, False, 8.0)):
        for seed in range(5):
            found, elapsed_s = run_of(share * truth, [1, seed])
            assert found is met
            assert elapsed_s <= within_s
