"""The bytes of a whole HTTP reply, made at once: one write a request."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from math import ceil

from mlserve.errors import PayloadTooLarge
from mlserve.serve.batching.batcher import Batch
from mlserve.serve.protocols.dialect import JSON_FIELDS, Content
from mlserve.serve.settings import Limits
from mlserve.serve.transports.server_timing import SERVER_TIMING, WANTS_TIMING, server_timing

__all__ = [
    "ACCEPT_ENCODING",
    "CLOSE",
    "REQUEST_ID",
    "asked_fields",
    "failure",
    "long_headers",
    "retry_field",
    "success",
    "too_large",
]

ACCEPT_ENCODING, REQUEST_ID = b"accept-encoding", b"x-request-id"
CLOSE = b"connection: close\r\n"

# A longer identity is the client's own problem.
_LONGEST_ID_BYTES = 128

_STATUS = {status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus}
_STATUS[401] += b"www-authenticate: Bearer\r\n"
# What may succeed later, and after how many seconds where nobody knows better.
_LATER, _SOON_S = (429, 503), 1.0


class _Head:
    """The status line of a success and uvicorn's default headers, which it renews once a second (the date)."""

    source: list[tuple[bytes, bytes]] | None = None
    content = b""


def success(defaults: list[tuple[bytes, bytes]], content: Content, extra: bytes = b"") -> bytes:
    """A 200 reply. `extra` are further header lines."""
    if defaults is not _Head.source:
        fields = b"".join(name + b": " + value + b"\r\n" for name, value in defaults)
        _Head.source, _Head.content = defaults, _STATUS[200] + fields
    body, fields = content
    return b"%b%b%bcontent-length: %d\r\n\r\n%b" % (_Head.content, fields, extra, len(body), body)


def failure(status: int, body: bytes, extra: bytes = b"", retry_after_s: float | None = None) -> bytes:
    """An error reply; `body` is JSON. One that may succeed later says when."""
    extra += retry_field(status, retry_after_s)
    return b"%b%b%bcontent-length: %d\r\n\r\n%b" % (_STATUS[status], JSON_FIELDS, extra, len(body), body)


def retry_field(status: int, retry_after_s: float | None) -> bytes:
    """The header line that says when to come again, in whole seconds; empty for what will not succeed later either."""
    if status not in _LATER:
        return b""
    return b"retry-after: %d\r\n" % max(1, ceil(_SOON_S if retry_after_s is None else retry_after_s))


def asked_fields(
    headers: Mapping[bytes, bytes],
    arrived_s: float,
    batches: Sequence[Batch],
    *,
    timing: bool = False,
    parse_s: float | None = None,
    encode_s: float | None = None,
) -> bytes:
    """The header lines that a request asked for by its own: its id, and where its time went in `batches`.

    For `parse_s` and `encode_s` see `server_timing`.
    """
    identity = headers.get(REQUEST_ID, b"")
    fields = b"%b: %b\r\n" % (REQUEST_ID, identity) if 0 < len(identity) <= _LONGEST_ID_BYTES else b""
    if batches and (timing or WANTS_TIMING in headers):
        told = server_timing(arrived_s, *batches, parse_s=parse_s, encode_s=encode_s)
        fields += f"{SERVER_TIMING}: {told}\r\n".encode()
    return fields


def long_headers(limits: Limits) -> str:
    """Says that a request's headers are too long."""
    return f"the headers have more than {limits.max_header_bytes} bytes"


def too_large(size_bytes: int, limits: Limits) -> str:
    """Says that a request is too large."""
    return str(
        PayloadTooLarge(
            f"the request has {size_bytes} bytes or more, which exceeds the maximum allowed input size of "
            f"{limits.max_request_bytes}"
        )
    )
