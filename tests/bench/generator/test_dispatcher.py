import time

import gevent
import pytest
from gevent.event import Event

from mlserve.bench.clients.client import Reply, Request
from mlserve.bench.clients.fake import FakeClient
from mlserve.bench.generator.dispatcher import Dispatcher
from mlserve.bench.generator.pacer import open_pacer
from mlserve.runs.samples import DROPPED, OK

REQUESTS = (Request(b"a", rows=3), Request(b"b", rows=1), Request(b"c", rows=2))
ANSWERED = Reply(OK, b"1")
MS = 1_000_000


def read(number, reply):
    return reply.status, reply.content.decode()


@pytest.fixture
def pacer():
    opened = open_pacer()
    yield opened
    opened.close()


@pytest.fixture
def dispatch(pacer):
    """Runs a schedule, request after request in turn, against an answering function; its rows, in the order they were
    recorded, and the numbers that were sent.
    """

    def run(answer, due_ns, max_in_flight=8, meanwhile=lambda: None, end_ns=None):
        rows, client = [], FakeClient(answer)
        dispatcher = Dispatcher(client, REQUESTS, read, rows.append, max_in_flight)
        if end_ns is not None:
            dispatcher.stop(end_ns)
        dispatcher.run(((due, place % 3) for place, due in enumerate(due_ns)), time.monotonic_ns(), pacer)
        meanwhile()
        dispatcher.join()
        assert dispatcher.in_flight == 0
        assert dispatcher.sent == len(client.sent)
        return rows, client.sent

    return run


def test_every_arrival_becomes_one_row_with_its_instant_and_its_request(dispatch):
    due_ns = [0, 0, 500_000, 2 * MS, 2 * MS, 7 * MS]
    rows, sent = dispatch(lambda _: ANSWERED, due_ns)
    assert sorted(row.scheduled_ns for row in rows) == due_ns
    assert sent == [0, 1, 2, 0, 1, 2]
    for row in rows:
        assert (row.rows, row.status, row.version) == (REQUESTS[row.body].rows, OK, "1")
        assert row.scheduled_ns <= row.sent_ns <= row.done_ns


def test_requests_leave_while_earlier_ones_wait(dispatch):
    release = Event()

    def answer(_):
        release.wait()
        return ANSWERED

    rows, sent = dispatch(answer, range(0, 5 * MS, MS), meanwhile=release.set)
    assert len(sent) == 5
    assert max(row.sent_ns for row in rows) < min(row.done_ns for row in rows)


def test_what_is_due_beyond_the_limit_is_dropped_at_once_and_never_sent(dispatch):
    release = Event()

    def answer(_):
        release.wait()
        return ANSWERED

    rows, sent = dispatch(answer, range(0, 10 * MS, MS), 2, meanwhile=release.set)
    dropped = [row for row in rows if row.status == DROPPED]
    assert len(sent) == 2
    assert [row.scheduled_ns for row in dropped] == list(range(2 * MS, 10 * MS, MS))
    assert rows[: len(dropped)] == dropped  # before either of the two was answered
    assert all((row.sent_ns, row.first_byte_ns, row.done_ns) == (None, None, None) for row in dropped)


def test_nothing_is_dropped_below_the_limit(dispatch):
    rows, _ = dispatch(lambda _: ANSWERED, range(0, 100 * MS, 10 * MS), 1)
    assert [row.status for row in rows] == [OK] * 10


def test_a_place_is_free_again_once_a_request_is_answered(dispatch):
    held, calls = Event(), []

    def answer(_):
        calls.append(1)
        if len(calls) == 1:
            held.wait()
        return ANSWERED

    gevent.spawn_later(0.02, held.set)
    rows, _ = dispatch(answer, [0, MS, 200 * MS], 1)
    assert sorted(row.status for row in rows) == [DROPPED, OK, OK]


def test_answers_are_read_while_there_is_still_more_to_send(dispatch):
    rows, _ = dispatch(lambda _: ANSWERED, [0] * 2000, 2000)
    assert [row.status for row in rows] == [OK] * 2000
    assert rows[0].done_ns < max(row.sent_ns for row in rows)


def test_a_failure_is_a_row_with_its_status(dispatch):
    replies = iter([Reply("HTTP 503"), ANSWERED, Reply("timeout")])
    rows, _ = dispatch(lambda _: next(replies), [0, 3 * MS, 6 * MS])
    assert [row.status for row in rows] == ["HTTP 503", OK, "timeout"]


def test_the_first_byte_is_counted_from_the_runs_start(dispatch):
    rows, _ = dispatch(lambda _: Reply(OK, b"", time.monotonic_ns()), [0, MS])
    for row in rows:
        assert row.sent_ns <= row.first_byte_ns <= row.done_ns


def test_what_the_server_says_of_its_time_is_in_the_row(dispatch):
    said = iter(['queue;dur=0.5, compute;dur=2.0, batch;desc="8 rows"', ""])
    rows, _ = dispatch(lambda _: ANSWERED._replace(timing=next(said)), [0, 20 * MS])
    assert [row[8:11] for row in rows] == [(500_000, 2 * MS, 8), (None, None, None)]


def test_what_is_due_at_the_end_or_later_is_not_sent_and_all_before_it_is(dispatch):
    rows, sent = dispatch(lambda _: ANSWERED, [0, MS, 5 * MS - 1, 5 * MS, 6 * MS], end_ns=5 * MS)
    assert sorted(row.scheduled_ns for row in rows) == [0, MS, 5 * MS - 1]
    assert len(sent) == 3


def test_a_run_lasts_until_its_end_also_where_nothing_is_due_before(dispatch):
    before_ns = time.monotonic_ns()
    dispatch(lambda _: ANSWERED, [0], end_ns=30 * MS)
    assert time.monotonic_ns() - before_ns >= 30 * MS


def test_a_run_that_is_stopped_ends_then_and_does_not_wait_for_the_next_arrival(pacer):
    rows = []
    dispatcher = Dispatcher(FakeClient(lambda _: ANSWERED), REQUESTS, read, rows.append, 8)
    gevent.spawn_later(0.01, dispatcher.stop, 20 * MS)
    before_s = time.monotonic()
    dispatcher.run([(0, 0), (15 * MS, 0), (3600 * 1000 * MS, 0)], time.monotonic_ns(), pacer)
    assert time.monotonic() - before_s < 60
    dispatcher.join()
    assert [row.scheduled_ns for row in rows] == [0, 15 * MS]


def test_a_run_behind_its_schedule_still_sends_what_was_due_before_the_end(pacer):
    rows = []
    dispatcher = Dispatcher(FakeClient(lambda _: ANSWERED), REQUESTS, read, rows.append, 8)
    dispatcher.stop(50 * MS)
    late_ns = time.monotonic_ns() - 3600 * 1000 * MS
    dispatcher.run([(due_ns, 0) for due_ns in range(0, 60 * MS, MS)], late_ns, pacer)
    dispatcher.join()
    assert sorted(row.scheduled_ns for row in rows) == list(range(0, 50 * MS, MS))


def test_a_closed_loop_sends_when_it_is_answered_and_only_then(pacer):
    rows, in_flight = [], []

    def answer(number):
        in_flight.append(dispatcher.in_flight)
        gevent.sleep(0.001)
        return ANSWERED

    client = FakeClient(answer)
    dispatcher = Dispatcher(client, REQUESTS, read, rows.append, 8)
    dispatcher.stop(50 * MS)
    dispatcher.run_closed(3, (number % 3 for number in range(10_000)), time.monotonic_ns(), pacer)
    sent = len(client.sent)
    dispatcher.join()
    assert max(in_flight) == 3
    assert sent == len(client.sent) == len(rows) > 6
    assert client.sent == [number % 3 for number in range(sent)]
    assert all(row.scheduled_ns == row.sent_ns < 50 * MS for row in rows)


def test_a_closed_loop_that_is_stopped_ends_then(pacer):
    rows = []
    dispatcher = Dispatcher(FakeClient(lambda _: ANSWERED), REQUESTS, read, rows.append, 8)
    gevent.spawn_later(0.01, dispatcher.stop, 20 * MS)
    dispatcher.stop(3600 * 1000 * MS)
    dispatcher.run_closed(1, iter(lambda: 0, 1), time.monotonic_ns(), pacer)
    dispatcher.join()
    assert max(row.sent_ns for row in rows) < 20 * MS


@pytest.mark.parametrize("closed", [False, True])
def test_what_recording_raises_ends_the_run_and_is_raised(closed, pacer):
    def record(row):
        raise ZeroDivisionError

    dispatcher = Dispatcher(FakeClient(lambda _: ANSWERED), REQUESTS, read, record, 8)
    dispatcher.stop(3600 * 1000 * MS)
    arrivals = (1, iter(lambda: 0, 1)) if closed else ([(0, 0), (3000 * 1000 * MS, 0)],)
    run = dispatcher.run_closed if closed else dispatcher.run
    with pytest.raises(ZeroDivisionError):
        run(*arrivals, time.monotonic_ns(), pacer)


def test_a_schedule_that_breaks_ends_the_run_and_is_raised(pacer):
    def due():
        yield 0, 0
        yield MS, 0
        raise ZeroDivisionError

    dispatcher = Dispatcher(FakeClient(lambda _: ANSWERED), REQUESTS, read, lambda _: None, 8)
    with pytest.raises(ZeroDivisionError):
        dispatcher.run(due(), time.monotonic_ns(), pacer)


def test_a_run_whose_greenlet_is_killed_sends_no_more(pacer):
    client = FakeClient(lambda _: ANSWERED)
    dispatcher = Dispatcher(client, REQUESTS, read, lambda _: None, 8)
    running = gevent.spawn(dispatcher.run, ((due, 0) for due in range(0, 10**12, MS)), time.monotonic_ns(), pacer)
    gevent.sleep(0.02)
    running.kill()
    sent = len(client.sent)
    gevent.sleep(0.02)
    assert len(client.sent) == sent > 0
