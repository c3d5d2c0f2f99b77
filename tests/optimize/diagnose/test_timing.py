"""Timing without a profiler: thread counts, turns, models too large to load so often."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlserve.engines.fake import FakeEngine
from mlserve.model.store import Store
from mlserve.optimize.diagnose.subject import find_model
from mlserve.optimize.diagnose.timing import affordable, measure_timings, thread_counts, time_threads


@given(cores=st.integers(1, 256), asked=st.integers(1, 1024))
def test_threads_are_tried_from_one_to_beyond_the_cores_and_as_asked(cores, asked):
    counts = thread_counts(cores, asked)
    assert counts == sorted(set(counts))
    assert {1, cores, 2 * cores, asked} <= set(counts)
    assert len(counts) <= cores.bit_length() + 3


def test_both_models_run_in_turn_with_the_same_rows():
    order = []

    def engine(name):
        return FakeEngine((), (), lambda inputs: order.append((name, len(inputs["x"]))) or {})

    timings = measure_timings(engine("own"), engine("other"), {1: {"x": np.ones((1, 2))}, 4: {"x": np.ones((4, 2))}})
    assert [timing.batch_rows for timing in timings] == [1, 4]
    assert all(timing.against_p50_s is not None for timing in timings)
    first = [name for name, rows in order if rows == 1][1:]  # without the first run, which only the own does
    pairs = {tuple(first[start : start + 2]) for start in range(0, len(first), 2)}
    assert pairs == {("own", "other"), ("other", "own")}
    assert measure_timings(engine("own"), None, {1: {"x": np.ones((1, 2))}})[0].against_p50_s is None


def test_a_model_too_large_or_too_slow_to_load_is_not_loaded_once_for_each_thread_count(nets, tmp_path):
    model = find_model(str(nets.mlp(tmp_path / "mlp.onnx")), Store(tmp_path))
    assert affordable(model, [1, 2], open_s=0.1, memory_bytes=8 * model.size_bytes)
    assert not affordable(model, [1, 2], open_s=0.1, memory_bytes=7 * model.size_bytes)
    assert not affordable(model, [1, 2], open_s=31.0, memory_bytes=8 << 30)
    timed = time_threads(model, [1, 2], {"x": np.ones((1, 64), np.float32)})
    assert [timing.threads for timing in timed] == [1, 2]
    assert all(timing.p50_s > 0 for timing in timed)
