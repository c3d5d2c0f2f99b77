"""The bytes of a whole HTTP reply, made at once: one write a request."""

from http import HTTPStatus

from mlserve.serve.protocols.dialect import JSON_FIELDS, Content

__all__ = ["failure", "success"]

_STATUS = {status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus}
_STATUS[401] += b"www-authenticate: Bearer\r\n"
_STATUS[503] += b"retry-after: 1\r\n"

_CLOSE = b"connection: close\r\n"


class _Head:
    """The status line of a success and uvicorn's default headers, which it renews once a second (the date)."""

    source: list[tuple[bytes, bytes]] | None = None
    content = b""


def success(defaults: list[tuple[bytes, bytes]], content: Content, *, close: bool) -> bytes:
    """A 200 reply."""
    if defaults is not _Head.source:
        fields = b"".join(name + b": " + value + b"\r\n" for name, value in defaults)
        _Head.source, _Head.content = defaults, _STATUS[200] + fields
    body, fields = content
    extra = _CLOSE if close else b""
    return b"%b%b%bcontent-length: %d\r\n\r\n%b" % (_Head.content, fields, extra, len(body), body)


def failure(status: int, body: bytes, *, close: bool) -> bytes:
    """An error reply; `body` is JSON."""
    extra = _CLOSE if close else b""
    return b"%b%b%bcontent-length: %d\r\n\r\n%b" % (_STATUS[status], JSON_FIELDS, extra, len(body), body)
