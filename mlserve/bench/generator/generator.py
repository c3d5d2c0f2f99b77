"""The generator: one run of one job, or of its share of one, in a process that gevent has patched. Knows nothing of
Locust.

Rows leave ten times a second: what a sink does with a second's worth of them at once would hold up the dispatcher for
milliseconds, and the requests due meanwhile with it.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import gevent
import msgspec
import numpy as np
import numpy.typing as npt

from mlserve.bench.clients.client import Client, Reply
from mlserve.bench.dialects.find import find_dialect
from mlserve.bench.generator.dispatcher import Dispatcher, Reader
from mlserve.bench.generator.job import Address, Job, Tick
from mlserve.bench.generator.pacer import Pacer, open_pacer
from mlserve.bench.load.schedule import schedule
from mlserve.bench.payload.expected import WRONG_ANSWER, open_expected
from mlserve.bench.progress import count_latencies
from mlserve.runs.samples import DROPPED, OK, Sample

__all__ = ["Generator", "Share", "Sink", "Total", "open_client", "quiet_collector"]

_FLUSH_EVERY_S = 0.1
_BLOCK = 4096


class Share(msgspec.Struct, frozen=True):
    """Which part of the schedule is this generator's: every `of`-th arrival, beginning with number `number`."""

    number: int = 0
    of: int = 1


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """What one generator sent. See `Finished`."""

    end_s: float
    cpu: float
    ok: int
    failed: int


class Sink(Protocol):
    """Where rows and progress go: a file, or the generator that leads the others."""

    def take(self, rows: Sequence[Sample], tick: Tick) -> None: ...


def open_client(address: Address, job: Job) -> Client:
    """The client for an address. Only the one that is used is imported."""
    if address.transport == "grpc":
        from mlserve.bench.clients.grpc import GrpcClient

        return GrpcClient(address.host, address.port, address.path, job.requests, job.plan.timeout_s, address.trust)
    from mlserve.bench.clients.http import HttpClient

    return HttpClient(address.host, address.port, address.path, job.requests, job.plan.timeout_s, address.trust)


class Generator:
    """Runs its share of `job` once. `observe` sees every row as it comes; `sink` gets them all, a tenth of a second's
    at a time.
    """

    def __init__(self, job: Job, share: Share, client: Client, observe: Callable[[Sample], None], sink: Sink) -> None:
        self._job, self._share, self._client, self._observe, self._sink = job, share, client, observe, sink
        self._rows: list[Sample] = []
        self._dispatcher = Dispatcher(client, job.requests, _reader(job), self._record, job.plan.max_in_flight)
        self._due_ns = None if job.plan.closed else schedule(job.plan, job.trace_ns)
        self._start_ns = 0
        self._ok = self._failed = self._dropped = 0
        self.stop(job.plan.end_s)

    def run(self, start_ns: int) -> Total:
        """Sends its share of the schedule, of which the first instant is `start_ns` on the monotonic clock, and waits
        for the last answer.
        """
        pacer = open_pacer()
        quiet_collector()
        self._start_ns = start_ns
        flushing = gevent.spawn(self._keep_flushing)
        try:
            cpu = self._send(pacer)
            self._dispatcher.join()
        finally:
            flushing.kill()
            pacer.close()
            self._client.close()
        self.flush()
        return Total(end_s=self._end_s, cpu=cpu, ok=self._ok, failed=self._failed)

    def stop(self, at_s: float) -> None:
        """Sends what is due before `at_s`, and nothing after."""
        self._end_s = at_s
        self._dispatcher.stop(round(at_s * 1e9))

    def flush(self) -> None:
        """Hands over the rows so far; also where a run is cut short."""
        rows, self._rows = self._rows, []
        answered_ns = [row.done_ns - row.scheduled_ns for row in rows if row.status == OK and row.done_ns is not None]
        self._sink.take(
            rows,
            Tick(
                elapsed_s=(time.monotonic_ns() - self._start_ns) / 1e9,
                sent=self._dispatcher.sent,
                ok=self._ok,
                failed=self._failed,
                dropped=self._dropped,
                in_flight=self._dispatcher.in_flight,
                latencies=count_latencies(answered_ns),
            ),
        )

    def _send(self, pacer: Pacer) -> float:
        """Sends everything; the share of a core that this process used meanwhile."""
        job, share = self._job, self._share
        start_ns = self._start_ns
        pacer.sleep_until(start_ns)
        wall_s, cpu_s = time.monotonic(), time.process_time()
        if self._due_ns is None:
            users = len(range(share.number, job.plan.users, share.of))
            self._dispatcher.run_closed(users, _in_turn(job, share), start_ns, pacer)
        else:
            self._dispatcher.run(_arrivals(job, share, self._due_ns), start_ns, pacer)
        return (time.process_time() - cpu_s) / (time.monotonic() - wall_s)

    def _record(self, sample: Sample) -> None:
        self._rows.append(sample)
        if sample.status == OK:
            self._ok += 1
        elif sample.status == DROPPED:
            self._dropped += 1
        else:
            self._failed += 1
        self._observe(sample)

    def _keep_flushing(self) -> None:
        while True:
            gevent.sleep(_FLUSH_EVERY_S)
            self.flush()


def quiet_collector() -> None:
    """Takes what was imported out of the garbage collector's sight, and full collections out of the run.

    Locust and what it brings are 60,000 objects. A full collection walks them all, and every request due meanwhile
    leaves 12 ms late; so would they for the 100,000 requests that may be in flight. The youngest are still collected,
    in half a millisecond at most.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 3, 1_000_000)


def _reader(job: Job) -> Reader:
    version_of = find_dialect(job.plan.protocol).version

    def read(_: int, reply: Reply) -> tuple[str, str]:
        return (OK, version_of(reply.content)) if reply.status == OK else (reply.status, "")

    if not job.expected:
        return read
    right = open_expected(job.plan.protocol, job.outputs, job.expected, job.answer)

    def read_and_check(number: int, reply: Reply) -> tuple[str, str]:
        status, version = read(number, reply)
        return (WRONG_ANSWER, version) if status == OK and not right(number, reply.content) else (status, version)

    return read_and_check


def _arrivals(job: Job, share: Share, due_ns: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """The share's arrivals, as Python's integers, whose arithmetic is quicker than numpy's; a block at a time, for
    hour-long schedules.
    """
    order = np.asarray(job.order)
    step = _BLOCK * share.of
    for start in range(share.number, len(due_ns), step):
        mine = np.arange(start, min(start + step, len(due_ns)), share.of)
        yield from zip(due_ns[mine].tolist(), order[mine % len(order)].tolist(), strict=True)


def _in_turn(job: Job, share: Share) -> Iterator[int]:
    number = share.number
    while True:
        yield job.order[number % len(job.order)]
        number += share.of
