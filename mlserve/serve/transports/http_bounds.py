"""How much of one HTTP request is taken: of its headers, its body, and what stands between the pieces of a body."""

from collections.abc import Callable
from typing import Any

from mlserve.serve.protocols.dialect import error_body
from mlserve.serve.service import Service
from mlserve.serve.transports.http_reply import long_headers, too_large
from mlserve.serve.transports.http_replying import ReplyingProtocol
from mlserve.serve.transports.receiving import Receiving

__all__ = ["BoundedProtocol"]

# What chunk headers may add to a body, beside what one of them may have alone.
_FRAMING_FACTOR = 8


class BoundedProtocol(ReplyingProtocol):
    """One connection; the subclass keeps the counts, and asks whether they are within bounds."""

    service: Service
    receiving: Receiving
    url: bytes
    noted: dict[bytes, bytes]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Of the reads since the request began: the one it began in, where that holds the end of another, and the rest.
        self._first_bytes, self._later_bytes = 0, 0
        self._told_bytes = 0  # those of `_later_bytes` up to the read that last brought something of the body
        self._body: bytes | bytearray = b""
        self._body_bytes = self._counted_bytes = 0

    def connection_lost(self, exc: Exception | None) -> None:
        self._uncount()
        super().connection_lost(exc)

    def _refuse(self, status: int, message: str, body: Callable[[int, str], bytes] = error_body) -> None:
        super()._refuse(status, message, body)
        self._body = b""
        self._uncount()

    def _head_fits(self) -> bool:
        """Whether the head that is complete keeps to the limits, and the body that it tells of; refuses it if not."""
        limits = self.limits
        if self._first_bytes + self._later_bytes > limits.max_header_bytes:
            header_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if header_bytes > limits.max_header_bytes:
                self._refuse(431, long_headers(limits))
                return False
        if len(self.headers) > limits.max_headers:
            self._refuse(431, f"there are {len(self.headers)} headers, where {limits.max_headers} are allowed")
            return False
        length = self.noted.get(b"content-length", b"0") if self.noted else b"0"
        if length.isdigit() and int(length) > limits.max_request_bytes:
            self._refuse(413, too_large(int(length), limits))
            return False
        return True

    def _check_size(self) -> None:
        """Refuses a request whose headers, or chunks and trailers, go on for ever."""
        if self._in_headers:
            if self._later_bytes > self.limits.max_header_bytes:
                self._refuse(431, long_headers(self.limits))
        elif self._later_bytes - self._told_bytes > self.limits.max_header_bytes:
            self._refuse(413, "the body's trailers, or what stands beside a chunk's size, have no end")
        elif self._later_bytes > _FRAMING_FACTOR * self.limits.max_request_bytes:
            self._refuse(413, too_large(self._later_bytes, self.limits))

    def _count(self, more_bytes: int) -> bool:
        """Whether the worker may hold so much more of a body that came in several reads."""
        if self.service.short_of_memory or not self.receiving.take(more_bytes):
            return False
        self._counted_bytes += more_bytes
        return True

    def _uncount(self) -> None:
        self.receiving.release(self._counted_bytes)
        self._counted_bytes = 0
