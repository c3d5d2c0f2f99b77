"""HTTP: uvicorn's protocol class with a fast lane for inference in front of the ASGI application.

Per-request framework objects (scope, task, receive, send, header dictionaries) cost more than a small model does, so a
request whose path and method name a served model never gets them: its bytes are gathered, decoded, put into the event
loop's turn, and answered by one write. Everything else goes on to the application, unchanged.

Deadlines and size caps live here, for both lanes, because ASGI middleware cannot see a slow sender.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mlserve.errors import NotServing, PayloadTooLarge, RequestError
from mlserve.model.tensors import Tensors
from mlserve.serve.answering import Answering
from mlserve.serve.batching.batcher import Batch, Ticket
from mlserve.serve.protocols.dialect import ENCODING, JSON_BYTES, Inference, InferRoute, check_encoding, error_body
from mlserve.serve.service import ServedModel, Service
from mlserve.serve.settings import Limits
from mlserve.serve.tasks.task import Asked
from mlserve.serve.transports.http_reply import failure, success
from mlserve.wire.signature import InferRequest

__all__ = ["HttpLane", "HttpTicket", "lane_class", "sweep_connections"]

_AUTHORIZATION, _API_KEY = b"authorization", b"x-api-key"
_NOTED = frozenset((b"expect", b"content-length", b"upgrade", _AUTHORIZATION, _API_KEY, ENCODING, JSON_BYTES))
# How long a refused client may go on sending before its connection is cut: closing at once would reset the connection
# and take the answer with it.
_LINGER_S = 2.0
# What chunk headers and trailers may add to a body.
_FRAMING_FACTOR = 8

_log = logging.getLogger("mlserve.serve")


class HttpTicket(Ticket):
    """One request of the fast lane. Its reply is kept until those before it on the connection have gone out."""

    __slots__ = ("close", "connection", "inference", "model", "reply", "request")

    last = False

    def __init__(
        self, connection: "HttpLane", model: ServedModel, inference: Inference, request: InferRequest, *, close: bool
    ) -> None:
        self.inputs, self.rows = request.inputs, request.rows
        self.key, self.loop = model.signature.batch_key(request.inputs), connection.loop
        self.connection, self.model, self.inference = connection, model, inference
        self.request, self.close = request, close
        self.protocol = inference.protocol
        self.reply: bytes | None = None
        self.arrived_s = time.perf_counter()

    def answer(self, outputs: Tensors, batch: Batch) -> None:
        content = self.inference.encode(self.model, self.request, outputs)
        self.reply = success(self.connection.server_state.default_headers, content, close=self.close)
        self.connection.flush()

    def fail(self, error: RequestError) -> None:
        status = error.http_status
        self.reply = failure(status, self.inference.error(status, str(error)), close=self.close)
        self.connection.flush()


class _Reply:
    """A reply that no ticket brings, in its place after those before it. After a `last` one nothing more is read."""

    __slots__ = ("close", "last", "reply", "task")

    task: "asyncio.Task[None]"  # what brings it, kept from being collected while it runs

    def __init__(self, reply: bytes | None, *, close: bool, last: bool = False) -> None:
        self.reply, self.close, self.last = reply, close, last


class _Busy:
    """Stands for a moment where uvicorn looks for the request before: the next one then waits in its pipeline."""

    response_complete = False


_BUSY = _Busy()


class HttpLane(HttpToolsProtocol):
    """One connection. `lane_class` makes the subclass that knows its service."""

    service: Service
    answering: Answering
    limits: Limits
    small_digits: int  # a content-length of so many cannot be too large

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.quiet_since_s = time.monotonic()
        self.receiving_since_s: float | None = None
        self._order: deque[HttpTicket | _Reply] = deque()
        self._refused = False
        self._leaving = False
        self._unsent_bytes = 0
        # Of the request that is being received; the read that it began in may hold the end of another, too.
        self._route: InferRoute | None = None
        self._catalog = self.service.catalog
        self._handed_over, self._upgrading = False, False
        self._noted: dict[bytes, bytes] = {}
        self._in_headers, self._read_bytes, self._first_bytes, self._later_bytes = False, 0, 0, 0
        self._body: bytes | bytearray = b""
        self._body_bytes = 0

    # asyncio and httptools call these.

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        self._read_bytes = len(data)
        self._later_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._refused:
                self._read_without_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserCallbackError:
            _log.exception("a request could not be handled")
            self._refuse(500, "the server made a mistake; its log says which")
        except httptools.HttpParserError:
            self._refuse(400, "the request is not HTTP/1.1")
        if self.receiving_since_s is not None:
            self._check_size()

    def on_message_begin(self) -> None:
        self.receiving_since_s = time.monotonic()
        self._in_headers, self._first_bytes, self._later_bytes = True, self._read_bytes, 0
        self._route, self._handed_over, self._upgrading = None, False, False
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
        if name in _NOTED and (name != b"content-length" or len(value) > self.small_digits):
            self._noted[name] = value

    def on_headers_complete(self) -> None:
        self._in_headers = False
        if self._refused:
            return
        expects = False
        if self._first_bytes + self._later_bytes > self.limits.max_header_bytes:
            header_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if header_bytes > self.limits.max_header_bytes:
                self._refuse(431, self._long_headers())
                return
        if self._noted:
            if b"upgrade" in self._noted and self.parser.should_upgrade():
                self._upgrading = True
                return
            length = self._noted.get(b"content-length", b"0")
            if length.isdigit() and int(length) > self.limits.max_request_bytes:
                self._refuse(413, self._too_large(int(length)))
                return
            expects = self._noted.get(b"expect", b"").lower() == b"100-continue"
        self._catalog = self.service.catalog
        route = self._catalog.routes.get(self.url)
        if route is not None and self.parser.get_method() == b"POST" and self._application_idle():
            if not self.service.access.open and not self._allowed(route):
                return
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
        if self._refused or self._upgrading:
            return
        self.receiving_since_s = None
        route = self._route
        if route is None:
            self._handed_over = False
            super().on_message_complete()
            return
        close = not self.parser.should_keep_alive() or self.parser.get_http_version() != "1.1" or self.service.draining
        model, inference = route.model, route.inference
        try:
            self.service.check_serving()
            if self._catalog is not self.service.catalog:  # it changed while the body came
                model = route.find_again()
            noted, body = self._noted, bytes(self._body)
            self._body = b""  # an idle connection shall not hold on to it
            if noted:
                check_encoding(noted.get(ENCODING))
            request = inference.decode(body, model, dict(self.headers) if inference.all_headers else noted)
        except RequestError as error:
            model.meter.failed(inference.protocol, error)
            body = inference.error(error.http_status, str(error))
            self._order.append(_Reply(failure(error.http_status, body, close=close), close=close))
            self.flush()
            return
        if isinstance(request, Asked):
            reply = _Reply(None, close=close)
            self._order.append(reply)
            reply.task = self.loop.create_task(self._ask(model, inference, request, reply))
            return
        ticket = HttpTicket(self, model, inference, request, close=close)
        self._order.append(ticket)
        self.answering.turn.add(model.batcher, ticket)

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn never keeps the connection, asyncio lets us
        """Keeps the way back open for a client that sends no more but waits for its answers."""
        waits = self.receiving_since_s is None and bool(self._order or not self._application_idle())
        if waits:
            self.shutdown()
        return waits

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
        """Closes the connection once what it asked for, or is about to ask for, is answered."""
        self._leaving = True
        if not self._application_idle():
            self.cycle.keep_alive = False
        elif not self._order and self.receiving_since_s is None:
            self.transport.close()

    def abandon(self) -> None:
        """Answers that the server stops to every request that is still being computed."""
        error = NotServing("the server stopped before this request was answered; send it again")
        for ticket in list(self._order):
            if ticket.reply is None:
                ticket.close = True
                ticket.reply = failure(error.http_status, error_body(error.http_status, str(error)), close=True)
        if self._order:
            self.flush()

    def flush(self) -> None:
        """Writes the replies that are ready, in the order of their requests."""
        order = self._order
        while order and order[0].reply is not None:
            ticket = order.popleft()
            if self.transport.is_closing():
                continue
            self.transport.write(cast("bytes", ticket.reply))
            self.server_state.total_requests += 1
            if ticket.last:
                self.transport.write_eof()
            elif ticket.close:
                self.transport.close()
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
            if now_s - self.receiving_since_s > self.limits.receive_s:
                self._refuse(408, f"the request was not complete after {self.limits.receive_s:g} s")
            return
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes != self._unsent_bytes:
            self._unsent_bytes, self.quiet_since_s = unsent_bytes, now_s
        limit_s = _LINGER_S if self._refused else self.limits.keep_alive_s
        if not self._order and self._application_idle() and now_s - self.quiet_since_s > limit_s:
            if unsent_bytes:
                self.transport.abort()  # to close would wait for a client that does not read
            else:
                self.transport.close()

    def _allowed(self, route: InferRoute) -> bool:
        """Whether the request's key may ask; refuses it, before its body is read, if not."""
        try:
            self.service.access.check("infer", self._noted.get(_AUTHORIZATION) or self._noted.get(_API_KEY))
        except RequestError as error:
            self._refuse(error.http_status, str(error), route.inference.error)
            return False
        return True

    async def _ask(self, model: ServedModel, inference: Inference, asked: Asked, reply: _Reply) -> None:
        """Answers what a person asked, in its place among the replies."""
        try:
            answers = await self.answering.ask(model, asked, inference.protocol)
            content = inference.encode_answers(model, asked, answers)
            found = success(self.server_state.default_headers, content, close=reply.close)
        except RequestError as error:
            found = failure(error.http_status, inference.error(error.http_status, str(error)), close=reply.close)
        except Exception:
            _log.exception("an answer of model %s could not be written", model.signature.name)
            body = inference.error(500, f"model '{model.signature.name}': its answer could not be written")
            found = failure(500, body, close=reply.close)
        if reply.reply is None:
            reply.reply = found
            self.flush()

    def _application_idle(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is None or (cycle.response_complete and not self.pipeline)

    def _read_without_upgrade(self, rest: bytes) -> None:
        """Reads a request again without its offer to upgrade the connection, which nobody here takes.

        The parser would take its body for the other protocol's. Java's HttpClient offers HTTP/2 with every request.
        """
        fields = b"".join(b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade")
        version = self.parser.get_http_version().encode()
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (self.parser.get_method(), self.url, version, fields)
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(head + rest)

    def _hand_over(self, *, expects: bool) -> None:
        """Lets uvicorn start this request in the ASGI application, after those of the fast lane before it."""
        if self.url[:1] != b"/" and b"://" not in self.url:  # CONNECT, and `OPTIONS *`
            self._refuse(400, "the request's target is no path")
            return
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        before = self.cycle
        if self._order and self._application_idle():
            self.cycle = cast("RequestResponseCycle", _BUSY)
        try:
            super().on_headers_complete()
        except (httptools.HttpParserError, UnicodeDecodeError):
            self.cycle = before
            self._refuse(400, "the request's target is no path")
            return
        self._handed_over = True
        if self._leaving:
            self.cycle.keep_alive = False

    def _check_size(self) -> None:
        """Refuses a request whose headers, or chunks and trailers, go on for ever."""
        if self._in_headers:
            if self._later_bytes > self.limits.max_header_bytes:
                self._refuse(431, self._long_headers())
        elif self._later_bytes > _FRAMING_FACTOR * self.limits.max_request_bytes:
            self._refuse(413, self._too_large(self._later_bytes))

    def _long_headers(self) -> str:
        return f"the headers have more than {self.limits.max_header_bytes} bytes"

    def _too_large(self, size: int) -> str:
        return str(
            PayloadTooLarge(
                f"the request has {size} bytes or more, which exceeds the maximum allowed input size of "
                f"{self.limits.max_request_bytes}"
            )
        )

    def _refuse(self, status: int, message: str, body: Callable[[int, str], bytes] = error_body) -> None:
        """Answers a request that is not read to its end, after those before it, and reads no further."""
        if self._refused:
            return
        self._refused = True
        self.receiving_since_s = None
        reply = failure(status, body(status, message), close=True)
        if self._handed_over:
            answered = self.cycle.response_complete
            if not self._withdraw():
                self.transport.close()
                return
            reply = b"" if answered else reply
        elif not self._application_idle():  # its answer to the request before ends the connection
            self.cycle.keep_alive = False
            return
        self._order.append(_Reply(reply, close=True, last=True))
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


def lane_class(service: Service, answering: Answering, limits: Limits) -> type[HttpLane]:
    """The protocol class for uvicorn, bound to one service."""
    bound = {"service": service, "answering": answering, "limits": limits}
    return type("BoundHttpLane", (HttpLane,), bound | {"small_digits": len(str(limits.max_request_bytes)) - 1})


async def sweep_connections(connections: set[Any], every_s: float = 0.5) -> None:
    """Ends late connections for as long as the task lives. One sweep for all costs less than a timer for each."""
    while True:
        await asyncio.sleep(every_s)
        now_s = time.monotonic()
        for connection in list(connections):
            connection.sweep(now_s)
