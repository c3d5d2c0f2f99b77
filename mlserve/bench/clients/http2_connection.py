"""One HTTP/2 connection of a client (RFC 9113): many requests at once, each one message out and one answer back.

Nothing here waits, and a small request is one write. What the peer's windows hold back goes out as they open.
"""

import time
from typing import Protocol

from hpack import HPACKError

from mlserve.bench.clients.client import Answered
from mlserve.bench.clients.connection import Addresses
from mlserve.bench.clients.secure_connection import Security, open_connection
from mlserve.wire import http2_frames as http2
from mlserve.wire.http2_frames import Http2Error
from mlserve.wire.http2_headers import Fields, HeaderReader

__all__ = ["NOT_HTTP2", "Exchange", "Http2Connection", "Owner", "PreparedRequest"]

NOT_HTTP2 = "not HTTP/2"

_NO_ERROR, _PROTOCOL_ERROR, _REFUSED_STREAM, _CANCEL = 0, 1, 7, 8
_LAST_STREAM = 0x7FFF_FFFF
_TOP_UP_BYTES = 1 << 24
_WRITE_BYTES = 1 << 18
_MOST_BLOCK_BYTES = 1 << 18


class PreparedRequest:
    """A request as it goes out on any stream: cut where the stream's number belongs. Its body is not empty."""

    __slots__ = ("block", "body", "middle", "size", "start", "whole")

    def __init__(self, block: bytes, body: bytes) -> None:
        self.block, self.body, self.size = block, body, len(body)
        self.whole = max(len(block), len(body)) <= http2.FRAME_BYTES  # else it is cut into frames as it is sent
        self.start = self.middle = b""
        if self.whole:
            self.start = http2.frame_start(http2.HEADERS, http2.END_HEADERS, len(block))
            self.middle = block + http2.frame_start(http2.DATA, http2.END_STREAM, len(body))


class Exchange:
    """A request on its way, and what has come of it, for whoever is to be told with `answered`.

    `head` and `trailers` are None until they come; an answer without content has its one block in `head`. `failure`
    says why there is no whole answer: RST_STREAM's code, or a word. `number` is its stream's, 0 before it has one.
    """

    __slots__ = (
        "answered",
        "connection",
        "content",
        "credit",
        "failure",
        "first_byte_ns",
        "head",
        "number",
        "request",
        "sent_again",
        "sent_bytes",
        "trailers",
    )

    def __init__(self, request: PreparedRequest, answered: Answered) -> None:
        self.request, self.answered = request, answered
        self.connection: Http2Connection | None = None
        self.sent_again = False
        self.restart()

    def restart(self) -> None:
        """Makes it one that was never sent."""
        self.number = self.sent_bytes = self.credit = 0
        self.head: Fields | None = None
        self.trailers: Fields | None = None
        self.content: list[bytes] = []
        self.first_byte_ns: int | None = None
        self.failure: int | str | None = None


class Owner(Protocol):
    """Who opens connections. The event loop calls it; only `lost`, without a status, may come out of `begin`."""

    def ready(self, connection: "Http2Connection") -> None:
        """Requests may be sent on it."""
        ...

    def ended(self, exchange: Exchange) -> None:
        """Its answer is complete, or there will be none."""
        ...

    def refused(self, exchange: Exchange) -> None:
        """The server has not looked at it: it may be sent again."""
        ...

    def lost(self, connection: "Http2Connection", status: str) -> None:
        """It takes no more requests, for `status`; those on it end with that, too. "": the server says goodbye, or its
        streams have run out, and it ends with its last answer.
        """
        ...


class Http2Connection:
    """Connects at once. `first_stream` is the number of its first stream. `over` says that it has ended."""

    def __init__(
        self, addresses: Addresses, owner: Owner, first_stream: int = 1, security: Security | None = None
    ) -> None:
        self._owner, self._next = owner, first_stream
        self._exchanges: dict[int, Exchange] = {}
        self._bodies: dict[int, Exchange] = {}  # those whose bodies wait for a window
        self._window = self._first_window = http2.WINDOW_BYTES
        self._frame_bytes = http2.FRAME_BYTES
        self._read_bytes = 0
        self._splitter, self._headers = http2.FrameSplitter(), HeaderReader[Fields](dict)
        self._block, self._block_flags, self._block_stream = b"", 0, 0
        self._said_hello = self._heard_ack = self._leaving = self.over = False
        self.most_streams = _LAST_STREAM
        self._tcp = open_connection(addresses, self._received, self._ended, security)
        self._send = self._tcp.send
        self._send(http2.greeting())

    @property
    def is_free(self) -> bool:
        """Whether it is ready and one more request may be sent."""
        return self._heard_ack and self._said_hello and not self._leaving and len(self._exchanges) < self.most_streams

    def begin(self, exchange: Exchange) -> None:
        """Sends a request on a stream of its own. Only while `is_free`."""
        number = self._next
        self._next += 2
        exchange.connection, exchange.number = self, number
        self._exchanges[number] = exchange
        request = exchange.request
        if request.whole and request.size <= self._window and request.size <= self._first_window:
            stream = number.to_bytes(4)
            self._window -= request.size
            self._send(b"".join((request.start, stream, request.middle, stream, request.body)))
        else:
            self._send(b"".join(http2.header_frames(request.block, number)))
            self._bodies[number] = exchange
            self._send_body(exchange)
        if self._next > _LAST_STREAM:
            self._leave()

    def cancel(self, exchange: Exchange) -> None:
        """Gives a request up; its owner hears no more of it."""
        if self._forget(exchange.number) is not None:
            self._send(http2.reset(exchange.number, _CANCEL))
            self._close_if_done()

    def close(self) -> None:
        """Ends the connection; nobody hears of what was in flight."""
        self.over = True
        self._tcp.close()

    def _received(self, content: bytes) -> None:
        try:
            for kind, flags, stream, payload in self._splitter.split(content):
                if kind == http2.DATA:
                    self._take_data(flags, stream, payload)
                elif kind == http2.HEADERS and flags & http2.END_HEADERS and not self._block_stream:
                    block = payload if flags == http2.END_HEADERS else http2.header_block(flags, payload)
                    self._take_headers(flags, stream, block)
                else:
                    self._take_rare(kind, flags, stream, payload)
                if self.over:
                    return
        except (Http2Error, HPACKError):
            self._send(http2.frame(http2.GOAWAY, 0, 0, bytes(4) + _PROTOCOL_ERROR.to_bytes(4)))
            self._tcp.close()
            self._ended(NOT_HTTP2)

    def _take_data(self, flags: int, stream: int, payload: bytes) -> None:
        self._check_order(http2.DATA, stream)
        self._read_bytes += len(payload)
        if self._read_bytes >= _TOP_UP_BYTES:
            self._send(http2.window_update(self._read_bytes))
            self._read_bytes = 0
        exchange = self._exchanges.get(stream)
        if exchange is not None:
            exchange.content.append(http2.payload_of(flags, payload) if flags & http2.PADDED else payload)
            if flags & http2.END_STREAM:
                self._end(exchange)

    def _take_headers(self, flags: int, stream: int, block: bytes) -> None:
        if not self._said_hello:
            raise Http2Error("headers before the settings")
        fields = self._headers.read(block)
        exchange = self._exchanges.get(stream)
        if exchange is None:
            return
        if exchange.head is not None:
            exchange.trailers = fields
        elif not fields.get(":status", "").startswith("1"):  # else others come
            exchange.head, exchange.first_byte_ns = fields, time.monotonic_ns()
        if flags & http2.END_STREAM:
            self._end(exchange)

    def _take_rare(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self._check_order(kind, stream)
        if kind in {http2.HEADERS, http2.CONTINUATION}:
            self._take_part(kind, flags, stream, payload)
        elif kind == http2.RST_STREAM:
            code = http2.uint32(payload)
            if exchange := self._forget(stream):
                self._give_back(exchange, code)
        elif kind == http2.SETTINGS:
            self._take_settings(flags, payload)
        elif kind == http2.PING and not flags & http2.ACK:
            self._send(http2.frame(http2.PING, http2.ACK, 0, payload))
        elif kind == http2.WINDOW_UPDATE:
            self._take_window(stream, http2.uint32(payload))
        elif kind == http2.GOAWAY:
            self._take_goaway(http2.uint32(payload))
        elif kind == http2.PUSH_PROMISE:
            raise Http2Error("a push, which was not allowed")

    def _check_order(self, kind: int, stream: int) -> None:
        """The first frame are settings, and nothing comes within a block of headers."""
        if not self._said_hello and kind != http2.SETTINGS:
            raise Http2Error("no settings to begin with")
        if self._block_stream and (kind != http2.CONTINUATION or stream != self._block_stream):
            raise Http2Error("a frame within a block of headers")

    def _take_part(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """A part of a block of headers."""
        if kind == http2.HEADERS:
            self._block, self._block_flags, self._block_stream = http2.header_block(flags, payload), flags, stream
        elif not self._block_stream:
            raise Http2Error("a continuation of nothing")
        else:
            self._block += payload
        if len(self._block) > _MOST_BLOCK_BYTES:
            raise Http2Error("headers without an end")
        if flags & http2.END_HEADERS:
            self._block_stream = 0
            self._take_headers(self._block_flags, stream, self._block)

    def _take_settings(self, flags: int, payload: bytes) -> None:
        was_free = self.is_free
        if flags & http2.ACK:
            self._heard_ack = True
        else:
            self._said_hello = True
            settings = http2.read_settings(payload)
            # What is open already counts from the new size, too (RFC 9113, 6.9.2): see _send_body.
            self._first_window = settings.get(http2.INITIAL_WINDOW_SIZE, self._first_window)
            self._frame_bytes = settings.get(http2.MAX_FRAME_SIZE, self._frame_bytes)
            self.most_streams = settings.get(http2.MAX_CONCURRENT_STREAMS, self.most_streams)
            self._send(http2.frame(http2.SETTINGS, http2.ACK, 0))
            self._send_bodies()
        if self.is_free and not was_free:
            self._owner.ready(self)

    def _take_window(self, stream: int, more_bytes: int) -> None:
        if stream == 0:
            self._window += more_bytes
            self._send_bodies()
        elif exchange := self._bodies.get(stream):
            exchange.credit += more_bytes
            self._send_body(exchange)

    def _send_bodies(self) -> None:
        for exchange in list(self._bodies.values()):
            self._send_body(exchange)

    def _send_body(self, exchange: Exchange) -> None:
        """As much of its body as both windows allow now."""
        body, size, number = memoryview(exchange.request.body), exchange.request.size, exchange.number
        allowed = min(self._window, self._first_window + exchange.credit - exchange.sent_bytes)
        end = min(size, exchange.sent_bytes + max(allowed, 0))
        start = exchange.sent_bytes
        pieces: list[bytes | memoryview] = []
        waiting_bytes = 0
        while start < end:
            piece = body[start : min(end, start + self._frame_bytes)]
            start += len(piece)
            flags = http2.END_STREAM if start == size else 0
            pieces += [http2.frame_start(http2.DATA, flags, len(piece)), number.to_bytes(4), piece]
            waiting_bytes += len(piece)
            if waiting_bytes >= _WRITE_BYTES or start == end:
                self._send(b"".join(pieces))
                pieces, waiting_bytes = [], 0
        self._window -= end - exchange.sent_bytes
        exchange.sent_bytes = end
        if end == size:
            del self._bodies[number]

    def _take_goaway(self, last: int) -> None:
        self._leave()
        for exchange in [exchange for number, exchange in self._exchanges.items() if number > last]:
            self._forget(exchange.number)
            self._give_back(exchange, _REFUSED_STREAM)
        self._close_if_done()

    def _leave(self) -> None:
        """No more requests."""
        if not self._leaving:
            self._leaving = True
            self._owner.lost(self, "")

    def _end(self, exchange: Exchange) -> None:
        unsent = exchange.number in self._bodies
        self._forget(exchange.number)
        if unsent:  # answered before all was said: the rest is not wanted
            self._send(http2.reset(exchange.number, _NO_ERROR))
        self._close_if_done()
        self._owner.ended(exchange)

    def _give_back(self, exchange: Exchange, code: int) -> None:
        self._close_if_done()
        if code == _REFUSED_STREAM and not exchange.sent_again:
            exchange.restart()
            exchange.sent_again = True
            self._owner.refused(exchange)
        else:
            exchange.failure = code
            self._owner.ended(exchange)

    def _forget(self, number: int) -> Exchange | None:
        self._bodies.pop(number, None)
        exchange = self._exchanges.pop(number, None)
        if exchange is not None:
            exchange.connection = None
        return exchange

    def _close_if_done(self) -> None:
        if self._leaving and not self._exchanges:
            self.close()

    def _ended(self, status: str) -> None:
        """The TCP connection is gone."""
        self.over = True
        if not self._leaving:
            self._leaving = True
            self._owner.lost(self, status)
        exchanges, self._exchanges, self._bodies = self._exchanges, {}, {}
        for exchange in exchanges.values():
            exchange.connection = None
            exchange.failure = status
            self._owner.ended(exchange)
