"""The generator: one run of one job, in a process that gevent has patched. Knows nothing of Locust.

Rows reach the disk ten times a second, a few at a time: turning a second's worth of rows into Arrow at once would
hold up the dispatcher for milliseconds, and the requests due meanwhile with it.
"""

import gc
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gevent
import msgspec
import numpy as np
import numpy.typing as npt
from gevent.os import make_nonblocking, nb_write
from gevent.queue import Queue

from mlserve.bench.arrivals import schedule
from mlserve.bench.clients.client import Client
from mlserve.bench.dispatcher import Dispatcher
from mlserve.bench.job import Finished, Job, Message, Tick
from mlserve.bench.pacer import Pacer, open_pacer
from mlserve.runs.run import Plan
from mlserve.runs.samples import DROPPED, OK, Sample, SampleWriter

__all__ = ["Generator", "open_client"]

_FLUSH_EVERY_S = 0.1
_LEAD_S = 0.3
_BLOCK = 4096


def open_client(job: Job) -> Client:
    """The client for the job's protocol. Only the one that is used is imported."""
    plan = job.plan
    if plan.protocol == "grpc":
        from mlserve.bench.clients.grpc import GrpcClient

        return GrpcClient(job.target, plan.timeout_s)
    from mlserve.bench.clients.rest import RestClient

    return RestClient(job.target, job.headers, plan.max_in_flight, plan.timeout_s)


class Generator:
    """Runs `job` once. `observe` sees every row as it comes; messages go to `report_fd` unless that is None."""

    def __init__(
        self, job: Job, client: Client, observe: Callable[[Sample], None], report_fd: int | None = None
    ) -> None:
        self._job, self._client, self._observe = job, client, observe
        self._report = _Report(report_fd)
        self._rows: list[Sample] = []
        self._writer: SampleWriter | None = None
        self._dispatcher = Dispatcher(client, job.bodies, job.plan, self._record)
        self._start_ns = 0
        self._ok = self._failed = self._dropped = 0

    def run(self) -> None:
        """Sends the whole schedule, waits for the last answer, and closes the files."""
        warm_up, measured = _parts(self._job.plan)
        self._writer = _open_writer(Path(self._job.directory))
        pacer = open_pacer()
        flushing = gevent.spawn(self._keep_flushing)
        _quiet_collector()
        self._start_ns = time.monotonic_ns() + round(_LEAD_S * 1e9)
        started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._dispatcher.run(_plain(warm_up), self._start_ns, pacer, warm_up=True)
        cpu = self._measure(measured, pacer)
        self._dispatcher.join()
        flushing.kill()
        self.close()
        self._report.send(Finished(started_at=started_at, cpu=cpu, ok=self._ok, failed=self._failed))
        self._report.close()
        pacer.close()
        self._client.close()

    def close(self) -> None:
        """Brings the rows so far to the disk and closes their file; also where a run is cut short."""
        if self._writer is not None:
            self._flush()
            writer, self._writer = self._writer, None
            with writer:
                pass

    def _measure(self, due_ns: npt.NDArray[np.int64], pacer: Pacer) -> float:
        """Sends the measured part; the share of a core that this process used meanwhile."""
        plan = self._job.plan
        pacer.sleep_until(self._start_ns + round(plan.warm_up_s * 1e9))
        wall_s, cpu_s = time.monotonic(), time.process_time()
        self._dispatcher.run(_plain(due_ns), self._start_ns, pacer, warm_up=False)
        pacer.sleep_until(self._start_ns + round((plan.warm_up_s + plan.duration_s) * 1e9))
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
            self._flush()

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        if self._writer is not None:
            self._writer.append(rows)
        self._report.send(
            Tick(
                elapsed_s=(time.monotonic_ns() - self._start_ns) / 1e9,
                sent=self._dispatcher.sent,
                ok=self._ok,
                failed=self._failed,
                dropped=self._dropped,
                in_flight=self._dispatcher.in_flight,
                latencies_ns=[
                    row.done_ns - row.scheduled_ns
                    for row in rows
                    if row.status == OK and row.done_ns is not None and not row.warm_up
                ],
            )
        )


class _Report:
    """The pipe to `mlserve bench`, one JSON document a line.

    A reader that has stopped reading (a paused terminal) must not stop the load, so a greenlet of its own writes.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._waiting: Queue[Message | None] = Queue()
        self._writing: Any = None
        if fd is not None:
            make_nonblocking(fd)
            self._writing = gevent.spawn(self._write, fd)

    def send(self, message: Message) -> None:
        """Hands `message` over; it is written when the reader takes it."""
        if self._writing is not None:
            self._waiting.put(message)

    def close(self) -> None:
        """Waits until everything was written."""
        if self._writing is not None:
            self._waiting.put(None)
            self._writing.join()

    def _write(self, fd: int) -> None:
        while (message := self._waiting.get()) is not None:
            line = msgspec.json.encode(message) + b"\n"
            try:
                while line:
                    line = line[nb_write(fd, line) :]
            except BrokenPipeError:
                # Nobody is left to load for: end as on request, with the rows so far on the disk.
                os.kill(os.getpid(), signal.SIGTERM)
                return


def _parts(plan: Plan) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The schedule's warm-up and its measured part."""
    due_ns = schedule(plan.arrivals, plan.rate_per_s, plan.warm_up_s + plan.duration_s, plan.seed)
    measured_from = int(np.searchsorted(due_ns, round(plan.warm_up_s * 1e9)))
    return due_ns[:measured_from], due_ns[measured_from:]


def _plain(due_ns: npt.NDArray[np.int64]) -> Iterator[int]:
    """Python's integers, whose arithmetic is quicker than numpy's; a block at a time, for hour-long schedules."""
    for start in range(0, len(due_ns), _BLOCK):
        yield from due_ns[start : start + _BLOCK].tolist()


def _open_writer(directory: Path) -> SampleWriter:
    """A writer whose first rows will not be slow: Arrow's own first use takes a quarter of a second."""
    with tempfile.TemporaryDirectory() as scratch, SampleWriter(Path(scratch)) as trial:
        trial.append([Sample(0, None, None, None, 1, OK, "", True)])
    return SampleWriter(directory)


def _quiet_collector() -> None:
    """Takes what was imported out of the garbage collector's sight.

    Locust and what it brings are 60,000 objects. A full collection walks them all, and every request due meanwhile
    leaves 12 ms late; afterwards it takes a microsecond.
    """
    gc.collect()
    gc.freeze()
