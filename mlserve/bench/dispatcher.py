"""The open-loop dispatcher: requests leave when the schedule says so, whatever became of those before them.

A closed loop waits for an answer before it sends again, so a server that stalls is asked less while it stalls, and the
worst moments are hardly in the data (coordinated omission; Tene, "How NOT to Measure Latency"). Here every arrival of
the schedule becomes one row, with the instant it was due.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gevent
from gevent import get_hub
from gevent.event import Event

from mlserve.bench.clients.client import Client, Reply
from mlserve.bench.pacer import Pacer
from mlserve.runs.run import Plan
from mlserve.runs.samples import DROPPED, Sample

__all__ = ["Dispatcher"]


class Dispatcher:
    """Sends the bodies in turn, by as many greenlets as there are requests in flight.

    `record` is called once for each arrival: when its answer is complete or, where `plan.max_in_flight` requests were
    waiting already, at once with the status "dropped". Nothing is ever sent late to make room for it.
    """

    def __init__(self, client: Client, bodies: Sequence[bytes], plan: Plan, record: Callable[[Sample], None]) -> None:
        self._client, self._bodies, self._record = client, bodies, record
        self._max_in_flight, self._rows = plan.max_in_flight, plan.batch_rows
        self._hub = get_hub()
        self._idle: list[Any] = []
        self._all_answered = Event()
        self._all_answered.set()
        self.sent = 0
        self.in_flight = 0

    def run(self, due_ns: Iterable[int], start_ns: int, pacer: Pacer, *, warm_up: bool) -> None:
        """Sends one request at each of `due_ns`, counted from `start_ns` on the monotonic clock.

        Returns when the last one has left, not when it is answered.
        """
        for due in due_ns:
            pacer.sleep_until(start_ns + due)
            if self.in_flight >= self._max_in_flight:
                self._record(Sample(due, None, None, None, self._rows, DROPPED, "", warm_up))
            else:
                self._dispatch(due, start_ns, warm_up)

    def join(self) -> None:
        """Waits until every request is answered; the client's timeout bounds that."""
        self._all_answered.wait()

    def _dispatch(self, due_ns: int, start_ns: int, warm_up: bool) -> None:  # noqa: FBT001  # a row's column
        self.in_flight += 1
        self._all_answered.clear()
        body = self._bodies[self.sent % len(self._bodies)]
        self.sent += 1
        job = (body, due_ns, start_ns, warm_up)
        # A greenlet that has served before costs a fraction of a new one.
        if self._idle:
            self._hub.loop.run_callback(self._idle.pop().switch, job)
        else:
            gevent.spawn(self._serve, job)

    def _serve(self, job: tuple[bytes, int, int, bool]) -> None:
        """The life of one greenlet: a request, then idle until it is handed the next."""
        while True:
            try:
                self._send(*job)
            finally:
                self.in_flight -= 1
                if not self.in_flight:
                    self._all_answered.set()
            self._idle.append(gevent.getcurrent())
            job = self._hub.switch()

    def _send(self, body: bytes, due_ns: int, start_ns: int, warm_up: bool) -> None:  # noqa: FBT001  # as above
        sent_ns = time.monotonic_ns() - start_ns
        try:
            reply = self._client.send(body)
        except Exception as error:  # a client's mistake is a row like any failure: it must not end the run
            reply = Reply(type(error).__name__, "", None)
        done_ns = time.monotonic_ns() - start_ns
        first_ns = None if reply.first_byte_ns is None else reply.first_byte_ns - start_ns
        self._record(Sample(due_ns, sent_ns, first_ns, done_ns, self._rows, reply.status, reply.version, warm_up))
