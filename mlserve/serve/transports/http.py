"""HTTP: uvicorn's protocol class with a fast lane for inference in front of the ASGI application.

Per-request framework objects (scope, task, receive, send, header dictionaries) cost more than a small model does, so a
request whose path and method name a served model never gets them: its bytes are gathered, decoded, put into the event
loop's turn, and answered by one write. Everything else goes on to the application, unchanged.

Deadlines and size caps live here, for both lanes, because ASGI middleware cannot see a slow sender.
"""

import asyncio
import time
from collections import deque
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mlserve.errors import InvalidRequest, PayloadTooLarge, RequestError
from mlserve.model.tensors import Tensors
from mlserve.serve.batching.batcher import Batch, Ticket
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.protocols.infer_route import JSON_BYTES, InferRoute, error_body
from mlserve.serve.service import Service
from mlserve.serve.settings import Limits
from mlserve.wire.signature import InferRequest

__all__ = ["HttpLane", "lane_class", "sweep_connections"]

_NOTED = frozenset((b"expect", b"content-length", b"content-encoding", JSON_BYTES))
_STATUS = {
    400: b"HTTP/1.1 400 Bad Request\r\n",
    404: b"HTTP/1.1 404 Not Found\r\n",
    408: b"HTTP/1.1 408 Request Timeout\r\n",
    413: b"HTTP/1.1 413 Content Too Large\r\n",
    431: b"HTTP/1.1 431 Request Header Fields Too Large\r\n",
    500: b"HTTP/1.1 500 Internal Server Error\r\n",
    503: b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n",
}
# A content-length of fewer digits cannot be too large.
_SHORT_LENGTH = 5
# How long a refused client may go on sending before its connection is cut: closing at once would reset the connection
# and take the answer with it.
_LINGER_S = 2.0


class HttpTicket(Ticket):
    """One request of the fast lane. Its reply is kept until those before it on the connection have gone out."""

    __slots__ = ("close", "connection", "reply", "request", "route")

    def __init__(self, connection: "HttpLane", route: InferRoute, request: InferRequest, *, close: bool) -> None:
        self.inputs, self.rows = request.inputs, request.rows
        self.key, self.loop = route.model.signature.batch_key(request.inputs), connection.loop
        self.connection, self.route, self.request, self.close = connection, route, request, close
        self.protocol = route.protocol
        self.reply: bytes | None = None
        self.arrived_s = time.perf_counter()

    def answer(self, outputs: Tensors, batch: Batch) -> None:
        route = self.route
        body, json_bytes = route.encode(route.model.signature, self.request, outputs)
        self.reply = self.connection.success(body, json_bytes, close=self.close)
        self.connection.flush()

    def fail(self, error: RequestError) -> None:
        self.reply = failure(error.http_status, str(error), close=self.close)
        self.connection.flush()


class _Busy:
    """Stands for a moment where uvicorn looks for the request before: the next one then waits in its pipeline."""

    response_complete = False


_BUSY = _Busy()


class HttpLane(HttpToolsProtocol):
    """One connection. `lane_class` makes the subclass that knows its service."""

    service: Service
    turn: LoopTurn
    limits: Limits
    infer_routes: dict[bytes, InferRoute]

    _head_source: list[tuple[bytes, bytes]] | None = None
    _head = b""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.quiet_since_s = time.monotonic()
        self.receiving_since_s: float | None = None
        self._order: deque[HttpTicket] = deque()
        self._refused = False
        self._leaving = False
        # Of the request that is being received:
        self._route: InferRoute | None = None
        self._noted: dict[bytes, bytes] = {}
        self._in_headers, self._header_bytes = False, 0
        self._body: bytes | bytearray = b""
        self._body_bytes = 0

    # asyncio and httptools call these.

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # No upgrade is offered; the request is answered as it stands, and the connection cannot be read further.
            if self._order:
                self._order[-1].close = True
            elif self.cycle is not None:
                self.cycle.keep_alive = False
        except httptools.HttpParserError:
            self._refuse(400, "the request is not HTTP/1.1")
        if self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > self.limits.max_header_bytes:
                self._refuse(431, f"the headers have more than {self.limits.max_header_bytes} bytes")

    def on_message_begin(self) -> None:
        self.receiving_since_s = time.monotonic()
        self._in_headers, self._header_bytes = True, 0
        self._route = None
        self._body, self._body_bytes = b"", 0
        self.url = b""
        self.headers = []
        if self._noted:
            self._noted = {}

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.headers.append((name, value))
        if name in _NOTED and (name != b"content-length" or len(value) > _SHORT_LENGTH):
            self._noted[name] = value

    def on_headers_complete(self) -> None:
        self._in_headers = False
        expects = False
        if self._noted:
            length = self._noted.get(b"content-length", b"0")
            if length.isdigit() and int(length) > self.limits.max_request_bytes:
                self._refuse(413, self._too_large(int(length)))
                return
            expects = self._noted.get(b"expect", b"").lower() == b"100-continue"
        route = self.infer_routes.get(self.url)
        if route is not None and self.parser.get_method() == b"POST" and self._application_idle():
            self._route = route
            if expects:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        else:
            self._hand_over(expects=expects)

    def on_body(self, body: bytes) -> None:
        if self._refused:
            return
        self._body_bytes += len(body)
        if self._body_bytes > self.limits.max_request_bytes:
            self._refuse(413, self._too_large(self._body_bytes))
        elif self._route is None:
            super().on_body(body)
        elif not self._body:
            self._body = body
        elif isinstance(self._body, bytearray):
            self._body += body
        else:
            self._body = bytearray(self._body) + body

    def on_message_complete(self) -> None:
        if self._refused:
            return
        self.receiving_since_s = None
        route = self._route
        if route is None:
            super().on_message_complete()
            return
        close = not self.parser.should_keep_alive() or self.parser.get_http_version() != "1.1" or self.service.draining
        try:
            self.service.check_serving()
            request = route.decode(
                bytes(self._body), route.model.signature, self._json_bytes() if self._noted else None
            )
        except RequestError as error:
            ticket = HttpTicket(self, route, InferRequest({}, 0), close=close)
            self._order.append(ticket)
            route.model.meter.failed(route.protocol, error)
            ticket.fail(error)
            return
        ticket = HttpTicket(self, route, request, close=close)
        self._order.append(ticket)
        self.turn.add(route.model.batcher, ticket)

    def connection_lost(self, exc: Exception | None) -> None:
        self._order.clear()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        # A client that does not read its answers gets no more requests read.
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self.flow.resume_reading()

    # The server and the tickets call these.

    def shutdown(self) -> None:
        """Closes the connection once what it asked for is answered."""
        if self._order:
            self._leaving = True
        elif self._application_idle():
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def success(self, body: bytes, json_bytes: int | None, *, close: bool) -> bytes:
        """The bytes of a 200 reply."""
        defaults = self.server_state.default_headers
        if defaults is not HttpLane._head_source:  # uvicorn renews the date once a second
            fields = b"".join(name + b": " + value + b"\r\n" for name, value in defaults)
            HttpLane._head = b"HTTP/1.1 200 OK\r\n" + fields
            HttpLane._head_source = defaults
        extra = b"connection: close\r\n" if close else b""
        if json_bytes is None:
            return b"%bcontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (
                HttpLane._head,
                extra,
                len(body),
                body,
            )
        return b"%bcontent-type: application/octet-stream\r\n%b%b: %d\r\ncontent-length: %d\r\n\r\n%b" % (
            HttpLane._head,
            extra,
            JSON_BYTES,
            json_bytes,
            len(body),
            body,
        )

    def flush(self) -> None:
        """Writes the replies that are ready, in the order of their requests."""
        order = self._order
        while order and order[0].reply is not None:
            ticket = order.popleft()
            if self.transport.is_closing():
                continue
            self.transport.write(cast("bytes", ticket.reply))
            self.server_state.total_requests += 1
            if ticket.close:
                self.transport.close()
        if not order:
            self.quiet_since_s = time.monotonic()
            if self._leaving:
                self.transport.close()
            elif self.pipeline and not self.transport.is_closing():
                cycle, application = self.pipeline.pop()
                self._start_asgi_task(cycle, application)

    def sweep(self, now_s: float) -> None:
        """Ends the connection if it is late: with a request it began, or with its next one."""
        if self._refused:
            late = now_s - self.quiet_since_s > _LINGER_S
        elif self.receiving_since_s is not None:
            if now_s - self.receiving_since_s > self.limits.receive_s:
                self._refuse(408, f"the request was not complete after {self.limits.receive_s:g} s")
            return
        else:
            late = (
                self._application_idle() and not self._order and now_s - self.quiet_since_s > self.limits.keep_alive_s
            )
        if late:
            self.transport.close()

    def _application_idle(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is None or (cycle.response_complete and not self.pipeline)

    def _hand_over(self, *, expects: bool) -> None:
        """Lets uvicorn start this request in the ASGI application, after those of the fast lane before it."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        if self._order and self._application_idle():
            self.cycle = cast("RequestResponseCycle", _BUSY)
        super().on_headers_complete()

    def _json_bytes(self) -> int | None:
        noted = self._noted
        if noted.get(b"content-encoding", b"identity") != b"identity":
            raise InvalidRequest("content-encoding is not supported; send the body as it is")
        length = noted.get(JSON_BYTES)
        if length is None:
            return None
        if not length.isdigit():
            raise InvalidRequest("Inference-Header-Content-Length is no number")
        return int(length)

    def _too_large(self, size: int) -> str:
        return str(
            PayloadTooLarge(
                f"the request has {size} bytes or more, which exceeds the maximum allowed input size of "
                f"{self.limits.max_request_bytes}"
            )
        )

    def _refuse(self, status: int, message: str) -> None:
        """Answers a request that is not read to its end, and reads no further."""
        self._refused = True
        self._order.clear()
        self.receiving_since_s = None
        self.quiet_since_s = time.monotonic()
        if not self.transport.is_closing():
            self.transport.write(failure(status, message, close=True))
            if self.transport.can_write_eof():
                self.transport.write_eof()


def failure(status: int, message: str, *, close: bool) -> bytes:
    """The bytes of an error reply."""
    body = error_body(message)
    extra = b"connection: close\r\n" if close else b""
    return b"%bcontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (
        _STATUS[status],
        extra,
        len(body),
        body,
    )


def lane_class(
    service: Service, turn: LoopTurn, limits: Limits, infer_routes: dict[bytes, InferRoute]
) -> type[HttpLane]:
    """The protocol class for uvicorn, bound to one service."""
    bound = {"service": service, "turn": turn, "limits": limits, "infer_routes": infer_routes}
    return type("BoundHttpLane", (HttpLane,), bound)


async def sweep_connections(connections: set[Any], every_s: float = 0.5) -> None:
    """Ends late connections for as long as the task lives. One sweep for all costs less than a timer for each."""
    while True:
        await asyncio.sleep(every_s)
        now_s = time.monotonic()
        for connection in list(connections):
            connection.sweep(now_s)
