import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mlserve.bench.load.schedule import schedule
from mlserve.runs.load import Bursts, Flat, Plan, Ramp, Replay, Spikes, Steps

RATES = st.floats(0.5, 1000)
SHAPES = st.one_of(
    st.just(Flat()),
    st.builds(Ramp, RATES),
    st.builds(Steps, st.lists(RATES, min_size=1, max_size=4).map(tuple)),
    st.builds(lambda factor, length, rest: Spikes(factor, length, length + rest), *[st.floats(0.1, 5)] * 3),
    st.builds(Bursts, st.floats(0.01, 2), st.floats(0.01, 2)),
)
PLANS = st.builds(
    Plan,
    rate_per_s=RATES,
    duration_s=st.floats(0.01, 3),
    warm_up_s=st.floats(0, 1),
    arrivals=st.sampled_from(["poisson", "constant"]),
    shape=SHAPES,
    seed=st.integers(0, 2**63 - 1),
)


def plan(**fields):
    return Plan(**{"rate_per_s": 400.0, "duration_s": 10.0, "warm_up_s": 0.0} | fields)


def per_second(due_ns, seconds):
    return np.histogram(due_ns / 1e9, bins=np.arange(seconds + 1))[0]


@given(PLANS)
def test_every_instant_lies_in_the_run_and_they_are_sorted(plan):
    due_ns = schedule(plan)
    assert due_ns.dtype == np.int64
    assert np.all(np.diff(due_ns) >= 0)
    assert np.all((due_ns >= 0) & (due_ns < round(plan.longest_s * 1e9)))
    assert np.array_equal(due_ns, schedule(plan))


@given(PLANS.filter(lambda plan: plan.endless), st.floats(0, 10), st.booleans())
def test_a_run_that_may_take_longer_sends_the_same_beginning(plan, more_s, find_warm_up):
    longer = msgspec.structs.replace(plan, max_duration_s=plan.duration_s + more_s, find_warm_up=find_warm_up)
    short, long = schedule(plan), schedule(longer)
    # Where a load ends may fall on an arrival: within a nanosecond of the end, either is right.
    inside = short[short < plan.longest_s * 1e9 - 2]
    assert np.array_equal(inside, long[: len(inside)])
    assert np.all(long[len(short) :] >= plan.longest_s * 1e9 - 2)


def test_another_seed_gives_another_poisson_schedule_and_the_same_constant_one():
    assert not np.array_equal(schedule(plan()), schedule(plan(seed=1)))
    assert np.array_equal(schedule(plan(arrivals="constant")), schedule(plan(arrivals="constant", seed=1)))


@given(RATES, st.floats(0.01, 3), st.floats(0, 1))
def test_constant_arrivals_are_the_multiples_of_the_gap(rate, duration_s, warm_up_s):
    due_ns = schedule(Plan(rate_per_s=rate, duration_s=duration_s, warm_up_s=warm_up_s, arrivals="constant"))
    assert np.all(np.abs(due_ns - np.arange(len(due_ns)) / rate * 1e9) <= 1)
    assert abs(len(due_ns) - rate * (duration_s + warm_up_s)) <= 1


@pytest.mark.parametrize(
    ("shape", "seconds"),
    [
        (Flat(), [400, 400, 400, 400, 400]),
        (Ramp(800.0), [400, 450, 550, 650, 750]),
        (Ramp(200.0), [400, 375, 325, 275, 225]),
        (Steps((400.0, 100.0)), [400, 400, 400, 100, 100]),
        (Spikes(3.0, 1.0, 2.0), [400, 400, 1200, 400, 1200]),
        (Bursts(1.0, 2.0), [400, 400, 0, 0, 400]),
    ],
)
def test_each_second_has_the_rate_of_the_shape_and_the_warm_up_its_first(shape, seconds):
    load = plan(duration_s=4.0, warm_up_s=1.0, shape=shape)
    assert per_second(schedule(msgspec.structs.replace(load, arrivals="constant")), 5).tolist() == seconds
    # Five standard deviations of a Poisson count; and a second without load has nothing at all.
    counts = per_second(schedule(load), 5)
    assert np.all(np.abs(counts - seconds) <= 5 * np.sqrt(seconds))


@given(st.floats(0.5, 500), st.floats(0.01, 1), st.floats(0.01, 1), st.sampled_from(["poisson", "constant"]))
def test_nothing_is_due_between_bursts(rate, on_s, off_s, arrivals):
    load = plan(rate_per_s=rate, duration_s=5.0, shape=Bursts(on_s, off_s), arrivals=arrivals)
    into_s = (schedule(load) / 1e9) % (on_s + off_s)
    assert np.all((into_s <= on_s + 2e-9) | (into_s >= on_s + off_s - 2e-9))


def test_spikes_and_bursts_go_on_in_a_run_that_is_extended_and_a_ramp_keeps_its_last_rate():
    def counts(shape):
        load = plan(duration_s=2.0, max_duration_s=4.0, shape=shape, arrivals="constant")
        return per_second(schedule(load), 4).tolist()

    assert counts(Spikes(2.0, 1.0, 2.0)) == [400, 800, 400, 800]
    assert counts(Bursts(1.0, 1.0)) == [400, 0, 400, 0]
    assert counts(Ramp(800.0)) == [500, 700, 800, 800]
    assert counts(Steps((400.0, 200.0))) == [400, 200, 200, 200]


@pytest.mark.parametrize("seed", range(5))
def test_poisson_gaps_are_exponential_with_the_mean_of_the_rate(seed):
    gaps_s = np.diff(schedule(plan(duration_s=50.0, seed=seed))) / 1e9
    assert stats.kstest(gaps_s, "expon", args=(0, 1 / 400)).pvalue > 0.001
    assert np.mean(gaps_s) == pytest.approx(1 / 400, rel=0.05)


def test_the_exponential_test_would_tell_constant_gaps():
    gaps_s = np.diff(schedule(plan(duration_s=50.0, arrivals="constant"))) / 1e9
    assert stats.kstest(gaps_s, "expon", args=(0, 1 / 400)).pvalue < 1e-6


def test_the_arrivals_of_a_ramp_become_a_process_of_rate_one_when_time_is_changed_back():
    due_s = schedule(plan(shape=Ramp(4000.0))) / 1e9
    counts = 400 * due_s + (4000 - 400) / 10 * due_s**2 / 2
    assert stats.kstest(np.diff(counts), "expon").pvalue > 0.001
    assert stats.kstest(np.diff(due_s) * 2200, "expon").pvalue < 1e-6


def test_poisson_counts_vary_as_a_poisson_count_does_in_blocks_and_over_them():
    for mean in (400, 6000):  # less and more than is drawn at once
        counts = [len(schedule(plan(rate_per_s=mean / 4, duration_s=4.0, seed=seed))) for seed in range(300)]
        assert np.mean(counts) == pytest.approx(mean, rel=0.02)
        assert np.var(counts) == pytest.approx(mean, rel=0.3)


def test_twice_the_rate_is_the_same_schedule_in_half_the_time():
    slow, quick = schedule(plan(duration_s=10.0)), schedule(plan(duration_s=5.0, rate_per_s=800.0))
    assert np.all(np.abs(slow / 2 - quick) <= 1)


def test_a_replay_sends_a_warm_up_and_then_the_trace_at_its_speed():
    trace_ns = np.array([0, 10, 10, 2_000_000_000], np.int64)
    load = plan(arrivals="replay", shape=Replay("t", "", 2.0), warm_up_s=1.0, duration_s=2.0)
    due_ns = schedule(load, trace_ns.tobytes())
    assert due_ns[-4:].tolist() == [1_000_000_000, 1_000_000_005, 1_000_000_005, 2_000_000_000]
    assert len(due_ns) - 4 == pytest.approx(400, abs=100)
    assert np.all(due_ns[:-4] < 1_000_000_000)
    assert len(schedule(msgspec.structs.replace(load, warm_up_s=0.0), trace_ns.tobytes())) == 4


def test_a_closed_loop_has_no_schedule():
    assert len(schedule(plan(arrivals="closed", rate_per_s=0.0, users=3))) == 0
