"""Turns are fair, and ratios come with what they are worth."""

import math

import numpy as np

from mlserve.engines.fake import FakeEngine
from mlserve.model.artifact import Latency
from mlserve.model.rows import ArrayRows
from mlserve.model.tensors import TensorSpec
from mlserve.optimize.evaluation.latency import measure_latency, separable

ROWS = ArrayRows({"x": np.zeros((64, 4), np.float32)}, "test rows")


class Clock:
    """Time that only passes while an engine runs."""

    def __init__(self):
        self.now_s, self.ran = 0.0, []

    def __call__(self):
        return self.now_s

    def engine(self, name, cost_s):
        def answer(inputs):
            self.now_s += cost_s(inputs["x"])
            self.ran.append((name, len(inputs["x"])))
            return {"y": inputs["x"]}

        spec = (TensorSpec("x", "float32", ("batch", 4)),)
        return FakeEngine(spec, spec, answer)


def measured(*costs_s, rows=ROWS):
    clock = Clock()
    engines = [clock.engine(str(number), cost_s) for number, cost_s in enumerate(costs_s)]
    return clock, measure_latency(engines, rows, clock_s=clock)


def one_after_another(costs_s):
    left = iter(costs_s)
    return lambda _: next(left)


def test_the_ratio_is_that_of_the_same_turn():
    """The machine slows down tenfold halfway; the second engine takes twice as long throughout."""
    slowing = [1e-3] * 31 + [1e-2] * 1000
    _, (first, second) = measured(one_after_another(slowing), one_after_another([2 * cost for cost in slowing]))
    assert (first[0].against_fp32, first[0].against_fp32_low, first[0].against_fp32_high) == (1, 1, 1)
    assert math.isclose(second[0].against_fp32, 2)
    assert math.isclose(second[0].against_fp32_low, 2)
    assert math.isclose(second[0].against_fp32_high, 2)
    assert separable(first[0], second[0])


def test_engines_that_differ_by_less_than_their_noise_are_not_separable():
    rng = np.random.default_rng(0)
    _, (first, second) = measured(*[lambda _: rng.lognormal(-7, 0.5)] * 2)
    assert second[0].against_fp32_low < 1 < second[0].against_fp32_high
    assert not separable(first[0], second[0])


def test_every_engine_runs_each_batch_and_a_new_shape_is_not_timed():
    """The first run of a shape takes a second, as compiling does."""
    seen = set()

    def compiling(x):
        first_time = x.shape not in seen
        seen.add(x.shape)
        return 1.0 if first_time else 0.25

    clock, (first, second) = measured(compiling, lambda _: 0.125)
    by_engine = [[rows for name, rows in clock.ran if name == number] for number in "01"]
    assert by_engine[0] == by_engine[1]
    assert set(by_engine[0]) == {1, 32}
    assert [size.batch_rows for size in first] == [1, 32]
    assert [(size.p50_s, size.against_fp32_high) for size in first] == [(0.25, 1)] * 2
    assert [(size.p50_s, size.against_fp32_high) for size in second] == [(0.125, 0.5)] * 2


def test_no_engine_always_follows_the_same_other():
    clock, _ = measured(*[lambda _: 1e-3] * 3)
    names = "".join(name for name, rows in clock.ran if rows == 1)
    after = {pair: names.count(pair) for pair in ("01", "02", "10", "12", "20", "21")}
    assert min(after.values()) > 0.4 * max(after.values())


def test_data_of_few_rows_has_no_large_batch():
    _, (only,) = measured(lambda _: 1e-2, rows=ROWS.take(range(5)))
    assert [size.batch_rows for size in only] == [1]


def test_without_an_interval_nothing_is_separable():
    assert not separable(Latency(1, 1.0, 1.0, 1.0), Latency(1, 9.0, 1.0, 9.0, 8.0, 10.0))
