"""The batcher with a shipped fake engine: who runs where, who answers whom, and what a fault costs whom."""

import asyncio
import threading
import time
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.engines.fake import FakeEngine
from mlserve.errors import DeadlineExceeded, EngineError, InvalidRequest, ModelFailed, NotServing, Overloaded
from mlserve.model.tensors import TensorSpec
from mlserve.serve.batching.batcher import Batcher, Ticket
from mlserve.serve.batching.share import DeviceShare
from mlserve.serve.batching.turn import Turn
from mlserve.serve.batching.window import BatchWindow

X, Y = TensorSpec("x", "float32", ("batch", 1)), TensorSpec("y", "float32", ("batch", 1))


class Request(Ticket):
    """A ticket that keeps what it is told, and by which thread."""

    __slots__ = ("outputs", "told", "told_by", "whole")

    def __init__(self, *values, loop=None, key=None, timeout_s=inf, priority=0):
        self.inputs = {"x": np.array(values, np.float32).reshape(-1, 1)}
        self.rows, self.key, self.loop, self.protocol = len(values), key, loop, "test"
        self.arrived_s = time.perf_counter()
        self.deadline_s, self.priority = self.arrived_s + timeout_s, priority
        self.outputs, self.whole, self.told, self.told_by = [], None, threading.Event(), None

    def answer(self, outputs, batch):
        self._tell(outputs["y"].ravel().tolist(), batch)

    def fail(self, error):
        self._tell(error, None)

    def _tell(self, outcome, batch):
        self.outputs.append(outcome)
        self.whole, self.told_by = batch, threading.current_thread()
        self.told.set()

    def outcome(self):
        assert self.told.wait(10)
        (only,) = self.outputs  # never told twice
        return only


class Observer:
    def __init__(self):
        self.batches, self.answers, self.failures = [], 0, []

    def ran(self, batch, tickets, outcome, waiting_rows):
        self.batches.append(batch.rows)
        assert all(ticket.arrived_s <= batch.started_s for ticket in tickets)

    def answered(self, tickets, batch):
        self.answers += len(tickets)

    def failed(self, protocol, error, ticket):
        self.failures.append((protocol, type(error)))


def doubled(inputs):
    return {"y": 2 * inputs["x"]}


@pytest.fixture
def make():
    """`make(answer, ...)` -> (batcher, engine, observer); every batcher is closed in the end."""
    made = []

    def build(
        answer=doubled, max_rows=4, *, delay_s=0.0, typical_s=0.0, max_waiting_rows=4096, max_wait_s=inf, **shared
    ):
        engine, observer = FakeEngine((X,), (Y,), answer), Observer()
        window = BatchWindow(max_rows, delay_s, max_waiting_rows, max_wait_s)
        batcher = Batcher("m", engine, window, observer, typical_s=typical_s, **shared)
        made.append(batcher)
        return batcher, engine, observer

    yield build
    for batcher in made:
        batcher.close()


def test_what_is_submitted_together_runs_together_and_each_gets_its_own_rows(make):
    batcher, engine, observer = make()
    requests = [Request(1), Request(2, 3), Request(4)]
    batcher.submit(requests)
    assert [request.outcome() for request in requests] == [[2], [4, 6], [8]]
    assert engine.batches == [4]
    assert (observer.batches, observer.answers, observer.failures) == ([4], 3, [])


def test_more_than_one_batch_of_rows_runs_as_several_batches_in_order(make):
    batcher, engine, _ = make(max_rows=2)
    requests = [Request(number) for number in range(5)]
    batcher.submit(requests)
    assert [request.outcome() for request in requests] == [[0], [2], [4], [6], [8]]
    assert engine.batches == [2, 2, 1]


def test_a_short_run_happens_on_the_thread_that_submits_and_a_long_one_on_the_engine_s(make):
    here = threading.current_thread()
    quick, _, _ = make()
    slow, _, _ = make(typical_s=1.0)
    requests = Request(1), Request(1)
    quick.submit([requests[0]])
    slow.submit([requests[1]])
    assert requests[0].outcome() == requests[1].outcome() == [2]
    assert requests[0].told_by is here
    assert requests[1].told_by is not here


def test_an_engine_that_turns_out_slow_moves_to_a_thread_of_its_own(make):
    def slow(inputs):
        time.sleep(0.02)
        return doubled(inputs)

    batcher, _, _ = make(slow)
    requests = [Request(number) for number in range(4)]
    for request in requests:
        batcher.submit([request])
        request.outcome()
    assert requests[0].told_by is threading.current_thread()
    assert requests[-1].told_by is not threading.current_thread()


def test_an_engine_that_is_quick_again_runs_where_it_is_asked_again(make):
    here, slow = threading.current_thread(), True

    def answer(inputs):
        if slow:
            time.sleep(0.02)
        return doubled(inputs)

    batcher, engine, _ = make(answer)
    while not batcher.queues:
        batcher.submit([Request(1)])
    slow = False
    deadline_s = time.monotonic() + 30
    while batcher.queues:
        assert time.monotonic() < deadline_s
        request = Request(2)
        batcher.submit([request])
        assert request.outcome() == [4]
    last = Request(3)
    batcher.submit([last])
    assert (last.outcome(), last.told_by) == ([6], here)
    assert batcher.idle
    assert engine.batches


def test_with_a_delay_requests_wait_for_others_to_fill_their_batch_and_without_one_they_do_not(make):
    for delay_s, expected in ((60.0, [2]), (0.0, [1, 1])):
        batcher, engine, _ = make(max_rows=2, delay_s=delay_s)
        requests = [Request(1), Request(2)]
        for request in requests:
            batcher.submit([request])
        assert [request.outcome() for request in requests] == [[2], [4]]
        assert engine.batches == expected


def test_requests_of_different_shapes_do_not_share_a_batch(make):
    batcher, engine, _ = make()
    requests = [Request(1, key="a"), Request(2, key="b"), Request(3, key="a")]
    batcher.submit(requests)
    assert [request.outcome() for request in requests] == [[2], [4], [6]]
    assert sorted(engine.batches) == [1, 2]


def test_a_bad_request_fails_alone_and_its_batch_mates_are_answered(make):
    def no_negatives(inputs):
        if (inputs["x"] < 0).any():
            raise InvalidRequest("a value is negative")
        return doubled(inputs)

    batcher, engine, observer = make(no_negatives)
    requests = [Request(1), Request(-1), Request(3)]
    batcher.submit(requests)
    assert requests[0].outcome() == [2]
    assert isinstance(requests[1].outcome(), InvalidRequest)
    assert requests[2].outcome() == [6]
    assert engine.batches == [3, 1, 2, 1, 1]
    assert observer.failures == [("test", InvalidRequest)]
    assert observer.answers == 2


@pytest.mark.parametrize("fault", [EngineError("out of memory"), ZeroDivisionError("a bug")])
def test_whatever_the_engine_raises_every_request_is_told_and_the_next_one_runs(make, fault):
    broken = True

    def answer(inputs):
        if broken:
            raise fault
        return doubled(inputs)

    batcher, _, observer = make(answer)
    requests = [Request(1), Request(2)]
    batcher.submit(requests)
    assert all(isinstance(request.outcome(), ModelFailed) for request in requests)
    assert len(observer.failures) == 2
    broken = False
    after = Request(5)
    batcher.submit([after])
    assert after.outcome() == [10]


def test_an_engine_that_loses_rows_is_asked_again_for_fewer_instead_of_mixing_answers(make):
    batcher, _, _ = make(lambda inputs: {"y": inputs["x"][:1]})
    requests = [Request(1), Request(2)]
    batcher.submit(requests)
    # Alone, each row count is right again, so the answers are each request's own.
    assert [request.outcome() for request in requests] == [[1], [2]]


def test_a_full_queue_refuses_what_is_too_much_and_keeps_the_rest(make):
    release = threading.Event()

    def held(inputs):
        release.wait(10)
        return doubled(inputs)

    batcher, _, observer = make(held, max_rows=1, typical_s=1.0, max_waiting_rows=2)
    running = Request(0)
    batcher.submit([running])
    while batcher.waiting_rows:
        time.sleep(0.001)
    requests = [Request(number) for number in (1, 2, 3)]
    batcher.submit(requests)
    assert isinstance(requests[2].outcome(), Overloaded)
    assert not batcher.idle
    release.set()
    assert [request.outcome() for request in (running, *requests[:2])] == [[0], [2], [4]]
    assert observer.failures == [("test", Overloaded)]


def test_an_answer_that_cannot_be_written_fails_that_request_alone(make):
    class Unwritable(Request):
        def answer(self, outputs, batch):
            raise ValueError("no such type on this wire")

    batcher, _, observer = make()
    requests = [Unwritable(1), Request(2)]
    batcher.submit(requests)
    assert isinstance(requests[0].outcome(), ModelFailed)
    assert requests[1].outcome() == [4]
    assert (observer.answers, len(observer.failures)) == (1, 1)


def test_closing_answers_what_still_waits(make):
    batcher, _, _ = make(delay_s=0.3)
    request = Request(1)
    batcher.submit([request])
    batcher.close()
    assert request.outcome() == [2]
    assert batcher.idle


def test_a_ticket_with_a_loop_is_answered_on_that_loop(make):
    batcher, _, _ = make(typical_s=1.0)

    async def ask():
        loop = asyncio.get_running_loop()
        request = Request(1, loop=loop)
        batcher.submit([request])
        while not request.told.is_set():
            await asyncio.sleep(0.001)
        return request

    request = asyncio.run(ask())
    assert request.outcome() == [2]
    assert request.told_by is threading.current_thread()


def test_many_threads_at_once_get_their_own_answers(make):
    for settings in ({}, {"delay_s": 0.001}, {"typical_s": 1.0}):
        batcher, engine, observer = make(max_rows=8, **settings)
        requests = [[Request(100 * thread + number) for number in range(50)] for thread in range(8)]

        def submit(mine, batcher=batcher):
            for request in mine:
                batcher.submit([request])

        threads = [threading.Thread(target=submit, args=(mine,)) for mine in requests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for thread, mine in enumerate(requests):
            assert [request.outcome() for request in mine] == [[2 * (100 * thread + number)] for number in range(50)]
        batcher.close()
        assert sum(engine.batches) == sum(observer.batches) == observer.answers == 400
        assert max(engine.batches) <= 8


def test_a_turn_submits_what_was_added_once_and_by_batcher(make):
    first, second = make(), make()
    turn = Turn()
    requests = [Request(1), Request(2), Request(3)]
    for request, (batcher, _, _) in zip(requests, (first, second, first), strict=True):
        turn.add(batcher, request)
    assert not any(request.told.is_set() for request in requests)
    turn.run()
    turn.run()
    assert [request.outcome() for request in requests] == [[2], [4], [6]]
    assert first[1].batches == [2]
    assert second[1].batches == [1]


class Held:
    """An engine's answer that waits until it is released, and counts the runs that began."""

    def __init__(self):
        self.began, self.release = threading.Semaphore(0), threading.Event()

    def __call__(self, inputs):
        self.began.release()
        assert self.release.wait(10)
        return doubled(inputs)


def test_a_request_past_its_deadline_fails_while_the_engine_runs_and_never_starts(make):
    held = Held()
    batcher, engine, observer = make(held, max_rows=1, typical_s=1.0)
    running, late, patient = Request(1), Request(2, timeout_s=0.03), Request(3, timeout_s=60.0)
    batcher.submit([running])
    held.began.acquire()
    batcher.submit([late, patient])
    assert isinstance(late.outcome(), DeadlineExceeded)
    assert "Request timeout expired" in str(late.outcome())
    assert not running.told.is_set()  # it failed while the engine was busy
    assert batcher.waiting_rows == 1
    held.release.set()
    assert [running.outcome(), patient.outcome()] == [[2], [6]]
    assert engine.batches == [1, 1]
    assert observer.failures == [("test", DeadlineExceeded)]


def test_an_urgent_request_takes_the_place_of_a_waiting_one_which_is_told_so(make):
    held = Held()
    batcher, engine, observer = make(held, max_rows=1, typical_s=1.0, max_waiting_rows=2)
    running, plain, patient, urgent, late = (Request(number, priority=number) for number in (0, 2, 7, 1, 2))
    batcher.submit([running])
    held.began.acquire()
    batcher.submit([plain, patient])
    batcher.check_room()  # a plain one would find room
    batcher.submit([urgent])
    assert isinstance(patient.outcome(), Overloaded)
    assert "more urgent" in str(patient.outcome())
    with pytest.raises(Overloaded):
        batcher.check_room()
    batcher.submit([late])
    assert isinstance(late.outcome(), Overloaded)
    held.release.set()
    assert [each.outcome() for each in (running, urgent, plain)] == [[0], [2], [4]]
    assert engine.batches == [1, 1, 1]
    assert observer.failures == [("test", Overloaded)] * 2


def test_what_may_wait_goes_by_how_long_it_takes_once_that_is_known_and_a_first_burst_is_taken(make):
    def slow(inputs):
        time.sleep(0.02)
        return doubled(inputs)

    batcher, _, _ = make(slow, max_rows=2, typical_s=9.0, max_wait_s=0.2)  # the warm-up was far too slow
    burst = [Request(number) for number in range(60)]
    batcher.submit(burst)
    assert [each.outcome() for each in burst] == [[2 * number] for number in range(60)]
    again = [Request(number) for number in range(60)]
    batcher.submit(again)
    refused = [each.outcome() for each in again if isinstance(each.outcome(), Overloaded)]
    # Some 18 rows take a little less than 0.2 s; a busy machine takes longer for them.
    assert 30 <= len(refused) < 60
    assert all("0.18 s of work" in str(error) and error.retry_after_s == 1 for error in refused)


def test_who_cannot_begin_in_time_is_refused_before_its_deadline_and_everybody_else_is_not(make):
    held = Held()
    held.release.set()

    def slow(inputs):
        time.sleep(0.02)
        return held(inputs)

    batcher, _, _ = make(slow, max_rows=1, typical_s=1.0)
    batcher.submit([Request(number) for number in range(9)])
    while batcher.waiting_rows or not batcher.idle:
        time.sleep(0.001)
    held.release.clear()
    while held.began.acquire(blocking=False):
        pass
    batcher.submit([Request(0)])
    held.began.acquire()
    batcher.submit([Request(number) for number in range(50)])
    late, patient, urgent = Request(1, timeout_s=0.5), Request(2, timeout_s=60), Request(3, timeout_s=0.5, priority=1)
    started_s = time.perf_counter()
    batcher.submit([late, patient, urgent])
    assert isinstance(late.outcome(), DeadlineExceeded)
    assert time.perf_counter() - started_s < 0.4
    held.release.set()
    assert [patient.outcome(), urgent.outcome()] == [[4], [6]]


def test_a_busy_model_s_runs_get_as_short_as_those_of_the_other_on_its_device(make):
    def timed(row_s):
        def answer(inputs):
            time.sleep(row_s * len(inputs["x"]))
            return doubled(inputs)

        return answer

    share = DeviceShare()
    busy, busy_engine, _ = make(timed(0.004), max_rows=16, typical_s=0.064, single_s=0.004, share=share)
    quiet, _, _ = make(timed(0.008), max_rows=16, typical_s=0.008, single_s=0.008, share=share)
    alone = [Request(number) for number in range(32)]
    busy.submit(alone)
    for request in alone:
        request.outcome()
    assert busy_engine.batches == [16, 16]
    flood = [Request(number) for number in range(64)]
    busy.submit(flood)
    for number in range(6):
        request = Request(number)
        quiet.submit([request])
        assert request.outcome() == [2 * number]
    for request in flood:
        request.outcome()
    # Beside the other, whose run takes as long as two rows of these; a slow machine makes it look a little longer.
    assert min(busy_engine.batches) <= 6
    assert sum(busy_engine.batches) == 96


def test_a_deadline_that_passed_before_the_request_got_here_fails_it_where_runs_are_short_too(make):
    batcher, engine, _ = make()
    requests = [Request(1), Request(2, timeout_s=-1.0), Request(3, timeout_s=60.0)]
    batcher.submit(requests)
    assert isinstance(requests[1].outcome(), DeadlineExceeded)
    assert [requests[0].outcome(), requests[2].outcome()] == [[2], [6]]
    assert sum(engine.batches) == 2


def test_a_deadline_that_passes_while_the_batch_before_runs_here_is_kept(make):
    def slow(inputs):
        time.sleep(0.05)
        return doubled(inputs)

    batcher, engine, _ = make(slow, max_rows=1)
    requests = [Request(1), Request(2, timeout_s=0.02)]
    batcher.submit(requests)
    assert requests[0].outcome() == [2]
    assert isinstance(requests[1].outcome(), DeadlineExceeded)
    assert engine.batches == [1]


def test_the_more_urgent_request_runs_first(make):
    held = Held()
    batcher, _, _ = make(held, max_rows=1, typical_s=1.0)
    order = []

    class Noting(Request):
        def answer(self, outputs, batch):
            order.append(int(self.inputs["x"][0, 0]))
            super().answer(outputs, batch)

    requests = [Noting(number, priority=priority) for number, priority in enumerate([0, 3, 0, 1])]
    batcher.submit(requests[:1])
    held.began.acquire()
    batcher.submit(requests[1:])
    held.release.set()
    assert [request.outcome() for request in requests] == [[0], [2], [4], [6]]
    assert order == [0, 3, 2, 1]


def test_a_request_that_is_taken_back_before_its_run_never_runs_and_one_that_runs_cannot_be(make):
    held = Held()
    batcher, engine, observer = make(held, max_rows=1, typical_s=1.0)
    running, gone, after = Request(1), Request(2), Request(3)
    batcher.submit([running])
    held.began.acquire()
    batcher.submit([gone, after])
    assert batcher.queues
    assert batcher.drop(gone)
    assert not batcher.drop(running)
    held.release.set()
    assert [running.outcome(), after.outcome()] == [[2], [6]]
    assert not gone.told.is_set()
    assert engine.batches == [1, 1]
    assert (observer.answers, observer.failures) == (2, [])
    assert batcher.idle


def test_what_is_submitted_after_closing_is_told_so(make):
    for settings in ({}, {"typical_s": 1.0}, {"delay_s": 0.01}):
        batcher, engine, observer = make(**settings)
        batcher.close()
        batcher.close()
        late = Request(1)
        batcher.submit([late])
        assert isinstance(late.outcome(), NotServing)
        assert observer.failures == [("test", NotServing)]
        assert engine.batches == []


@pytest.mark.parametrize("typical_s", [0.0, 1.0])
def test_closing_waits_for_the_run_that_has_begun(make, typical_s):
    held = Held()
    batcher, _, _ = make(held, typical_s=typical_s)
    request = Request(1)
    submitting = threading.Thread(target=batcher.submit, args=([request],))
    submitting.start()
    held.began.acquire()
    closing = threading.Thread(target=batcher.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    held.release.set()
    closing.join(10)
    submitting.join(10)
    assert not closing.is_alive()
    assert request.outcome() == [2]


def test_closing_with_a_deadline_far_away_does_not_wait_for_it(make):
    batcher, _, _ = make(typical_s=1.0)
    request = Request(1, timeout_s=3600.0)
    batcher.submit([request])
    assert request.outcome() == [2]
    batcher.close()
    assert batcher.idle


def test_closing_while_many_submit_loses_nobody_and_nothing_runs_after_it(make):
    for settings in ({}, {"typical_s": 1.0}, {"delay_s": 0.001}):
        for _ in range(10):
            ended = threading.Event()

            def answer(inputs, ended=ended):
                assert not ended.is_set(), "a run after the close"
                return doubled(inputs)

            batcher, _, observer = make(answer, **settings)
            requests = [[Request(number) for number in range(60)] for _ in range(4)]

            def submit(mine, batcher=batcher):
                for request in mine:
                    batcher.submit([request])

            threads = [threading.Thread(target=submit, args=(mine,)) for mine in requests]
            for thread in threads:
                thread.start()
            requests[0][5].told.wait(10)
            batcher.close()
            ended.set()
            for thread in threads:
                thread.join()
            outcomes = [request.outcome() for mine in requests for request in mine]
            answered = [outcome for outcome in outcomes if not isinstance(outcome, NotServing)]
            assert all(isinstance(outcome, list) for outcome in answered)
            assert (observer.answers, len(observer.failures)) == (len(answered), 240 - len(answered))
            assert batcher.idle


@given(st.lists(st.integers(1, 5), min_size=1, max_size=20), st.integers(1, 6))
def test_plain_requests_are_batched_as_the_window_batches_them(sizes, max_rows):
    engine = FakeEngine((X,), (Y,), doubled)
    batcher = Batcher("m", engine, BatchWindow(max_rows), Observer(), typical_s=-1.0)
    batcher.submit([Request(*range(rows)) for rows in sizes])
    batcher.close()
    window = BatchWindow(max_rows)
    for number, rows in enumerate(sizes):
        window.push(number, rows, 0.0)
    batches = iter(lambda: window.pop(0.0), [])
    assert engine.batches == [sum(sizes[number] for number in batch) for batch in batches]


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.sampled_from("aab"), st.sampled_from([inf, inf, 60.0]), st.integers(0, 3)),
        min_size=1,
        max_size=20,
    ),
    st.integers(1, 6),
)
def test_requests_of_every_sort_get_their_own_rows(sorts, max_rows):
    engine = FakeEngine((X,), (Y,), doubled)
    batcher = Batcher("m", engine, BatchWindow(max_rows), Observer(), typical_s=-1.0)
    requests = [
        Request(*range(start, start + rows), key=key, timeout_s=limit_s, priority=priority)
        for start, (rows, key, limit_s, priority) in enumerate(sorts)
    ]
    batcher.submit(requests)
    batcher.close()
    for start, (request, (rows, *_)) in enumerate(zip(requests, sorts, strict=True)):
        assert request.outcome() == [2 * value for value in range(start, start + rows)]
