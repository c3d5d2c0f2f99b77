import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.bench.load.schedule import schedule
from mlserve.runs.load import Plan
from mlserve.tuning.prediction.costs import Costs, Runs
from mlserve.tuning.prediction.replay import Replay
from mlserve.tuning.prediction.simulation import Arrivals, SimulatedServer, simulate

TIMES = st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=8)


def test_what_is_begun_in_a_slow_phase_takes_longer_and_goes_on_quickly_after_it():
    replay = Replay([1.0, 2.0, 1.0], [1.0, 1.0, 1.0])  # from 1 s to 3 s half as fast
    assert replay.span_s == 4.0
    assert replay.took_s(0.0, 1.0) == pytest.approx(1.0)
    assert replay.took_s(1.0, 0.5) == pytest.approx(1.0)
    assert replay.took_s(2.0, 1.0) == pytest.approx(1.5)
    assert replay.took_s(3.5, 1.0) == pytest.approx(1.0)  # the end, and the beginning again
    assert replay.took_s(4.0 * 7 + 3.5, 2 * 3.0) == pytest.approx(8.0)  # two rounds


@given(st.lists(st.tuples(st.floats(1e-4, 1.0), st.floats(1e-4, 1.0)), min_size=1, max_size=8), st.floats(0, 50), TIMES)
def test_work_takes_as_long_at_once_as_in_parts(runs, since_s, parts_s):
    replay = Replay(*zip(*runs, strict=True))
    at_s = since_s
    for part_s in parts_s:
        at_s += replay.took_s(at_s, part_s)
    whole_s = replay.took_s(since_s, sum(parts_s))
    assert whole_s > 0
    assert at_s - since_s == pytest.approx(whole_s, rel=1e-6, abs=1e-9)


def test_a_replay_of_nothing_is_refused():
    for took_s, typical_s in (([], []), ([0.0], [1.0])):
        with pytest.raises(ValueError, match="runs that took time"):
            Replay(took_s, typical_s)


def test_slow_runs_that_come_together_make_a_longer_queue_than_as_many_that_do_not():
    """One run in ten takes three times as long: all of them for a second, or now and then; at 65% of what it bears."""
    took_s, typical_s = [0.01] * 300 + [0.03] * 33, [0.01] * 333
    due_s = schedule(Plan(rate_per_s=54.0, duration_s=60.0, warm_up_s=0.0)) / 1e9
    arrivals = Arrivals(due_s, [1] * len(due_s), [0] * len(due_s))
    levels = np.quantile(took_s, (np.arange(200) + 0.5) / 200).tolist()
    table = [[levels, levels]]
    server = SimulatedServer(max_rows=1, cores=2)
    apart, together = (
        float(np.quantile(simulate(arrivals, server, Costs(runs=Runs(table, table, replay))).latency_s, 0.99))
        for replay in (None, Replay(took_s, typical_s))
    )
    assert together > 1.5 * apart
