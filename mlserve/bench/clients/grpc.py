"""gRPC with one message each way (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md), on gevent's event
loop without a greenlet for each request.

grpcio costs a generator under gevent ten times as much, and does not tell when an answer began.
"""

import math
import zlib
from collections.abc import Sequence

from mlserve.bench.clients.client import Answered, Reply, Request
from mlserve.bench.clients.connection import allow_many_connections, resolve
from mlserve.bench.clients.deadlines import Deadlines
from mlserve.bench.clients.http2_connection import Exchange, PreparedRequest
from mlserve.bench.clients.http2_pool import Http2Pool
from mlserve.bench.clients.secure_connection import Security
from mlserve.bench.trust import Trust
from mlserve.runs.samples import OK
from mlserve.wire.http2_headers import Fields, encode_headers

__all__ = ["GrpcClient"]

_TIMEOUT = "DEADLINE_EXCEEDED"
_STATUSES = (
    OK, "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", _TIMEOUT, "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
_STATUS_OF = {str(code): name for code, name in enumerate(_STATUSES)}
# What a stream's reset means: the protocol's section "Errors". Every other code is INTERNAL.
_STATUS_OF_RESET = {7: "UNAVAILABLE", 8: "CANCELLED", 11: "RESOURCE_EXHAUSTED", 12: "PERMISSION_DENIED"}

_BROKEN, _COMPRESSED = "broken answer", "compressed answer"
_PLAIN = b"\0"  # a message that is not compressed
_PREFIX_BYTES = 5
_MOST_UNPACKED_BYTES = 1 << 28
_GZIP = 16 + zlib.MAX_WBITS


class GrpcClient:
    """Calls `path`, with `trust` over TLS. A status other than OK is its name; of what goes wrong below, a word."""

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
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        headers = _common_headers("http" if trust is None else "https", authority, path, timeout_s)
        blocks: dict[tuple[tuple[str, str], ...], bytes] = {}
        for request in requests:
            if request.headers not in blocks:
                blocks[request.headers] = encode_headers([*headers, *_metadata(request.headers)])
        self._requests = [PreparedRequest(blocks[request.headers], _message(request.body)) for request in requests]
        self._waiting: Deadlines[Exchange] = Deadlines(timeout_s, self._give_up)
        security = Security(trust.context("h2"), host) if trust is not None else None
        self._pool = Http2Pool(resolve(host, port), self._ended, security=security)

    def send(self, number: int, answered: Answered) -> None:
        exchange = Exchange(self._requests[number], answered)
        self._waiting.begin(exchange)
        self._pool.begin(exchange)

    def close(self) -> None:
        self._pool.close()
        self._waiting.close()

    def _ended(self, exchange: Exchange) -> None:
        self._waiting.end(exchange)
        exchange.answered(_reply(exchange))

    def _give_up(self, over: list[Exchange]) -> None:
        for exchange in reversed(over):  # those that wait for a connection first: none of them shall start now
            self._pool.cancel(exchange)
            exchange.failure = _TIMEOUT
            self._ended(exchange)


def _common_headers(scheme: str, authority: str, path: str, timeout_s: float) -> list[tuple[str, str]]:
    milliseconds = math.ceil(timeout_s * 1e3)
    # A timeout has at most 8 digits.
    timeout = f"{milliseconds}m" if milliseconds < 10**8 else f"{min(math.ceil(timeout_s), 10**8 - 1)}S"
    return [
        (":method", "POST"),
        (":scheme", scheme),
        (":path", path),
        (":authority", authority),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "mlserve-bench"),
        ("grpc-timeout", timeout),
    ]


def _metadata(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, value in headers]


def _message(body: bytes) -> bytes:
    return _PLAIN + len(body).to_bytes(4) + body


def _reply(exchange: Exchange) -> Reply:
    head, trailers = exchange.head, exchange.trailers
    if exchange.failure is not None:
        return Reply(_failure(exchange.failure), b"", exchange.first_byte_ns)
    if head is None:
        return Reply(_BROKEN)
    if trailers is None:
        trailers = head
    code = trailers.get("grpc-status")
    http_status = head.get(":status", "")
    timing = trailers.get("server-timing") or head.get("server-timing", "")
    if code == "0" and http_status == "200":
        status, content = _content(b"".join(exchange.content), head)
        return Reply(status, content, exchange.first_byte_ns, timing)
    if code is None or http_status != "200":
        status = f"HTTP {http_status}" if http_status != "200" else "UNKNOWN"
    else:
        status = _STATUS_OF.get(code, "UNKNOWN")
    return Reply(status, b"", exchange.first_byte_ns, timing)


def _failure(failure: int | str) -> str:
    return failure if isinstance(failure, str) else _STATUS_OF_RESET.get(failure, "INTERNAL")


def _content(message: bytes, head: Fields) -> tuple[str, bytes]:
    """(status, the one message's content)."""
    if len(message) < _PREFIX_BYTES or int.from_bytes(message[1:_PREFIX_BYTES]) != len(message) - _PREFIX_BYTES:
        return _BROKEN, b""
    content = message[_PREFIX_BYTES:]
    if message[0] == 0:
        return OK, content
    if head.get("grpc-encoding") != "gzip":
        return _COMPRESSED, b""
    return _unpack(content)


def _unpack(packed: bytes) -> tuple[str, bytes]:
    unpacking = zlib.decompressobj(_GZIP)
    try:
        content = unpacking.decompress(packed, _MOST_UNPACKED_BYTES)
    except zlib.error:
        return _BROKEN, b""
    if unpacking.unconsumed_tail:
        return _COMPRESSED, b""
    return (OK, content) if unpacking.eof else (_BROKEN, b"")
