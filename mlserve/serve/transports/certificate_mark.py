"""Tells a gRPC server behind a Unix socket which client's certificate a call came with.

What is in front of it has the TLS connection; what is behind sees bytes. So each block of headers gets one field more,
with a token for the connection that this process alone knows: no client can send another's.
"""

import secrets
from collections.abc import Iterator

__all__ = ["CERTIFICATE_FIELD", "CertificateMark", "find_certificate"]

CERTIFICATE_FIELD = "mlserve-certificate"

_PREFACE_BYTES, _HEAD_BYTES = 24, 9
_HEADERS, _CONTINUATION, _END_HEADERS = 1, 9, 4
_NEVER_INDEXED = b"\x10"

_credentials: dict[str, bytes] = {}  # token -> the credential of an open connection


def find_certificate(token: str | None) -> bytes | None:
    """The credential of the connection that `token`, the value of `CERTIFICATE_FIELD`, stands for; None for none."""
    return _credentials.get(token) if token else None


class CertificateMark:
    """Marks the calls of one HTTP/2 connection with its `credential`, from its first byte until `close`.

    A block of headers is left open, and a CONTINUATION frame with a literal field that no table remembers ends it: so
    neither lengths nor padding nor compression change (RFC 9113, 6.10; RFC 7541, 6.2.3).
    """

    def __init__(self, credential: bytes) -> None:
        self._token = secrets.token_hex(16)
        _credentials[self._token] = credential
        texts = (CERTIFICATE_FIELD, self._token)
        self._field = _NEVER_INDEXED + b"".join(len(text).to_bytes(1) + text.encode() for text in texts)
        self._left_bytes = _PREFACE_BYTES
        self._head = self._last = b""

    def close(self) -> None:
        """Forgets the connection."""
        _credentials.pop(self._token, None)

    def mark(self, data: bytes) -> bytes:
        """What is to be passed on of the next `data` of the connection."""
        return b"".join(self._pieces(memoryview(data)))

    def _pieces(self, data: memoryview) -> Iterator[bytes | memoryview]:
        while data:
            if self._left_bytes:
                piece, data = data[: self._left_bytes], data[self._left_bytes :]
                self._left_bytes -= len(piece)
                yield piece
            else:
                missing = _HEAD_BYTES - len(self._head)
                self._head += data[:missing]
                data = data[missing:]
                if len(self._head) < _HEAD_BYTES:
                    return
                yield self._open(self._head)
                self._head = b""
            if not self._left_bytes and self._last:
                yield self._last
                self._last = b""

    def _open(self, head: bytes) -> bytes:
        """The head of a frame; one that would end a block of headers does not."""
        self._left_bytes = int.from_bytes(head[:3])
        kind, flags, stream = head[3], head[4], head[5:]
        if kind not in (_HEADERS, _CONTINUATION) or not flags & _END_HEADERS:
            return head
        self._last = b"".join((len(self._field).to_bytes(3), bytes((_CONTINUATION, _END_HEADERS)), stream, self._field))
        return b"".join((head[:4], bytes((flags ^ _END_HEADERS,)), stream))
