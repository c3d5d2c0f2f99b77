"""A server whose response times are known beforehand: the bench finds them, and a closed loop would not."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from mlserve.runs.load import Plan
from mlserve.runs.window import Window
from mlserve.stats import quantile

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def truth():
    """benchmarks/truth.py, with what it imports from beside itself."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("truth", BENCHMARKS / "truth.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))
        sys.modules.pop("known_server", None)


def closed_loop(samples, users):
    """What of an open loop's rows a closed loop of `users` would have seen: each asks when its last answer is there."""
    free_s = np.zeros(users)
    seen = []
    for due_s, done_s in zip(samples.scheduled_s, samples.done_s, strict=True):
        user = int(np.argmin(free_s))
        if free_s[user] <= due_s:
            free_s[user] = done_s
            seen.append(done_s - due_s)
    return np.array(seen)


def test_a_stall_is_measured_as_it_was_and_a_closed_loop_would_miss_it(truth, tmp_path):
    """On a busy machine an attempt may fail; wrong arithmetic fails them all."""
    plan = Plan(rate_per_s=150.0, duration_s=2.8, warm_up_s=0.2, seed=7)
    true_s, ok = truth.truth("short stall", plan, Window(0.2, 3.0))
    assert ok.all()
    attempts = (_measured_s(truth, plan, tmp_path / str(number)) for number in range(3))
    samples = next((one for one in attempts if _close(one.latency_s, true_s)), None)
    assert samples is not None
    # In the control the stall is all but gone, though the rows are the same.
    assert not _close(closed_loop(samples, 4), true_s)
    assert quantile(closed_loop(samples, 4), 0.9) < 0.5 * quantile(true_s, 0.9)


def _measured_s(truth, plan, directory):
    with truth.serving("short stall", 3.0) as url:
        return truth.by_mlserve(url, plan, directory)[0]


def _close(latency_s, true_s):
    quantiles = ((quantile(latency_s, q), quantile(true_s, q)) for q in (0.5, 0.9, 0.97))
    return all(found == pytest.approx(true, rel=0.1, abs=0.01) for found, true in quantiles)


def test_the_computation_is_that_of_a_queue(truth):
    latency_s, ok = truth.true_latencies("fixed", 1.0, np.zeros(25))
    assert latency_s == pytest.approx([0.040] * 12 + [0.080] * 12 + [0.120])
    assert ok.all()
    alone_s, _ = truth.true_latencies("fixed", 1.0, 5.0 + np.arange(50) * 0.1)
    assert alone_s == pytest.approx(0.040)
    stalled_s, _ = truth.true_latencies("stall", 1.0, np.array([0.0, 6.5, 7.5, 16.25]))
    assert stalled_s == pytest.approx([0.040, 0.540, 0.040, 0.790])
    ramp_s, _ = truth.true_latencies("ramp", 10.0, np.array([0.0, 5.0, 10.0, 20.0]))
    assert ramp_s == pytest.approx([0.030, 0.051, 0.072, 0.072])
    _, mostly = truth.true_latencies("errors", 1.0, np.arange(10_000.0))
    assert 0.98 < mostly.mean() < 1
    modes_s, _ = truth.true_latencies("bimodal", 1.0, np.arange(1000.0))
    assert set(np.round(modes_s, 6)) == {0.040, 0.160}
