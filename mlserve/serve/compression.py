"""Compressed bodies: requests that come so, and replies that clients take so. gzip and deflate, as HTTP means them.

Unpacking stops as soon as there is more than is allowed, so a small body that holds a huge one costs no more than a
huge one would. What takes long happens off the event loop.
"""

import asyncio
import zlib
from functools import lru_cache

from mlserve.errors import InvalidRequest, PayloadTooLarge, UnsupportedContent

__all__ = ["coding_taken", "is_packed", "pack", "pack_at_once", "unpack", "unpack_at_once"]

GZIP, DEFLATE = b"gzip", b"deflate"

# Of text, a megabyte takes about 10 ms to unpack and 15 ms to pack; so much is done on the event loop.
_UNPACKED_AT_ONCE_BYTES = 256 << 10
_PACKED_AT_ONCE_BYTES = 64 << 10
# A shorter reply costs more time to pack than a network takes to send it whole.
_WORTH_PACKING_BYTES = 16 << 10
# A reply of which so much at its beginning does not shrink to the share is sent as it is: most raw tensors do not.
_SAMPLE_BYTES, _WORTH_SHARE = 4 << 10, 0.8
# More members than this have no use; each costs a little.
_MOST_MEMBERS = 1000
# So much is looked at, and made of it, at once. zlib doubles its buffer as it grows: a bomb's would be a second one.
_PIECE_BYTES, _PART_BYTES = 64 << 10, 1 << 20
_GZIP_WRAPPED, _ZLIB_WRAPPED, _BARE = 31, 15, -15


def is_packed(encoding: bytes | None) -> bool:
    """Whether a body of that content-encoding is packed. Raises UnsupportedContent for a coding not known here."""
    if encoding is None:
        return False
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return False
    if name in (GZIP, b"x-gzip", DEFLATE):
        return True
    given = encoding[:32].decode("latin-1")
    raise UnsupportedContent(f"content-encoding '{given}' is not supported; send gzip, deflate, or the body as it is")


async def unpack(body: bytes, encoding: bytes, most_bytes: int) -> bytes:
    """The body that `body` holds. Raises InvalidRequest for a bad one, PayloadTooLarge for more than `most_bytes`."""
    found = unpack_at_once(body, encoding, most_bytes)
    return await asyncio.to_thread(_unpack, body, encoding, most_bytes) if found is None else found


def unpack_at_once(body: bytes, encoding: bytes, most_bytes: int) -> bytes | None:
    """The same where it takes no longer than an event loop may be kept; None where it would."""
    if len(body) > _UNPACKED_AT_ONCE_BYTES:
        return None
    if most_bytes <= _UNPACKED_AT_ONCE_BYTES:
        return _unpack(body, encoding, most_bytes)
    try:
        return _unpack(body, encoding, _UNPACKED_AT_ONCE_BYTES)
    except PayloadTooLarge:
        return None


@lru_cache(maxsize=256)
def coding_taken(accept: bytes) -> bytes | None:
    """The coding for a client that sent the header accept-encoding `accept`; None to send the reply as it is."""
    weights = dict(_weighed(part) for part in accept.lower().split(b","))
    best = max((GZIP, DEFLATE), key=lambda coding: weights.get(coding, 0.0))
    return best if weights.get(best, 0.0) > 0 else None


async def pack(body: bytes, accept: bytes | None) -> tuple[bytes, bytes]:
    """`body`, packed if the client takes that and it is worth it, and the header lines that say so."""
    found = pack_at_once(body, accept)
    return await asyncio.to_thread(_pack, body, accept) if found is None else found


def pack_at_once(body: bytes, accept: bytes | None) -> tuple[bytes, bytes] | None:
    """The same where it takes no longer than an event loop may be kept; None where it would."""
    if accept is None or len(body) < _WORTH_PACKING_BYTES:
        return body, b""
    return _pack(body, accept) if len(body) <= _PACKED_AT_ONCE_BYTES else None


def _unpack(body: bytes, encoding: bytes, most_bytes: int) -> bytes:
    wrapping = _ZLIB_WRAPPED if encoding.strip().lower() == DEFLATE else _GZIP_WRAPPED
    # "deflate" means zlib's wrapping (RFC 9110, 8.4.1.2), but some clients send it bare.
    if wrapping == _ZLIB_WRAPPED and not _is_zlib(body):
        wrapping = _BARE
    try:
        parts, packed_bytes = _members(body, wrapping, most_bytes)
    except zlib.error as error:
        raise InvalidRequest("the body is not compressed as its content-encoding says") from error
    if packed_bytes < len(body):
        raise InvalidRequest("the compressed body goes on behind its end")
    return b"".join(parts) if len(parts) > 1 else parts[0]


def _members(body: bytes, wrapping: int, most_bytes: int) -> tuple[list[bytes], int]:
    """What is in the members of `body` (gzip may have several; RFC 1952, 2.2), and how many bytes they have there."""
    parts: list[bytes] = []
    view, position, free_bytes = memoryview(body), 0, most_bytes
    for _ in range(_MOST_MEMBERS if wrapping == _GZIP_WRAPPED else 1):
        unpacking = zlib.decompressobj(wrapping)
        while not unpacking.eof:
            piece = view[position : position + _PIECE_BYTES]
            part = unpacking.decompress(piece, min(free_bytes + 1, _PART_BYTES))
            if not piece and not part and not unpacking.eof:
                raise InvalidRequest("the compressed body ends too early")
            parts.append(part)
            free_bytes -= len(part)
            if free_bytes < 0:
                raise PayloadTooLarge(
                    f"the body has more than {most_bytes} bytes once it is unpacked, which exceeds the maximum allowed "
                    f"input size of {most_bytes}"
                )
            position += len(piece) - len(unpacking.unused_data) - len(unpacking.unconsumed_tail)
        if position == len(body):
            break
    return parts, position


def _is_zlib(body: bytes) -> bool:
    """Whether `body` begins with zlib's two bytes (RFC 1950, 2.2)."""
    return len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0


def _pack(body: bytes, accept: bytes | None) -> tuple[bytes, bytes]:
    coding = coding_taken(accept) if accept else None
    if coding is None or len(body) < _WORTH_PACKING_BYTES:
        return body, b""
    sample = body[:_SAMPLE_BYTES]
    if len(_packed(sample, coding)) > _WORTH_SHARE * len(sample):
        return body, b""
    return _packed(body, coding), b"content-encoding: %b\r\nvary: accept-encoding\r\n" % coding


def _packed(body: bytes, coding: bytes) -> bytes:
    return zlib.compress(body, 1, _GZIP_WRAPPED if coding == GZIP else _ZLIB_WRAPPED)


def _weighed(part: bytes) -> tuple[bytes, float]:
    """One item of accept-encoding and its weight (RFC 9110, 12.4.2): `gzip;q=0.5`. An unreadable weight is none."""
    coding, _, weight = part.partition(b";")
    name, _, value = weight.strip().partition(b"=")
    if name.strip() != b"q":
        return coding.strip(), 1.0
    try:
        return coding.strip(), float(value)
    except ValueError:
        return coding.strip(), 0.0
