import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlserve.bench.load.schedule import schedule
from mlserve.runs.load import Plan
from mlserve.tuning.prediction.costs import After, Costs, Path, Runs
from mlserve.tuning.prediction.simulation import Arrivals, SimulatedServer, simulate

ALONE = SimulatedServer(max_rows=1, cores=2)


def runs(*levels_of_rows):
    """Runs of up to 64 rows, each level of which is a function of the rows."""
    table = [[[level(rows) for level in levels_of_rows] for rows in range(65)]]
    return Runs(table, table)


def fixed(seconds):
    return runs(lambda _: seconds)


def arriving(rate_per_s, count, seed=0, rows=1):
    due_s = schedule(Plan(rate_per_s=rate_per_s, duration_s=count / rate_per_s, warm_up_s=0.0, seed=seed)) / 1e9
    return Arrivals(due_s, [rows] * len(due_s), [0] * len(due_s))


def lindley(due_s, service_s):
    """Waiting times where one is served after the other (Lindley 1952)."""
    waited_s = [0.0]
    for gap_s, served_s in zip(np.diff(due_s), service_s, strict=False):
        waited_s.append(max(0.0, waited_s[-1] + served_s - gap_s))
    return np.array(waited_s)


@pytest.mark.parametrize("load", [0.3, 0.8, 0.95])
def test_one_row_at_a_time_waits_as_lindley_says(load):
    arrivals = arriving(load * 100, 3000)
    found = simulate(arrivals, ALONE, Costs(runs=fixed(0.01)))
    service_s = np.full(len(arrivals.due_s), 0.01)
    np.testing.assert_allclose(found.latency_s, lindley(arrivals.due_s, service_s) + 0.01, atol=1e-9)
    assert found.mean_batch_rows == 1


def test_the_mean_wait_is_that_of_pollaczek_and_khinchine():
    """M/G/1: rate * E[S^2] / (2 (1 - load)); with S = 2 ms or 8 ms, as often, at half the capacity."""
    short_s, long_s, rate_per_s = 0.002, 0.008, 100.0
    mean_s, square = (short_s + long_s) / 2, (short_s**2 + long_s**2) / 2
    expected_s = rate_per_s * square / (2 * (1 - rate_per_s * mean_s)) + mean_s
    costs = Costs(runs=runs(lambda _: short_s, lambda _: long_s))
    found = [simulate(arriving(rate_per_s, 6000, seed), ALONE, costs, seed).latency_s.mean() for seed in range(4)]
    assert np.mean(found) == pytest.approx(expected_s, rel=0.06)


def test_littles_law_holds():
    """The requests in the system, on average, are the rate times the mean latency: counted at instants drawn."""
    arrivals = arriving(250, 4000)
    found = simulate(arrivals, SimulatedServer(cores=2), Costs(runs=runs(lambda rows: 0.004 + 0.001 * rows)))
    ended_s = arrivals.due_s + found.latency_s
    span_s = ended_s.max()
    instants_s = np.random.default_rng(0).uniform(0, span_s, 20_000)
    inside = np.searchsorted(arrivals.due_s, instants_s) - np.searchsorted(np.sort(ended_s), instants_s)
    assert inside.mean() == pytest.approx(len(ended_s) / span_s * found.latency_s.mean(), rel=0.05)


def test_a_batch_takes_what_waits_and_no_more_than_it_may():
    at_once = Arrivals(np.zeros(10), [1] * 10, [0] * 10)
    found = simulate(at_once, SimulatedServer(max_rows=4, cores=2, max_delay_s=0.001), Costs(runs=fixed(0.01)))
    # The first turn finds one request, which waits for its delay; what came meanwhile fills the batches.
    assert sorted(np.round(found.latency_s, 4)) == [0.01] * 4 + [0.02] * 4 + [0.03] * 2
    assert found.mean_batch_rows == pytest.approx(10 / 3)


def test_rows_of_different_kinds_do_not_share_a_batch():
    both = Runs([[[0.01]] * 9] * 2, [[[0.01]] * 9] * 2)
    mixed = Arrivals(np.zeros(8), [1] * 8, [0, 1] * 4)
    server = SimulatedServer(max_rows=8, cores=2, max_delay_s=0.001)
    found = simulate(mixed, server, Costs(runs=both))
    assert found.mean_batch_rows == 4
    alike = simulate(Arrivals(mixed.due_s, mixed.rows, [0] * 8), server, Costs(runs=both))
    assert alike.mean_batch_rows == 8


def test_a_short_model_runs_on_the_loop_and_one_turn_is_one_batch():
    costs = Costs(runs=fixed(0.0001), inline=Path(after=[After(turn_s=0.001)]), queued=Path(after=[After(turn_s=0.1)]))
    # While the first is answered, the others arrive.
    found = simulate(Arrivals(np.array([0, 1e-4, 2e-4]), [1] * 3, [0] * 3), SimulatedServer(cores=1), costs)
    np.testing.assert_allclose(found.latency_s, [0.0011, 0.0021, 0.002], atol=1e-9)
    assert found.mean_batch_rows == 1.5


def test_a_queue_that_is_full_refuses():
    flood = Arrivals(np.linspace(0, 1e-6, 50), [1] * 50, [0] * 50)
    found = simulate(flood, SimulatedServer(max_rows=1, cores=2, max_waiting_rows=10), Costs(runs=fixed(0.01)))
    assert np.isinf(found.latency_s).sum() == 39
    assert np.isfinite(simulate(flood, ALONE, Costs(runs=fixed(0.01))).latency_s).all()


def test_two_workers_on_one_core_are_no_quicker_than_one():
    arrivals = arriving(90, 1500)
    costs = Costs(runs=fixed(0.01))
    one = simulate(arrivals, SimulatedServer(max_rows=1, cores=1), costs)
    shared = simulate(arrivals, SimulatedServer(max_rows=1, cores=1, workers=2), costs)
    apart = simulate(arrivals, SimulatedServer(max_rows=1, cores=2, workers=2), costs)
    assert shared.latency_s.mean() > 0.95 * one.latency_s.mean()
    assert apart.latency_s.mean() < 0.7 * one.latency_s.mean()


def test_reading_takes_a_core_from_the_run_only_where_there_is_but_one():
    arrivals = arriving(50, 400)
    costs = Costs(runs=fixed(0.01), queued=Path(request_s=0.004))
    narrow, wide = (simulate(arrivals, SimulatedServer(cores=cores), costs).latency_s.mean() for cores in (1, 2))
    assert narrow > 1.05 * wide


@settings(max_examples=30)
@given(st.integers(0, 50), st.sampled_from([0.2, 0.5, 0.8]), st.sampled_from([1, 4, 32]))
def test_a_higher_rate_never_lowers_the_mean_latency_beyond_chance(seed, load, max_rows):
    server, costs = SimulatedServer(max_rows=max_rows, cores=2), Costs(runs=runs(lambda rows: 0.004 + 0.001 * rows))
    slow, quick = (simulate(arriving(load * 200 * times, 300, seed), server, costs, seed) for times in (1, 1.3))
    assert quick.latency_s.mean() >= 0.9 * slow.latency_s.mean()


@given(st.integers(0, 50), st.floats(0.0005, 0.02))
def test_a_delay_adds_at_most_itself_where_requests_are_rare(seed, delay_s):
    arrivals, costs = arriving(2, 40, seed), Costs(runs=runs(lambda _: 0.002))
    at_once, later = (
        simulate(arrivals, SimulatedServer(max_rows=32, cores=2, max_delay_s=delay), costs, seed).latency_s
        for delay in (0.0, delay_s)
    )
    # One that comes while others run or wait may wait for their run, too.
    assert (later <= at_once + delay_s + 0.002 + 1e-9).all()
    assert np.median(later) == pytest.approx(np.median(at_once) + delay_s, abs=1e-6)


@given(st.integers(0, 30), st.integers(1, 3), st.integers(1, 4), st.booleans(), st.sampled_from([0.0, 0.002]))
def test_every_request_is_answered_once_and_never_before_it_could_be(seed, workers, cores, shared, delay_s):
    server = SimulatedServer(workers=workers, cores=cores, max_rows=4, max_delay_s=delay_s, shared_connections=shared)
    costs = Costs(
        runs=runs(lambda rows: 0.002 * rows), queued=Path(request_s=1e-4, after=[After(turn_s=1e-4, outside_s=(1e-4,))])
    )
    found = simulate(arriving(300, 120, seed), server, costs, seed)
    assert np.isfinite(found.latency_s).all()
    assert found.latency_s.min() >= 0.002
    assert 1 <= found.mean_batch_rows <= 4
    assert 0 < found.utilization <= 1


def test_the_same_seed_gives_the_same():
    costs = Costs(runs=runs(lambda _: 0.002, lambda _: 0.004))
    first, same, other = (
        simulate(arriving(150, 300), SimulatedServer(workers=2, cores=2), costs, seed).latency_s for seed in (1, 1, 2)
    )
    assert (first == same).all()
    assert (first != other).any()


def test_a_pause_makes_the_next_request_cold():
    table = [[[0.010]] * 2], [[[0.020]] * 2]
    due_s = np.concatenate([np.arange(10) * 1.0, 10 + np.arange(10) * 0.0101])
    found = simulate(Arrivals(due_s, [1] * 20, [0] * 20), ALONE, Costs(runs=Runs(*table)))
    assert math.isclose(found.latency_s[5], 0.020, abs_tol=1e-9)
    assert all(later < earlier for earlier, later in itertools.pairwise([0.020, found.latency_s[15]]))


def one_by_one(due_s, latency_s, client_s):
    """What a generator sees that does one thing after the other, first come, first served: event by event."""
    each_s = client_s / 2
    coming = [(due, number, "send") for number, due in enumerate(due_s)]
    coming += [
        (due + took - each_s, number, "take") for number, (due, took) in enumerate(zip(due_s, latency_s, strict=True))
    ]
    seen_s, free_s = list(latency_s), -math.inf
    for at_s, number, _ in sorted(coming, key=lambda each: (each[0], each[2], each[1])):
        begun_s = max(at_s, free_s)
        seen_s[number] += begun_s - at_s
        free_s = begun_s + each_s
    return seen_s


@given(st.integers(0, 30), st.sampled_from([50, 400, 900]), st.sampled_from([1e-5, 3e-4, 8e-4]))
def test_a_generator_does_one_thing_after_the_other(seed, rate_per_s, client_s):
    arrivals = arriving(rate_per_s, 80, seed)
    plain, asked = (Costs(runs=fixed(0.002), inline=Path(client_s=each)) for each in (0.0, client_s))
    server = SimulatedServer(cores=2, max_rows=8, max_delay_s=0.001)
    expected_s = one_by_one(arrivals.due_s, simulate(arrivals, server, plain, seed).latency_s, client_s)
    np.testing.assert_allclose(simulate(arrivals, server, asked, seed).latency_s, expected_s, atol=1e-9)


def test_answers_that_come_together_are_taken_by_all_generators():
    due_s = np.zeros(8)
    costs = Costs(runs=fixed(0.01), inline=Path(client_s=0.002))
    server = SimulatedServer(cores=2, max_rows=8, max_delay_s=0.001)
    one, four = (
        simulate(Arrivals(due_s, [1] * 8, [0] * 8, generators=each), server, costs).latency_s.max() for each in (1, 4)
    )
    assert four == pytest.approx(0.01 + 0.002, abs=1e-9)  # each waits for one to be sent and one to be taken
    assert one == pytest.approx(0.01 + 0.014, abs=1e-9)


def test_workers_that_share_a_core_keep_it_warm():
    after = [After(gap_s=0.001, turn_s=1e-4), After(gap_s=0.1, turn_s=5e-3)]
    costs = Costs(runs=fixed(1e-4), inline=Path(after=after))
    arrivals = arriving(200, 400)
    shared, apart = (
        np.median(simulate(arrivals, SimulatedServer(workers=2, cores=cores, shared_connections=True), costs).latency_s)
        for cores in (1, 2)
    )
    assert shared < apart


def test_a_batch_leaves_as_late_as_its_thread_wakes():
    table = [[[0.002]] * 9]
    arrivals = arriving(20, 60)
    server = SimulatedServer(cores=2, max_rows=8, max_delay_s=0.004)
    on_time, late = (
        simulate(arrivals, server, Costs(runs=Runs(table, table, late_s=each))).latency_s
        for each in ((0.0,), (0.0005,))
    )
    assert np.median(late) == pytest.approx(np.median(on_time) + 0.0005, abs=1e-6)
