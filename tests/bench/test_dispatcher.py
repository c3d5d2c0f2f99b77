import time

import gevent
import msgspec
import pytest
from gevent.event import Event

from mlserve.bench.clients.client import Reply
from mlserve.bench.clients.fake import FakeClient
from mlserve.bench.generator.dispatcher import Dispatcher
from mlserve.bench.generator.pacer import open_pacer
from mlserve.runs.load import Plan
from mlserve.runs.samples import DROPPED, OK

PLAN = Plan(rate_per_s=1000, duration_s=1, warm_up_s=0, batch_rows=3, max_in_flight=8)
ANSWERED = Reply(OK, "1", None)


@pytest.fixture
def run():
    """Runs a schedule against an answering function; returns the rows, in the order they were recorded."""
    pacer = open_pacer()

    def dispatch(answer, due_ns, plan=PLAN, bodies=(b"a", b"b", b"c"), meanwhile=lambda: None, *, warm_up=False):
        rows = []
        client = FakeClient(answer)
        dispatcher = Dispatcher(client, bodies, plan, rows.append)
        dispatcher.run(due_ns, time.monotonic_ns(), pacer, warm_up=warm_up)
        meanwhile()
        dispatcher.join()
        assert dispatcher.in_flight == 0
        return rows, client.bodies

    yield dispatch
    pacer.close()


def test_every_arrival_becomes_one_row_with_its_instant(run):
    due_ns = [0, 0, 500_000, 2_000_000, 2_000_000, 7_000_000]
    rows, bodies = run(lambda _: ANSWERED, due_ns)
    assert sorted(row.scheduled_ns for row in rows) == due_ns
    assert bodies == [b"a", b"b", b"c", b"a", b"b", b"c"]
    for row in rows:
        assert (row.rows, row.status, row.version, row.warm_up) == (3, OK, "1", False)
        assert row.scheduled_ns <= row.sent_ns <= row.done_ns


def test_requests_leave_while_earlier_ones_wait(run):
    release = Event()

    def answer(_):
        release.wait()
        return ANSWERED

    rows, bodies = run(answer, range(0, 5_000_000, 1_000_000), meanwhile=release.set)
    assert len(bodies) == 5
    assert max(row.sent_ns for row in rows) < min(row.done_ns for row in rows)


def test_what_is_due_beyond_the_limit_is_dropped_at_once_and_never_sent(run):
    release = Event()
    plan = msgspec.structs.replace(PLAN, max_in_flight=2)

    def answer(_):
        release.wait()
        return ANSWERED

    rows, bodies = run(answer, range(0, 10_000_000, 1_000_000), plan, meanwhile=release.set)
    dropped = [row for row in rows if row.status == DROPPED]
    assert len(bodies) == 2
    assert [row.scheduled_ns for row in dropped] == list(range(2_000_000, 10_000_000, 1_000_000))
    assert rows[: len(dropped)] == dropped  # before either of the two was answered
    assert all((row.sent_ns, row.first_byte_ns, row.done_ns) == (None, None, None) for row in dropped)


def test_nothing_is_dropped_below_the_limit(run):
    plan = msgspec.structs.replace(PLAN, max_in_flight=1)
    rows, _ = run(lambda _: ANSWERED, range(0, 10_000_000, 1_000_000), plan)
    assert [row.status for row in rows] == [OK] * 10


def test_a_place_is_free_again_once_a_request_is_answered(run):
    plan = msgspec.structs.replace(PLAN, max_in_flight=1)
    held = Event()
    calls = []

    def answer(_):
        calls.append(1)
        if len(calls) == 1:
            held.wait()
        return ANSWERED

    gevent.spawn_later(0.02, held.set)
    rows, _ = run(answer, [0, 1_000_000, 200_000_000], plan)
    assert sorted(row.status for row in rows) == [DROPPED, OK, OK]


def test_a_failure_is_a_row_with_its_status(run):
    replies = iter([Reply("HTTP 503", "", None), ANSWERED, Reply("timeout", "", None)])
    rows, _ = run(lambda _: next(replies), [0, 3_000_000, 6_000_000])
    assert [row.status for row in rows] == ["HTTP 503", OK, "timeout"]


def test_a_client_that_raises_does_not_end_the_run(run):
    replies = iter([1 / 3, None])

    def answer(_):
        if next(replies):
            raise ZeroDivisionError
        return ANSWERED

    rows, _ = run(answer, [0, 3_000_000])
    assert [row.status for row in rows] == ["ZeroDivisionError", OK]


def test_the_first_byte_is_counted_from_the_runs_start(run):
    rows, _ = run(lambda _: Reply(OK, "", time.monotonic_ns()), [0, 1_000_000])
    for row in rows:
        assert row.sent_ns <= row.first_byte_ns <= row.done_ns


def test_warm_up_is_flagged(run):
    rows, _ = run(lambda _: ANSWERED, [0], warm_up=True)
    assert rows[0].warm_up
