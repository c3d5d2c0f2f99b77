import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mlserve.bench.load.schedule import schedule

KINDS = st.sampled_from(["poisson", "constant"])
RATES = st.floats(0.5, 2000)
DURATIONS = st.floats(0.01, 3)
SEEDS = st.integers(0, 2**32)


@given(KINDS, RATES, DURATIONS, SEEDS)
def test_every_instant_lies_in_the_duration_and_they_are_sorted(kind, rate, duration_s, seed):
    due_ns = schedule(kind, rate, duration_s, seed)
    assert due_ns.dtype == np.int64
    assert np.all(np.diff(due_ns) >= 0)
    assert np.all((due_ns >= 0) & (due_ns < duration_s * 1e9 + 1))


@given(KINDS, RATES, DURATIONS, SEEDS)
def test_the_same_seed_gives_the_same_schedule(kind, rate, duration_s, seed):
    assert np.array_equal(schedule(kind, rate, duration_s, seed), schedule(kind, rate, duration_s, seed))


def test_another_seed_gives_another_poisson_schedule():
    assert not np.array_equal(schedule("poisson", 500, 2, 0), schedule("poisson", 500, 2, 1))


@given(RATES, DURATIONS)
def test_constant_arrivals_are_the_multiples_of_the_gap(rate, duration_s):
    due_ns = schedule("constant", rate, duration_s, 0)
    assert np.all(np.abs(due_ns - np.arange(len(due_ns)) / rate * 1e9) <= 1)
    assert abs(len(due_ns) - rate * duration_s) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_poisson_gaps_are_exponential_with_the_mean_of_the_rate(seed):
    gaps_s = np.diff(schedule("poisson", 400, 50, seed)) / 1e9
    assert stats.kstest(gaps_s, "expon", args=(0, 1 / 400)).pvalue > 0.001
    assert np.mean(gaps_s) == pytest.approx(1 / 400, rel=0.05)


def test_the_exponential_test_would_tell_constant_gaps():
    gaps_s = np.diff(schedule("constant", 400, 50, 0)) / 1e9
    assert stats.kstest(gaps_s, "expon", args=(0, 1 / 400)).pvalue < 1e-6


def test_poisson_counts_vary_as_a_poisson_count_does():
    counts = [len(schedule("poisson", 100, 4, seed)) for seed in range(300)]
    assert np.mean(counts) == pytest.approx(400, rel=0.02)
    assert np.var(counts) == pytest.approx(400, rel=0.3)
