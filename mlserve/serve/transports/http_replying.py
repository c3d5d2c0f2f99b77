"""The half of an HTTP connection that answers: replies in the order of their requests, refusals, and the end.

The fast lane's replies and uvicorn's go over one connection; each waits for those before it.
"""

import array
import asyncio
import fcntl
import termios
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mlserve.serve.protocols.dialect import error_body
from mlserve.serve.settings import Limits
from mlserve.serve.transports.http_reply import CLOSE, failure
from mlserve.serve.transports.http_ticket import HttpTicket, Place, abandon, drop_queued

__all__ = ["MOST_UNANSWERED", "ReplyingProtocol", "sweep_connections"]

MOST_UNANSWERED = 32
"""Of a client that does not wait for answers no more is read until half of so many requests are answered.

Where as many wait for the application, which reads on by itself, the connection ends with its answers to them.
"""

# How long a refused client may go on sending before its connection is cut: closing at once would reset the connection
# and take the answer with it.
_LINGER_S = 2.0
# So many connections too many are told so; more are cut.
_MOST_TOLD = 64


class ReplyingProtocol(HttpToolsProtocol):
    """One connection; the subclass receives."""

    limits: Limits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.quiet_since_s = time.monotonic()
        self.receiving_since_s: float | None = None
        self._order: deque[HttpTicket | Place] = deque()
        self._refused = False
        self._leaving = False
        self._handed_over = False  # the request that is being received is the application's
        self._in_headers = False
        self._running: RequestResponseCycle | None = None  # the newest that the application has begun
        self._unsent_bytes = 0
        self._held = False  # nothing is read, because too much is unanswered

    # asyncio calls these.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        excess = len(self.connections) - self.limits.max_connections
        if excess > _MOST_TOLD:
            transport.abort()
        elif excess > 0:
            self._refuse(503, f"the server has {self.limits.max_connections} connections already; try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        drop_queued(self._order)
        self._order.clear()
        self._silence()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        # A client that does not read its answers gets no more requests read.
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not (self.transport.is_closing() or self._held or self.pipeline):
            self.flow.resume_reading()

    # The server and the tickets call these.

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Those of every reply, which uvicorn renews once a second."""
        return self.server_state.default_headers

    def shutdown(self) -> None:
        """Closes the connection once what it asked for, or is about to ask for, is answered."""
        self._leaving = True
        if not self._application_idle():
            self.cycle.keep_alive = False
        elif not self._order and self.receiving_since_s is None:
            self.transport.close()

    def abandon(self) -> None:
        """Answers that the server stops to every request that is still being computed."""
        abandon(self._order)
        if self._order:
            self.flush()

    def flush(self) -> None:
        """Writes the replies that are ready, in the order of their requests."""
        order, transport = self._order, self.transport
        while order and (reply := order[0].reply) is not None:
            ticket = order.popleft()
            if transport.is_closing():
                continue
            transport.write(reply)
            self.server_state.total_requests += 1
            if ticket.last and transport.can_write_eof():
                transport.write_eof()
            elif ticket.close:  # over TLS, what the client still sends is read until it says goodbye
                transport.close()
        if self._held and len(order) <= MOST_UNANSWERED // 2:
            self._held = False
            if not (self.flow.write_paused or transport.is_closing()):
                self.flow.resume_reading()
        if not order:
            self.quiet_since_s = time.monotonic()
            if self._leaving and not self._refused:
                self.transport.close()
            elif self.pipeline and not self.transport.is_closing():
                cycle, application = self.pipeline.pop()
                self._start_asgi_task(cycle, application)

    def sweep(self, now_s: float) -> None:
        """Ends the connection if it is late: with a request it began, with reading its answers, with its next one."""
        if self.receiving_since_s is not None:
            late_s = now_s - self.receiving_since_s
            if self._in_headers and late_s > self.limits.head_s:
                self._refuse(408, f"the headers were not complete after {self.limits.head_s:g} s")
            elif late_s > self.limits.receive_s:
                self._refuse(408, f"the request was not complete after {self.limits.receive_s:g} s")
            return
        unsent_bytes = _unsent_bytes(self.transport)
        if unsent_bytes != self._unsent_bytes:
            self._unsent_bytes, self.quiet_since_s = unsent_bytes, now_s
        idle = not self._order and self._application_idle()
        limit_s = _LINGER_S if self._refused and idle else self.limits.keep_alive_s
        if now_s - self.quiet_since_s > limit_s:
            if unsent_bytes:
                # To close would wait for a client that does not read, as the application may do already.
                self.transport.abort()
            elif idle:
                self.transport.close()

    async def _fill(self, place: Place, making: Awaitable[bytes]) -> None:
        found = await making
        if place.reply is None:
            place.reply = found
            self.flush()

    def _hold(self) -> None:
        """Reads no more until there are fewer unanswered requests."""
        self._held = True
        self.flow.pause_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _silence(self) -> None:
        """Keeps the application from writing to a connection that is closed.

        uvicorn tells the newest request alone; of several that came together an older one may be running.
        """
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()

    def _application_idle(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or (cycle.response_complete and not self.pipeline)

    def _refuse(self, status: int, message: str, body: Callable[[int, str], bytes] = error_body) -> None:
        """Answers a request that is not read to its end, after those before it, and reads no further."""
        if self._refused:
            return
        self._refused = True
        self.receiving_since_s = None
        refusal = failure(status, body(status, message), CLOSE)
        if self._handed_over:
            answered = self.cycle.response_complete
            if not self._withdraw():
                self._silence()
                self.transport.close()
                return
            refusal = b"" if answered else refusal
        elif not self._application_idle():  # its answer to the request before ends the connection
            self.cycle.keep_alive = False
            return
        self._order.append(Place(refusal, close=True, last=True))
        self.flush()

    def _withdraw(self) -> bool:
        """Keeps the application from answering the request that is being received; False when that is too late."""
        cycle = self.cycle
        waited = bool(self.pipeline) and self.pipeline[0][0] is cycle
        if waited:
            self.pipeline.popleft()
        too_late = cycle.response_started and not cycle.response_complete
        cycle.disconnected = cycle.response_complete = True
        cycle.message_event.set()
        # A cycle that waited for no reply of the fast lane waited for another one, which is out of our hands.
        return not (too_late or self.pipeline or (waited and not self._order))


def _unsent_bytes(transport: asyncio.Transport) -> int:
    """0 where the system has taken all; else with what that has and the client has not, for it takes more rarely."""
    waiting_bytes = transport.get_write_buffer_size()
    if not waiting_bytes:
        return 0
    count = array.array("i", [0])
    with suppress(OSError, ValueError):  # it has just been closed
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, count)
    return waiting_bytes + count[0]


async def sweep_connections(connections: set[Any], every_s: float = 0.5) -> None:
    """Ends late connections for as long as the task lives. One sweep for all costs less than a timer for each."""
    while True:
        await asyncio.sleep(every_s)
        now_s = time.monotonic()
        for connection in list(connections):
            connection.sweep(now_s)
