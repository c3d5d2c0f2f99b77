"""The frames of HTTP/2 (RFC 9113, section 4 and 6): bytes to frames and back. Pure."""

import struct
from collections.abc import Iterator

__all__ = [
    "ACK",
    "CONTINUATION",
    "DATA",
    "END_HEADERS",
    "END_STREAM",
    "FRAME_BYTES",
    "FRAME_HEAD",
    "GOAWAY",
    "HEADERS",
    "HEADER_TABLE_SIZE",
    "HEAD_BYTES",
    "INITIAL_WINDOW_SIZE",
    "MAX_CONCURRENT_STREAMS",
    "MAX_FRAME_SIZE",
    "MOST_WINDOW_BYTES",
    "PADDED",
    "PING",
    "PREFACE",
    "PRIORITY",
    "PUSH_PROMISE",
    "RST_STREAM",
    "SETTINGS",
    "WINDOW_BYTES",
    "WINDOW_UPDATE",
    "Frame",
    "FrameSplitter",
    "Http2Error",
    "frame",
    "frame_start",
    "greeting",
    "header_block",
    "header_frames",
    "payload_of",
    "read_settings",
    "reset",
    "uint32",
    "window_update",
]

Frame = tuple[int, int, int, bytes]
"""(type, flags, stream, payload). A plain tuple, because thousands are made a second."""

# Types.
DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
# Flags.
ACK = END_STREAM = 0x1
END_HEADERS, PADDED, PRIORITY = 0x4, 0x8, 0x20
# Settings.
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 3, 4, 5

FRAME_BYTES = 16_384
"""The largest payload of a frame that every peer takes, and all that we take."""

WINDOW_BYTES = 65_535
"""How much may be sent unasked, on a connection and on each stream, until the peer says otherwise."""

MOST_WINDOW_BYTES = 0x7FFF_FFFF

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client's first bytes are."""

HEAD_BYTES = 9
FRAME_HEAD = struct.Struct(">HBBBI")
"""What a frame begins with: its payload's length in two parts (256s and ones), type, flags and stream."""

_SETTING = struct.Struct(">HI")
_NUMBER = 0x7FFF_FFFF


class Http2Error(Exception):
    """The peer does not keep to the protocol."""


class FrameSplitter:
    """Cuts a stream of bytes into frames of at most `most_bytes`, however the bytes come."""

    def __init__(self, most_bytes: int = FRAME_BYTES) -> None:
        self._most_bytes = most_bytes
        self._rest = b""

    def split(self, content: bytes) -> list[Frame]:
        """The frames that `content` completes. Raises Http2Error for one that is larger."""
        if self._rest:
            content = self._rest + content
        frames: list[Frame] = []
        start, size = 0, len(content)
        while size - start >= HEAD_BYTES:
            high, low, kind, flags, stream = FRAME_HEAD.unpack_from(content, start)
            length = high << 8 | low
            if length > self._most_bytes:
                raise Http2Error(f"a frame of {length} bytes, where {self._most_bytes} are allowed")
            end = start + HEAD_BYTES + length
            if end > size:
                break
            frames.append((kind, flags, stream & _NUMBER, content[start + HEAD_BYTES : end]))
            start = end
        self._rest = content[start:]
        return frames


def frame_start(kind: int, flags: int, payload_bytes: int) -> bytes:
    """The 5 bytes of a frame that come before its stream's number."""
    return FRAME_HEAD.pack(payload_bytes >> 8, payload_bytes & 0xFF, kind, flags, 0)[:5]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One whole frame."""
    return FRAME_HEAD.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def header_frames(block: bytes, stream: int) -> Iterator[bytes]:
    """A header block that more of the stream follows: HEADERS, and CONTINUATION for what one frame does not hold."""
    for start in range(0, len(block), FRAME_BYTES):
        last = start + FRAME_BYTES >= len(block)
        kind = HEADERS if start == 0 else CONTINUATION
        yield frame(kind, END_HEADERS if last else 0, stream, block[start : start + FRAME_BYTES])


def greeting() -> bytes:
    """What a client says first. It allows no table of headers, so that the same headers are always the same bytes, and
    windows so large that no answer waits for one.
    """
    settings = (HEADER_TABLE_SIZE, 0), (ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, MOST_WINDOW_BYTES)
    payload = b"".join(_SETTING.pack(name, value) for name, value in settings)
    return PREFACE + frame(SETTINGS, 0, 0, payload) + window_update(MOST_WINDOW_BYTES - WINDOW_BYTES)


def read_settings(payload: bytes) -> dict[int, int]:
    """Setting -> value. Raises Http2Error."""
    if len(payload) % _SETTING.size:
        raise Http2Error("settings of another length")
    return dict(_SETTING.iter_unpack(payload))


def window_update(more_bytes: int) -> bytes:
    """Lets the peer send so much more on the connection."""
    return frame(WINDOW_UPDATE, 0, 0, more_bytes.to_bytes(4))


def reset(stream: int, code: int) -> bytes:
    """Gives a stream up."""
    return frame(RST_STREAM, 0, stream, code.to_bytes(4))


def payload_of(flags: int, payload: bytes) -> bytes:
    """What DATA carries, without its padding. Raises Http2Error."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Http2Error("more padding than frame")
    return payload[1 : len(payload) - payload[0]]


def header_block(flags: int, payload: bytes) -> bytes:
    """What HEADERS carries, without padding and priority. Raises Http2Error."""
    block = payload_of(flags, payload)
    return block[5:] if flags & PRIORITY else block


def uint32(payload: bytes) -> int:
    """The number that the first 4 bytes hold, without its reserved first bit. Raises Http2Error."""
    if len(payload) < 4:
        raise Http2Error("a frame too short for its number")
    return int.from_bytes(payload[:4]) & _NUMBER
