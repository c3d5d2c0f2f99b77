import gc
import time

import gevent
import msgspec
import pytest

from mlserve.bench.clients.client import Reply, Request
from mlserve.bench.clients.fake import FakeClient
from mlserve.bench.generator.generator import Generator, Share
from mlserve.bench.generator.job import Address, Job
from mlserve.bench.load.schedule import schedule
from mlserve.runs.load import Plan
from mlserve.runs.samples import DROPPED, OK

JOB = Job(
    plan=Plan(rate_per_s=500, duration_s=0.2, warm_up_s=0.1),
    name="m",
    address=Address("http", "127.0.0.1", 1, "/"),
    requests=(Request(b"a"), Request(b"b", rows=2), Request(b"c", rows=3)),
    order=(2, 0, 1),
    directory="",
)
WHOLE = Share()
ANSWERED = Reply(OK, b'{"model_name":"m","model_version":"7"')


class ListSink:
    def __init__(self):
        self.rows, self.ticks = [], []

    def take(self, rows, tick):
        self.rows += rows
        self.ticks.append(tick)


@pytest.fixture(autouse=True, scope="module")
def collector():
    """As it was before: a generator has its process to itself, and little in it to collect."""
    before = gc.get_threshold()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def generate(plan=JOB.plan, share=WHOLE, answer=lambda _: ANSWERED, meanwhile=lambda _: None):
    sink, seen, client = ListSink(), [], FakeClient(answer)
    generator = Generator(msgspec.structs.replace(JOB, plan=plan), share, client, seen.append, sink)
    meanwhile(generator)
    total = generator.run(time.monotonic_ns() + 10_000_000)
    assert client.closed
    assert sorted(seen) == sorted(sink.rows)
    return sink, total


def test_every_arrival_of_the_schedule_has_its_row_and_its_request():
    sink, total = generate()
    due_ns = schedule(JOB.plan).tolist()
    rows = sorted(sink.rows)
    assert [row.scheduled_ns for row in rows] == due_ns
    assert [row.body for row in rows] == [JOB.order[place % 3] for place in range(len(due_ns))]
    assert all(row.rows == row.body + 1 for row in rows)
    assert {row.version for row in rows} == {"7"}
    assert (total.ok, total.failed) == (len(due_ns), 0)
    assert total.end_s == pytest.approx(0.3)


def test_ticks_tell_how_far_it_is_and_count_every_latency_once():
    sink, total = generate()
    assert len(sink.ticks) > 1
    assert [tick.elapsed_s for tick in sink.ticks] == sorted(tick.elapsed_s for tick in sink.ticks)
    last = sink.ticks[-1]
    assert (last.sent, last.ok, last.in_flight) == (total.ok, total.ok, 0)
    assert sum(sum(tick.latencies.values()) for tick in sink.ticks) == total.ok


def test_failed_and_dropped_requests_are_counted():
    plan = msgspec.structs.replace(JOB.plan, max_in_flight=1)

    def answer(number):
        gevent.sleep(0.02)
        return Reply("HTTP 503") if number == 0 else ANSWERED

    sink, total = generate(plan, answer=answer)
    statuses = [row.status for row in sink.rows]
    assert statuses.count("HTTP 503") == total.failed > 0
    assert statuses.count(OK) == total.ok > 0
    assert statuses.count(DROPPED) == sink.ticks[-1].dropped > 0
    assert len(statuses) == len(schedule(plan))


def test_shares_are_the_whole_together_and_nothing_twice():
    rows = [row for number in range(3) for row in generate(share=Share(number, 3))[0].rows]
    rows.sort()
    assert [row.scheduled_ns for row in rows] == schedule(JOB.plan).tolist()
    assert [row.body for row in rows] == [JOB.order[place % 3] for place in range(len(rows))]


def test_a_run_that_is_stopped_has_every_row_before_that_and_none_after():
    plan = msgspec.structs.replace(JOB.plan, duration_s=60.0)
    sink, total = generate(plan, meanwhile=lambda generator: gevent.spawn_later(0.05, generator.stop, 0.15))
    due_s = schedule(plan) / 1e9
    assert len(sink.rows) == (due_s < 0.15).sum()
    assert total.end_s == 0.15


def test_a_run_stopped_before_it_began_keeps_to_that():
    sink, total = generate(meanwhile=lambda generator: generator.stop(0.05))
    assert len(sink.rows) == (schedule(JOB.plan) / 1e9 < 0.05).sum()
    assert total.end_s == 0.05


def test_the_users_of_a_closed_loop_are_shared_too():
    plan = Plan(rate_per_s=0, duration_s=0.2, warm_up_s=0, arrivals="closed", users=5)
    in_flight = []

    def answer(_):
        in_flight.append(1)
        gevent.sleep(0.01)
        in_flight.pop()
        return ANSWERED

    for share, users in ((Share(0, 2), 3), (Share(1, 2), 2)):
        most = []

        def watched(number, most=most):
            most.append(len(in_flight) + 1)
            return answer(number)

        sink, total = generate(plan, share, watched)
        assert max(most) == users
        assert total.ok == len(sink.rows) > users


def test_what_breaks_in_a_run_is_raised_and_leaves_no_greenlet():
    def answer(_):
        return Reply(OK, "no bytes")

    with pytest.raises(TypeError):
        generate(answer=answer)


def test_no_full_collection_holds_up_a_run():
    collections = []

    def note(phase, info):
        collections.append(info["generation"])

    def answer(_):
        if note not in gc.callbacks:
            gc.callbacks.append(note)
        return ANSWERED

    try:
        generate(answer=answer)
        assert 2 not in collections
        gc.collect()
        assert 2 in collections
    finally:
        gc.callbacks.remove(note)
