"""Before anybody asks: how often a model is run, and that those who are served meanwhile get their turn."""

import itertools
import time

import pytest

from mlserve.engines.fake import FakeEngine
from mlserve.model.tensors import TensorSpec
from mlserve.serve.warming import warm_up

X = TensorSpec("x", "float32", ("batch", 2))


class Noting(FakeEngine):
    """Runs take `run_s`; when each began and ended."""

    def __init__(self, run_s):
        super().__init__((X,), (TensorSpec("y", "float32", ("batch", 2)),), lambda inputs: {"y": inputs["x"]})
        self.run_s, self.runs = run_s, []

    def run(self, inputs):
        began_s = time.perf_counter()
        time.sleep(self.run_s)
        self.runs.append((began_s, time.perf_counter()))
        return super().run(inputs)

    @property
    def rests_s(self):
        """Between one run and the next, beside how long that one took."""
        return [(after - ended, ended - began) for (began, ended), (after, _) in itertools.pairwise(self.runs)]


def test_after_each_run_others_have_four_times_as_long():
    engine = Noting(0.004)
    single_s, full_s = warm_up(engine, [X], 8, gently=True)
    assert len(engine.runs) == 12
    assert all(rest_s >= 4 * took_s for rest_s, took_s in engine.rests_s)
    # What it rested is no part of what runs take.
    assert 0.004 <= min(single_s, full_s) <= min(rest_s for rest_s, _ in engine.rests_s[2:]) / 4


def test_a_server_that_serves_nobody_yet_does_not_wait():
    engine = Noting(0.004)
    warm_up(engine, [X], 8)
    assert sum(rest_s for rest_s, _ in engine.rests_s) < sum(took_s for _, took_s in engine.rests_s)


@pytest.mark.parametrize("gently", [False, True])
def test_a_slow_model_is_run_twice_each_way_and_rests_are_no_longer_than_half_a_second(gently):
    engine = Noting(0.25)
    warm_up(engine, [X], 8, gently=gently)
    assert len(engine.runs) == 4
    assert all(0.5 <= rest_s < 4 * took_s for rest_s, took_s in engine.rests_s) == gently
