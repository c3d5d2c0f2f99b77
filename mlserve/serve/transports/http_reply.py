"""The bytes of a whole HTTP reply, made at once: one write a request."""

from http import HTTPStatus

from mlserve.serve.protocols.infer_route import JSON_BYTES, error_body

__all__ = ["failure", "success"]

_STATUS = {status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus}
_STATUS[503] += b"retry-after: 1\r\n"

_CLOSE = b"connection: close\r\n"


class _Head:
    """The status line of a success and uvicorn's default headers, which it renews once a second (the date)."""

    source: list[tuple[bytes, bytes]] | None = None
    content = b""


def success(defaults: list[tuple[bytes, bytes]], body: bytes, json_bytes: int | None, *, close: bool) -> bytes:
    """A 200 reply; `json_bytes` is how many bytes of `body` are JSON, None when all are."""
    if defaults is not _Head.source:
        fields = b"".join(name + b": " + value + b"\r\n" for name, value in defaults)
        _Head.source, _Head.content = defaults, _STATUS[200] + fields
    extra = _CLOSE if close else b""
    if json_bytes is None:
        return b"%bcontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (
            _Head.content,
            extra,
            len(body),
            body,
        )
    return b"%bcontent-type: application/octet-stream\r\n%b%b: %d\r\ncontent-length: %d\r\n\r\n%b" % (
        _Head.content,
        extra,
        JSON_BYTES,
        json_bytes,
        len(body),
        body,
    )


def failure(status: int, message: str, *, close: bool) -> bytes:
    """An error reply."""
    body = error_body(message)
    extra = _CLOSE if close else b""
    return b"%bcontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (
        _STATUS[status],
        extra,
        len(body),
        body,
    )
