"""A batch that fails: whose fault it was, what that costs the others, and that nothing of it stays in memory."""

import gc
import threading
import time
from math import ceil, inf, log2
from weakref import WeakSet

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.engines.fake import FakeEngine
from mlserve.errors import DeadlineExceeded, EngineError, InvalidRequest, ModelFailed, Overloaded
from mlserve.model.tensors import TensorSpec
from mlserve.serve.batching.batcher import Batcher, BatchObserver, Ticket
from mlserve.serve.batching.lengths import LengthBatcher, Padding
from mlserve.serve.batching.window import BatchWindow

X, Y = TensorSpec("x", "float32", ("batch", "length")), TensorSpec("y", "float32", ("batch", "length"))
BAD = -1.0


class Request(Ticket):
    """One row of `value`, `length` times; it keeps what it is told."""

    __slots__ = ("__weakref__", "outcome", "told")

    def __init__(self, value, length=1, timeout_s=inf):
        self.inputs = {"x": np.full((1, length), value, np.float32)}
        self.rows, self.key, self.loop, self.protocol, self.priority = 1, 0, None, "test", 0
        self.arrived_s = time.perf_counter()
        self.deadline_s = self.arrived_s + timeout_s
        self.outcome, self.told = None, threading.Event()

    def answer(self, outputs, batch):
        self._tell(outputs["y"].tolist())

    def fail(self, error):
        self._tell(error)

    def _tell(self, outcome):
        assert self.outcome is None  # never told twice
        self.outcome = outcome
        self.told.set()


class Observer(BatchObserver):
    def __init__(self):
        self.outcomes, self.compute_s = [], []

    def ran(self, batch, tickets, outcome, waiting_rows):
        self.outcomes.append(outcome)
        self.compute_s.append(batch.compute_s)

    def answered(self, tickets, batch): ...

    def failed(self, protocol, error, ticket): ...


def refusing(inputs):
    if (inputs["x"] == BAD).any():
        raise InvalidRequest("a value is negative")
    return {"y": 2 * inputs["x"]}


def batcher(answer=refusing, max_rows=64, *, typical_s=-1.0, padding=None):
    """Unless `typical_s` says otherwise, it runs everything where it is asked."""
    engine, observer = FakeEngine((X,), (Y,), answer), Observer()
    window = BatchWindow(max_rows)
    if padding is None:
        return Batcher("m", engine, window, observer, typical_s=typical_s), engine, observer
    made = LengthBatcher("m", engine, window, observer, typical_s=typical_s, padding=padding)
    return made, engine, observer


def check_each_gets_its_own(requests):
    for request in requests:
        (row,) = request.inputs["x"].tolist()
        if BAD in row:
            assert isinstance(request.outcome, InvalidRequest)
        else:
            assert request.outcome == [[2 * value for value in row]]


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_exactly_the_bad_requests_fail_and_everyone_else_gets_its_own_answer(bad):
    tested, engine, observer = batcher()
    requests = [Request(BAD if each else number) for number, each in enumerate(bad)]
    tested.submit(requests)
    check_each_gets_its_own(requests)
    assert engine.batches[0] == len(bad)
    assert len(engine.batches) <= 2 * len(bad) - 1
    assert observer.outcomes == ["InvalidRequest" if all(bad) else "ok"]


@given(st.integers(1, 64), st.data())
def test_one_bad_request_costs_two_runs_for_each_time_the_batch_can_be_halved(size, data):
    bad = data.draw(st.integers(0, size - 1))
    tested, engine, _ = batcher()
    requests = [Request(BAD if number == bad else number) for number in range(size)]
    tested.submit(requests)
    check_each_gets_its_own(requests)
    assert len(engine.batches) <= 1 + 2 * ceil(log2(size))


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4)), min_size=1, max_size=20))
def test_padded_batches_come_apart_as_well(sorts):
    tested, engine, _ = batcher(padding=Padding({"x": 0}, {"y": 1}))
    requests = [Request(BAD if bad else number, length) for number, (bad, length) in enumerate(sorts)]
    tested.submit(requests)
    check_each_gets_its_own(requests)
    assert engine.batches[0] == len(sorts)


def test_padded_rows_that_an_engine_loses_are_run_again_instead_of_mixing_answers():
    tested, engine, _ = batcher(lambda inputs: {"y": 2 * inputs["x"][:1]}, padding=Padding({"x": 0}, {"y": 1}))
    requests = [Request(1, 2), Request(2, 3)]
    tested.submit(requests)
    check_each_gets_its_own(requests)
    assert engine.batches == [2, 1, 1]


def test_nobody_runs_again_past_its_deadline():
    requests = [Request(BAD if number == 2 else number, timeout_s=0.3 if number % 2 else inf) for number in range(8)]
    deadline_s = max(request.deadline_s for request in requests if request.deadline_s != inf)

    def slow(inputs):
        while time.perf_counter() <= deadline_s:
            time.sleep(0.01)
        return refusing(inputs)

    tested, engine, _ = batcher(slow)
    tested.submit(requests)
    assert all(isinstance(request.outcome, DeadlineExceeded) for request in requests[1::2])
    check_each_gets_its_own(requests[::2])
    assert engine.batches == [8, 2, 2, 1, 1]


def test_those_who_share_no_part_with_the_bad_one_are_run_before_it_is_looked_for():
    began = []

    def noting(inputs):
        began.append(inputs["x"].ravel().tolist())
        return refusing(inputs)

    tested, _, _ = batcher(noting)
    tested.submit([Request(value) for value in (BAD, 1, 2, 3)])
    assert began == [[BAD, 1, 2, 3], [BAD, 1], [2, 3], [BAD], [1]]


def test_what_runs_again_does_not_make_the_model_look_slow():
    def slow_again(inputs):
        if len(inputs["x"]) < 8:
            time.sleep(0.03)
        return refusing(inputs)

    tested, engine, observer = batcher(slow_again, max_rows=8, typical_s=1.0)
    requests = [Request(BAD if number % 8 == 5 else number) for number in range(32)]
    tested.submit(requests)
    tested.close()
    check_each_gets_its_own(requests)
    assert engine.batches == [8, 4, 4, 2, 2, 1, 1] * 4
    assert min(observer.compute_s) > 6 * 0.03  # a client is told all of it
    # Three runs followed one another: their rows took next to nothing, and running again took 0.02 s a row.
    assert 0.0 < tested._window.row_s < 0.01
    assert tested._typical_s < 0.9**4 + 0.02


@pytest.mark.parametrize("fault", [EngineError("out of memory"), ZeroDivisionError("a bug")])
def test_a_model_that_fails_always_fails_everyone_and_says_why_only_where_it_may(fault, caplog):
    def broken(inputs):
        raise fault

    tested, _, _ = batcher(broken)
    requests = [Request(number) for number in range(5)]
    tested.submit(requests)
    reason = ": out of memory" if isinstance(fault, EngineError) else ""
    assert {(type(each.outcome), str(each.outcome)) for each in requests} == {
        (ModelFailed, f"model 'm' failed{reason}")
    }
    assert len(caplog.records) == 5


@pytest.fixture
def uncollected():
    """What refers to itself stays, as it does in a server until the collector comes to it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_request_that_was_answered_long_before_its_deadline_is_not_kept(uncollected):
    tested, _, _ = batcher()
    kept = WeakSet()
    for _ in range(60):
        request = Request(1, timeout_s=1e12)
        kept.add(request)
        tested.submit([request])
        assert request.outcome == [[2]]
    del request
    assert not kept


def test_a_batch_that_failed_is_not_kept(uncollected):
    def full(inputs):
        try:
            raise OSError("no room")
        except OSError as error:
            raise Overloaded("the device is full; retry later", 1.0) from error

    for count in (1, 5):
        tested, _, _ = batcher(full)
        requests = [Request(number) for number in range(count)]
        kept = WeakSet(requests)
        tested.submit(requests)
        assert all(isinstance(request.outcome, Overloaded) for request in requests)
        requests.clear()
        assert not kept


def test_a_thread_that_waits_for_more_does_not_keep_the_batch_before(uncollected, until):
    tested, _, _ = batcher(typical_s=1.0)
    request = Request(1)
    kept = WeakSet([request])
    tested.submit([request])
    assert request.told.wait(10)
    del request
    until(lambda: not kept, 10)
    tested.close()
