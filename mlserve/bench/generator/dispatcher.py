"""When each request leaves: at the instant that the schedule says, whatever became of those before it, or, in a closed
loop, when the one before it is answered.

A closed loop waits for an answer before it sends again, so a server that stalls is asked less while it stalls, and the
worst moments are hardly in the data (coordinated omission; Tene, "How NOT to Measure Latency"). Here every arrival of
the schedule becomes one row, with the instant it was due.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from gevent.event import Event

from mlserve.bench.clients.client import Client, Reply, Request
from mlserve.bench.generator.pacer import Pacer
from mlserve.bench.generator.server_timing import read_server_timing
from mlserve.runs.samples import DROPPED, Sample

__all__ = ["Dispatcher", "Reader"]

Reader = Callable[[int, Reply], tuple[str, str]]
"""(request's number, reply to it) -> (status, version): what a row says of an answer."""


class Dispatcher:
    """Sends requests and records one row for each.

    `record` is called once for each arrival: when its answer is complete or, where `max_in_flight` requests were
    waiting already, at once with the status "dropped". Nothing is ever sent late to make room for it.
    """

    def __init__(
        self,
        client: Client,
        requests: Sequence[Request],
        read: Reader,
        record: Callable[[Sample], None],
        max_in_flight: int,
    ) -> None:
        self._client, self._read, self._record = client, read, record
        self._rows = [request.rows for request in requests]
        self._max_in_flight = max_in_flight
        self._all_answered = Event()
        self._all_answered.set()
        self.end_ns = 2**63
        self.sent = 0
        self.in_flight = 0

    def run(self, due: Iterable[tuple[int, int]], start_ns: int, pacer: Pacer) -> None:
        """The open loop: for each (instant, request's number) of `due`, sends the request at that instant, counted
        from `start_ns` on the monotonic clock. What is due at `end_ns` or later is not sent.

        Returns when the last one has left, not when it is answered.
        """
        for due_ns, number in due:
            pacer.sleep_until(start_ns + due_ns)
            if due_ns >= self.end_ns:
                return
            if self.in_flight >= self._max_in_flight:
                self._record(Sample(due_ns, None, None, None, self._rows[number], number, DROPPED, ""))
            else:
                self._send(due_ns, number, start_ns, None)

    def run_closed(self, users: int, numbers: Iterable[int], start_ns: int, pacer: Pacer, end_ns: int) -> None:
        """The closed loop: `users` requests in flight from `start_ns` on, each answer sends the next of `numbers`.

        Nothing is sent from `end_ns`, or the attribute of that name, on. Returns then.
        """
        coming = iter(numbers)

        def send_next() -> None:
            now_ns = time.monotonic_ns() - start_ns
            if now_ns < min(end_ns, self.end_ns):
                self._send(now_ns, next(coming), start_ns, send_next)

        pacer.sleep_until(start_ns)
        for _ in range(users):
            send_next()
        while (time.monotonic_ns() - start_ns) < min(end_ns, self.end_ns):
            pacer.sleep_until(min(start_ns + min(end_ns, self.end_ns), time.monotonic_ns() + 100_000_000))

    def join(self) -> None:
        """Waits until every request is answered; the client's timeout bounds that."""
        self._all_answered.wait()

    def _send(self, due_ns: int, number: int, start_ns: int, then: Callable[[], None] | None) -> None:
        if not self.in_flight:
            self._all_answered.clear()
        self.in_flight += 1
        self.sent += 1
        sent_ns = time.monotonic_ns() - start_ns
        self._client.send(number, partial(self._answered, due_ns, sent_ns, number, start_ns, then))

    def _answered(
        self, due_ns: int, sent_ns: int, number: int, start_ns: int, then: Callable[[], None] | None, reply: Reply
    ) -> None:
        done_ns = time.monotonic_ns() - start_ns
        status, version = self._read(number, reply)
        first_ns = None if reply.first_byte_ns is None else reply.first_byte_ns - start_ns
        timing = read_server_timing(reply.timing) if reply.timing else (None, None, None)
        self._record(Sample(due_ns, sent_ns, first_ns, done_ns, self._rows[number], number, status, version, *timing))
        self.in_flight -= 1
        if then is not None:
            then()
        if not self.in_flight:
            self._all_answered.set()
