"""HTTP/1.1 over sockets that never wait, with a parser in C: one kept-alive connection for each request in flight.

A request costs no greenlet, no timer and no header dictionary: its bytes are made once, before the run, and of the
answer's headers only those are looked at that say something here.
"""

import time
from collections.abc import Sequence
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from mlserve.bench.clients.client import Answered, Reply, Request
from mlserve.bench.clients.connection import Connection, allow_many_connections, resolve
from mlserve.bench.clients.deadlines import Deadlines
from mlserve.bench.clients.secure_connection import SecureConnection, Security, open_connection
from mlserve.bench.trust import Trust
from mlserve.runs.samples import OK

__all__ = ["HttpClient"]

_UNREADABLE = "no HTTP answer"


class HttpClient:
    """Every status but 200 is a failure.

    A connection serves one request at a time and the one that was used last serves the next, so there are as many as
    requests were ever in flight at once. Where the server closes one between two answers, its request is sent once
    more on a new one; no request is sent again on a new connection. With `trust` they are over TLS.
    """

    def __init__(
        self,
        host: str,
        port: int,
        path: str,
        requests: Sequence[Request],
        timeout_s: float,
        trust: Trust | None = None,
    ) -> None:
        allow_many_connections()
        self._security = Security(trust.context("http/1.1"), host) if trust is not None else None
        self._contents = [_written(host, port, path, request) for request in requests]
        self._addresses = resolve(host, port)
        # A dictionary keeps its order: the last of them was used last.
        self._idle: dict[_Line, None] = {}
        self._busy: Deadlines[_Line] = Deadlines(timeout_s, _give_up)

    def send(self, number: int, answered: Answered) -> None:
        line = self._idle.popitem()[0] if self._idle else _Line(self)
        self._busy.begin(line)
        line.ask(self._contents[number], answered)

    def close(self) -> None:
        for line in [*self._idle, *self._busy]:
            line.close()
        self._idle.clear()
        self._busy.close()

    def open(self, line: "_Line") -> Connection | SecureConnection:
        """A new connection for `line`."""
        return open_connection(self._addresses, line.received, line.lost, self._security)

    def answered(self, line: "_Line", *, kept: bool) -> None:
        """The request of `line` is over; `kept` says whether its connection can serve another."""
        self._busy.end(line)
        if kept:
            self._idle[line] = None

    def lost(self, line: "_Line") -> None:
        """The connection of `line` ended while it was idle."""
        del self._idle[line]


def _give_up(lines: list["_Line"]) -> None:
    for line in lines:
        line.give_up("timeout")


class _Line:
    """A connection and the request on it. The parser calls the methods whose names begin with `on_`."""

    __slots__ = (
        "_answered",
        "_client",
        "_complete",
        "_connection",
        "_content",
        "_first_byte_ns",
        "_headed",
        "_kept",
        "_measured",
        "_parser",
        "_parts",
        "_timing",
        "_used",
    )

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._content = b""
        self._answered: Answered | None = None
        self._first_byte_ns: int | None = None
        self._parts: list[bytes] = []
        self._timing = b""
        self._measured = self._headed = self._complete = self._kept = False
        self._parser: Any = None
        self._open()

    def ask(self, content: bytes, answered: Answered) -> None:
        self._content, self._answered, self._first_byte_ns = content, answered, None
        self._connection.send(content)

    def close(self) -> None:
        self._connection.close()
        self._parser = None  # it holds this line, and this line it

    def give_up(self, status: str) -> None:
        """Ends the request with `status`, and the connection with it."""
        self.close()
        self._end(Reply(status, b"", self._first_byte_ns))

    def received(self, content: bytes) -> None:
        try:
            self._parser.feed_data(content)
        except (HttpParserError, HttpParserUpgrade):
            # More than was asked for follows a whole answer, or this is no answer.
            self._kept = False
            if self._answered is not None and not self._complete:
                self.give_up(_UNREADABLE)
                return
        if self._complete:
            self._finish()
        elif self._answered is None:
            self._leave()

    def lost(self, status: str) -> None:
        """The connection has ended."""
        if self._answered is None:
            self._leave()
        elif self._used and self._first_byte_ns is None:
            self._open()
            self._connection.send(self._content)
        elif self._headed and not self._measured and self._connection.at_end:
            self._kept = False
            self._finish()
        else:
            self.give_up(status)

    def on_message_begin(self) -> None:
        if self._complete or self._answered is None:
            raise HttpParserError("more than was asked for")
        self._first_byte_ns = time.monotonic_ns()
        self._measured = self._headed = False
        self._parts.clear()
        self._timing = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        match len(name):
            case 13 if name.lower() == b"server-timing":
                self._timing = value
            case 14 | 17 if name.lower() in {b"content-length", b"transfer-encoding"}:
                self._measured = True

    def on_headers_complete(self) -> None:
        self._headed = self._parser.get_status_code() >= 200

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)

    def on_message_complete(self) -> None:
        # 100 and the like announce the answer.
        if self._parser.get_status_code() >= 200:
            self._complete = True
            self._kept = self._parser.should_keep_alive()

    def _open(self) -> None:
        self._connection = self._client.open(self)
        self._parser = HttpResponseParser(self)
        self._used = False

    def _leave(self) -> None:
        self._client.lost(self)
        self.close()

    def _finish(self) -> None:
        code = self._parser.get_status_code()
        content = b"".join(self._parts)
        status = OK if code == 200 else f"HTTP {code}"
        if not self._kept:
            self.close()
        timing = self._timing.decode("latin-1") if self._timing else ""
        self._end(Reply(status, content, self._first_byte_ns, timing))

    def _end(self, reply: Reply) -> None:
        answered, self._answered = self._answered, None
        kept, self._kept, self._complete, self._used = self._kept, False, False, True
        self._client.answered(self, kept=kept)
        assert answered is not None, "a request was asked"
        answered(reply)


def _written(host: str, port: int, path: str, request: Request) -> bytes:
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    given = {name.lower() for name, _ in request.headers}
    own = [("Host", authority), ("Content-Length", str(len(request.body)))]
    headers = [*(header for header in own if header[0].lower() not in given), *request.headers]
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + request.body
