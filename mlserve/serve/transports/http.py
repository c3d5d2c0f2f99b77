"""HTTP: uvicorn's protocol class with a fast lane for inference in front of the ASGI application.

Per-request framework objects (scope, task, receive, send, header dictionaries) cost more than a small model does, so a
request whose path and method name a served model never gets them: its bytes are gathered, decoded, put into the event
loop's turn, and answered by one write. Everything else goes on to the application, unchanged.

Deadlines and size caps live here, for both lanes, because ASGI middleware cannot see a slow sender.
"""

import asyncio
import logging
import time
from typing import Any, cast

import httptools

from mlserve.errors import Forbidden, RequestError, TooManyRequests
from mlserve.serve.answering import Answering
from mlserve.serve.browsers import ORIGIN, BrowserGuard
from mlserve.serve.compression import is_packed, unpack_at_once
from mlserve.serve.identities import certificate_credential
from mlserve.serve.protocols.dialect import ENCODING, JSON_BYTES, Headers, Inference, InferRoute
from mlserve.serve.service import ServedModel, Service
from mlserve.serve.settings import Limits
from mlserve.serve.tasks.task import Asked
from mlserve.serve.transports.certificate_mark import CERTIFICATE_FIELD
from mlserve.serve.transports.http_bounds import BoundedProtocol
from mlserve.serve.transports.http_heads import Head, Heads
from mlserve.serve.transports.http_reply import (
    ACCEPT_ENCODING,
    CLOSE,
    REQUEST_ID,
    too_large,
)
from mlserve.serve.transports.http_replying import MOST_UNANSWERED
from mlserve.serve.transports.http_slow import error_reply, reply
from mlserve.serve.transports.http_ticket import BUSY, HALF_CLOSED, HttpTicket, Place, drop_queued
from mlserve.serve.transports.patience import EXPECTED_WITHIN
from mlserve.serve.transports.receiving import Receiving
from mlserve.serve.transports.room import check_room
from mlserve.serve.transports.server_timing import WANTS_TIMING

__all__ = ["HttpLane", "lane_class"]

_AUTHORIZATION, _API_KEY = b"authorization", b"x-api-key"
_NOTED = frozenset(
    (
        b"expect", b"content-length", b"upgrade", ENCODING, JSON_BYTES, ACCEPT_ENCODING,
        REQUEST_ID, WANTS_TIMING, ORIGIN, EXPECTED_WITHIN,
    )
)  # fmt: skip
# What belongs to one request, so that its head will not come again.
_PASSING = frozenset((b"expect", b"upgrade", REQUEST_ID))

_log = logging.getLogger("mlserve.serve")


class HttpLane(BoundedProtocol):
    """One connection. `lane_class` makes the subclass that knows its service."""

    service: Service
    answering: Answering
    small_digits: int  # a content-length of so many cannot be too large
    names_noted: frozenset[bytes]  # the headers that are looked at
    heads: Heads
    guard: BrowserGuard
    infers: bool  # whether this port answers inference

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Of the request that is being received; the read that it began in may hold the end of another, too.
        self._route: InferRoute | None = None
        self._catalog = self.service.catalog
        self._upgrading = False
        self.noted: dict[bytes, bytes] = {}
        self._credential: bytes | None = None
        self._certificate: bytes | None = None  # what the connection shows for all that comes over it
        self._begins, self._whole, self._read = True, False, b""
        self._read_bytes = 0

    # asyncio and httptools call these.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        self._certificate = certificate_credential(transport)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        self._begins = self.receiving_since_s is None
        if self._begins and self._is_known(data):
            return
        self._read_bytes, self._read, self._whole = len(data), data, False
        self._later_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._refused:
                self._read_without_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserCallbackError:
            self._fail()
        except httptools.HttpParserError:
            self._refuse(400, "the request is not HTTP/1.1")
        self._read = b""
        if self.receiving_since_s is not None:
            self._check_size()

    def on_message_begin(self) -> None:
        if self._refused:
            return  # what came behind it in the same read is nobody's
        self.receiving_since_s = time.monotonic()
        self._in_headers = True
        if self._begins:  # with the read's first byte: all that was read is this request's
            self._begins, self._whole = False, True
            self._first_bytes, self._later_bytes = 0, self._read_bytes
        else:
            self._first_bytes, self._later_bytes = self._read_bytes, 0
        self._route, self._handed_over, self._upgrading = None, False, False
        self._body, self._body_bytes = b"", 0
        self.url = b""
        self.headers, self.noted, self._credential = [], {}, None  # those before may be in use

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_headers:
            return  # a trailer, which nobody here reads
        name = name.lower()
        self.headers.append((name, value))
        if name == _AUTHORIZATION or (name == _API_KEY and self._credential is None):
            self._credential = value
        elif name in self.names_noted and (name != b"content-length" or len(value) > self.small_digits):
            self.noted[name] = value

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._told_bytes = self._later_bytes
        if self._refused or not self._head_fits():
            return
        expects = False
        if self.noted:
            if b"upgrade" in self.noted and self.parser.should_upgrade():
                self._upgrading = True
                return
            expects = self.noted.get(b"expect", b"").lower() == b"100-continue"
        # Nearly every client begins with the same field of `host` each time, and has no `origin`.
        if (not self.headers or self.headers[0] not in self.guard.passed or ORIGIN in self.noted) and not self._meant():
            return
        self._catalog = self.service.catalog
        route = self._catalog.routes.get(self.url) if self.infers else None
        if route is not None and self.parser.get_method() == b"POST" and self._application_idle():
            if not self.service.access.open:
                route = self._allowed(route)
                if route is None:
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
        self._told_bytes = self._later_bytes
        if self._body_bytes > self.limits.max_request_bytes:
            self._refuse(413, too_large(self._body_bytes, self.limits))
        elif self._body_bytes > len(body) and not self._count(len(body)):
            self._refuse(503, "the server is receiving too much at once; try again later")
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
        if self._counted_bytes:
            self._uncount()
        route = self._route
        if route is None:
            self._handed_over = False
            super().on_message_complete()
            return
        close = not self.parser.should_keep_alive() or self.parser.get_http_version() != "1.1"
        body = bytes(self._body)
        self._body = b""  # an idle connection shall not hold on to it
        if self._whole and not close:
            self.heads.keep(self._read, Head(self.url, self.headers, self.noted, len(body), self._credential))
        self._infer(route, body, close=close)

    def _is_known(self, data: bytes) -> bool:
        """Answers a request whose head has been read before, byte for byte; the parser does not see it."""
        end = data.find(b"\r\n\r\n") + 4
        head = self.heads.find(data[:end])
        if head is None or len(data) - end != head.body_bytes or not self._application_idle():
            return False
        self._catalog = self.service.catalog
        route = self._catalog.routes.get(head.url)
        if route is None:
            return False
        self.headers, self.noted, self._credential = head.headers, head.noted, head.credential
        try:
            allowed = route if self.service.access.open else self._allowed(route)
            if allowed is not None:
                self._infer(allowed, data[end:], close=False)
        except Exception:
            self._fail()
        return True

    def _infer(self, route: InferRoute, body: bytes, *, close: bool) -> None:
        """Lets a complete request run, or answers at once why not."""
        model, inference, noted, service = route.model, route.inference, self.noted, self.service
        close = close or service.leaving
        headers: Headers = dict(self.headers) if inference.all_headers else noted
        began_s = time.perf_counter() if noted and WANTS_TIMING in noted else None
        try:
            service.check_serving()
            if self._catalog is not service.catalog:  # it changed while the body came
                model = route.find_again()
            if model.batcher.queues:
                check_room(model.batcher, body)
            if noted and is_packed(encoding := noted.get(ENCODING)) and encoding:
                unpacked = unpack_at_once(body, encoding, self.limits.max_request_bytes)
                if unpacked is None:
                    self._answer_later(model, inference, body, headers, close=close)
                    return
                body = unpacked
            request = inference.decode(body, model, headers)
        except RequestError as error:
            model.meter.failed(inference.protocol, error)
            self._order.append(Place(error_reply(error, inference, noted, CLOSE if close else b""), close=close))
            self.flush()
            return
        if isinstance(request, Asked):
            self._answer_later(model, inference, request, headers, close=close)
            return
        ticket = HttpTicket(self, model, inference, request, close=close, began_s=began_s)
        self._order.append(ticket)
        if len(self._order) >= MOST_UNANSWERED:
            self._hold()
        self.answering.turn.add(model.batcher, ticket)

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn never keeps the connection, asyncio lets us
        """Keeps the way back open for a client that sends no more but waits for its answers."""
        if self.scheme == "https":  # a TLS connection has no half that stays
            return False
        waits = self.receiving_since_s is None and bool(self._order or not self._application_idle())
        if waits:
            drop_queued(self._order, HALF_CLOSED)
            if not self._application_idle() and self.cycle is not cast("Any", BUSY):
                self.cycle.message_event.set()  # who computes an answer there may look whether anybody waits for it
            self.shutdown()
        return waits

    def _meant(self) -> bool:
        """Whether a browser may have been meant to send the request; refuses it if not."""
        try:
            self.guard.check(self.headers)
        except Forbidden as error:
            self._refuse(error.http_status, str(error))
            return False
        return True

    def _allowed(self, route: InferRoute) -> InferRoute | None:
        """`route` where the request's key may ask; None where it may not, and is refused before its body is read.

        A key that has asked too much is told so in an answer of its own, and keeps its connection.
        """
        try:
            self.service.access.check("infer", self._credential or self._certificate)
        except TooManyRequests as error:
            return route.refusing(error)
        except RequestError as error:
            self._refuse(error.http_status, str(error), route.inference.error)
            return None
        return route

    def _answer_later(
        self, model: ServedModel, inference: Inference, wanted: Asked | bytes, headers: Headers, *, close: bool
    ) -> None:
        """Answers what takes its time, a person's question or a packed body, in its place among the replies."""
        place = Place(None, close=close)
        self._order.append(place)
        if len(self._order) >= MOST_UNANSWERED:
            self._hold()
        making = reply(
            self.answering, model, inference, wanted, headers, self.limits.max_request_bytes, self.default_headers,
            CLOSE if close else b"",
        )  # fmt: skip
        place.task = self.loop.create_task(self._fill(place, making))

    def _fail(self) -> None:
        """Answers that the exception being handled is a bug of ours."""
        _log.exception("a request could not be handled")
        self._refuse(500, "the server made a mistake; its log says which")

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
        # After a CONNECT, even of a path, the parser takes all that follows for another protocol's.
        if self.parser.get_method() == b"CONNECT" or (self.url[:1] != b"/" and b"://" not in self.url):
            self._refuse(400, "the request's target is no path")
            return
        if len(self.pipeline) >= MOST_UNANSWERED:
            self._refuse(503, f"{MOST_UNANSWERED} requests of this connection wait already; read their answers first")
            return
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        cast("dict[str, Any]", self.scope)[CERTIFICATE_FIELD] = self._certificate
        self.headers.extend(headers)
        before = self.cycle
        if self._order and self._application_idle():
            self.cycle = cast("Any", BUSY)
        try:
            super().on_headers_complete()
        except (httptools.HttpParserError, UnicodeDecodeError):
            self.cycle = before
            self._refuse(400, "the request's target is no path")
            return
        self._handed_over = True
        if self._leaving or self.service.leaving:
            self.cycle.keep_alive = False


def lane_class(
    service: Service,
    answering: Answering,
    limits: Limits,
    also_noted: frozenset[bytes] = frozenset(),
    *,
    guard: BrowserGuard | None = None,
    receiving: Receiving | None = None,
    infers: bool = True,
) -> type[HttpLane]:
    """The protocol class for uvicorn, bound to one service.

    `also_noted` names headers for the tickets to carry. `guard` says for which hosts and from which sites requests may
    be, by default any host and no other site. `receiving` is what the worker's connections count in together.
    A port that is not to answer inference says so by `infers`.
    """
    bound = {
        "infers": infers,
        "guard": guard or BrowserGuard("0.0.0.0", open_to_all=False),  # noqa: S104  # nothing is bound here
        "receiving": receiving or Receiving(limits.max_receiving_bytes),
        "service": service,
        "answering": answering,
        "limits": limits,
        "names_noted": _NOTED | also_noted,
        "heads": Heads(_PASSING | also_noted),
        "small_digits": len(str(limits.max_request_bytes)) - 1,
    }
    return type("BoundHttpLane", (HttpLane,), bound)
