"""How a gRPC call ends that a worker answers itself: its status, in headers that no table remembers.

The tables between client and server belong to the server behind: only what leaves them alone may be used (RFC 7541,
6.2.3).
"""

from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import quote

from mlserve.wire.http2_frames import END_HEADERS, END_STREAM, HEADERS, frame
from mlserve.wire.http2_headers import encode_headers

__all__ = ["ANSWER_HEAD", "ending", "trailers_of"]

_HEAD = ((":status", "200"), ("content-type", "application/grpc"))

ANSWER_HEAD = encode_headers(_HEAD)
"""The headers that come before an answer's message."""

# All that is printed but "%" goes as it is (gRPC over HTTP/2, "Percent-Encoded").
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


@lru_cache(maxsize=8)
def trailers_of(more: tuple[tuple[str, str], ...] = ()) -> bytes:
    """The headers that come behind an answer's message."""
    return encode_headers((("grpc-status", "0"), *more))


def ending(
    stream: int, code: int, message: str, more: Sequence[tuple[str, str]] = (), *, answered: bool = False
) -> bytes:
    """The frame that ends a call with the status `code`. `answered`: an answer's headers have gone before."""
    status = ("grpc-status", str(code)), ("grpc-message", quote(message, safe=_PRINTABLE))
    block = encode_headers((*status, *more) if answered else (*_HEAD, *status, *more))
    return frame(HEADERS, END_STREAM | END_HEADERS, stream, block)
