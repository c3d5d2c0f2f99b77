"""When each request leaves: at the instant that the schedule says, whatever became of those before it, or, in a closed
loop, when the one before it is answered.

A closed loop waits for an answer before it sends again, so a server that stalls is asked less while it stalls, and the
worst moments are hardly in the data (coordinated omission; Tene, "How NOT to Measure Latency"). Here every arrival of
the schedule becomes one row, with the instant it was due.

Everything happens in calls from the event loop: there is no greenlet to wake for a request or for its answer.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from gevent.event import Event

from mlserve.bench.clients.client import Client, Reply, Request
from mlserve.bench.generator.pacer import Pacer
from mlserve.bench.generator.server_timing import read_server_timing
from mlserve.runs.samples import DROPPED, Sample

__all__ = ["NEVER_NS", "Dispatcher", "Reader"]

Reader = Callable[[int, Reply], tuple[str, str]]
"""(request's number, reply to it) -> (status, version): what a row says of an answer."""

NEVER_NS = 2**62

# Where more than so many are due, answers are read before the rest is sent.
_SENT_AT_ONCE = 16
_NOTHING_MORE = (NEVER_NS, 0)


class Dispatcher:
    """Sends requests and records one row for each.

    `record` is called once for each arrival: when its answer is complete or, where `max_in_flight` requests were
    waiting already, at once with the status "dropped". Nothing is ever sent late to make room for it. What `read`,
    `record` or the schedule raise ends the run: `run`, `run_closed` or `join` raise it.
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
        self._pacer: Pacer | None = None
        self._start_ns, self._end_ns = 0, NEVER_NS
        self._coming: Iterator[tuple[int, int]] = iter(())
        self._next_ns, self._next = _NOTHING_MORE
        self._numbers: Iterator[int] | None = None  # of a closed loop
        self._over, self._all_answered = Event(), Event()
        self._error: BaseException | None = None
        self.sent = 0
        self.in_flight = 0

    def run(self, due: Iterable[tuple[int, int]], start_ns: int, pacer: Pacer) -> None:
        """The open loop: for each (instant, request's number) of `due`, sends the request at that instant, counted
        from `start_ns` on the monotonic clock. What is due when the run was told to stop, or later, is not sent.

        Returns at that instant, whatever is still to be answered; without one, when the last request has left.
        """
        self._coming = iter(due)
        self._next_ns, self._next = next(self._coming, _NOTHING_MORE)
        self._run(start_ns, pacer, self._send_due)

    def run_closed(self, users: int, numbers: Iterable[int], start_ns: int, pacer: Pacer) -> None:
        """The closed loop: `users` requests in flight from `start_ns` on, each answer sends the next of `numbers`.

        Returns at the instant at which the run was told to stop; nothing is sent from then on.
        """
        coming = self._numbers = iter(numbers)

        def begin() -> None:
            for _ in range(users):
                self._send_next(coming)
            self._pace()

        self._run(start_ns, pacer, begin)

    def stop(self, end_ns: int) -> None:
        """Sends nothing that is due at `end_ns` since the run's first instant, or later."""
        self._end_ns = end_ns
        self._pace()

    def join(self) -> None:
        """Waits until every request is answered; the client's timeout bounds that."""
        while self.in_flight and self._error is None:
            self._all_answered.clear()
            self._all_answered.wait()
        self._raise()

    def _run(self, start_ns: int, pacer: Pacer, begin: Callable[[], None]) -> None:
        self._over.clear()
        self._start_ns = start_ns
        pacer.sleep_until(start_ns)
        self._pacer = pacer
        try:
            begin()
            self._over.wait()
        finally:
            self._pacer, self._numbers = None, None
            self._next_ns, self._next = _NOTHING_MORE
        self._raise()

    def _send_due(self) -> None:
        """Sends what is due by now, then waits for what is due next."""
        try:
            for _ in range(_SENT_AT_ONCE):
                due_ns = self._next_ns
                now_ns = time.monotonic_ns() - self._start_ns
                if due_ns > now_ns or due_ns >= self._end_ns:
                    break
                number = self._next
                if self.in_flight < self._max_in_flight:
                    self._send(due_ns, now_ns, number)
                else:
                    self._record(Sample(due_ns, None, None, None, self._rows[number], number, DROPPED, ""))
                self._next_ns, self._next = next(self._coming, _NOTHING_MORE)
            self._pace()
        except BaseException as error:  # the event loop would print it and go on
            self._fail(error)

    def _send_next(self, numbers: Iterator[int]) -> None:
        now_ns = time.monotonic_ns() - self._start_ns
        if now_ns < self._end_ns:
            self._send(now_ns, now_ns, next(numbers))

    def _send(self, due_ns: int, now_ns: int, number: int) -> None:
        self.in_flight += 1
        self.sent += 1
        self._client.send(number, partial(self._answered, due_ns, now_ns, number))

    def _answered(self, due_ns: int, sent_ns: int, number: int, reply: Reply) -> None:
        start_ns = self._start_ns
        done_ns = time.monotonic_ns() - start_ns
        self.in_flight -= 1
        try:
            status, version = self._read(number, reply)
            first_ns = None if reply.first_byte_ns is None else reply.first_byte_ns - start_ns
            timing = read_server_timing(reply.timing) if reply.timing else (None, None, None)
            row = Sample(due_ns, sent_ns, first_ns, done_ns, self._rows[number], number, status, version, *timing)
            self._record(row)
            if self._numbers is not None:
                self._send_next(self._numbers)
        except BaseException as error:  # as in _send_due
            self._fail(error)
        if self._next_ns <= done_ns:
            # Many answers may have come together; what became due meanwhile does not wait for all of them.
            self._send_due()
        if not self.in_flight:
            self._all_answered.set()

    def _pace(self) -> None:
        """Waits for the next arrival or for the end; the run is over when both are."""
        if self._pacer is None:
            return
        instant_ns = min(self._next_ns, self._end_ns)
        if instant_ns == NEVER_NS:
            if self._numbers is None:
                self._over.set()
        elif self._next_ns < self._end_ns or time.monotonic_ns() - self._start_ns < self._end_ns:
            self._pacer.call_at(self._start_ns + instant_ns, self._send_due)
        else:
            self._over.set()

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._over.set()
        self._all_answered.set()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
