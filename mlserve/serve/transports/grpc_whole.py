"""The gRPC calls that come whole: headers that are known, and one message right behind them.

Most of what headers say stands in a table that both ends keep, so they are a handful of bytes, and the same for call
after call. Only those that leave the table as it is count here: the server behind keeps one too, and must not miss a
change.
"""

import struct
from typing import NamedTuple

from hpack import HPACKError

from mlserve.serve.transports.grpc_asked import Asked
from mlserve.wire.http2_frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES,
    FRAME_HEAD,
    HEAD_BYTES,
    PADDED,
    PRIORITY,
    WINDOW_UPDATE,
    frame_start,
)
from mlserve.wire.http2_headers import HeaderReader

__all__ = ["MESSAGE_PREFIX", "Whole", "WholeCalls", "is_one_message"]

MESSAGE_PREFIX = struct.Struct(">BI")
"""What a message begins with: whether it is packed, and how long it is."""

_PREFIX_BYTES, _PRIORITY_BYTES = MESSAGE_PREFIX.size, 5
_WIDER = frame_start(WINDOW_UPDATE, 0, 4)
# Longer headers say more than a call of inference needs. To read new ones takes time, which known ones earn: a byte for
# so many. When what a connection has at its beginning is used up, its headers change too often to be worth it.
_MOST_BLOCK_BYTES, _FIRST_BYTES, _EARNED_BY = 2048, 8192, 8


class Whole(NamedTuple):
    """A call that came whole. `granted_bytes`: its client has widened the window for the answer by so much."""

    stream: int
    asked: Asked
    payload: bytes
    granted_bytes: int


class WholeCalls:
    """Those of one connection, in `found` for the caller to take; `room` is for how many more it allows."""

    def __init__(self, reader: HeaderReader[Asked | None], most_message_bytes: int) -> None:
        self._reader: HeaderReader[Asked | None] | None = reader
        self._most_bytes = most_message_bytes
        self._left_bytes: float = _FIRST_BYTES
        self.found: list[Whole] = []
        self.room = 0

    def take(self, stream: int, flags: int, data: bytes, start: int, end: int, *, is_new: bool) -> int:
        """Reads the HEADERS of `data` from `start` to `end`, and takes the call if DATA with its message is next, or
        stands behind a WINDOW_UPDATE of its own, which grpcio's clients send.

        Every HEADERS has to come by here, for the table. Returns the end of that DATA; -1 where more of it has to come,
        and the same be asked again; 0 for what is no call of ours.
        """
        asked = self._read(flags, data[start:end])
        if asked is None or not is_new or flags & END_STREAM or self.room <= 0:
            return 0
        granted_bytes = 0
        if data[end : end + HEAD_BYTES] == _WIDER + stream.to_bytes(4):
            first = end + HEAD_BYTES
            end = first + 4
            granted_bytes = int.from_bytes(data[first:end])
        if len(data) - end < HEAD_BYTES + _PREFIX_BYTES:
            return 0
        high, low, kind, flags, same = FRAME_HEAD.unpack_from(data, end)
        first = end + HEAD_BYTES
        after: int = first + (high << 8 | low)
        if kind != DATA or flags != END_STREAM or same != stream or after - first > FRAME_BYTES:
            return 0
        if not is_one_message(data, first, after, self._most_bytes):
            return 0
        if after > len(data):
            return -1
        self.room -= 1
        self.found.append(Whole(stream, asked, data[first + _PREFIX_BYTES : after], granted_bytes))
        return after

    def _read(self, flags: int, block: bytes) -> Asked | None:
        """What headers ask for. Nothing any more from the first on that are not read: the table may be another then."""
        reader = self._reader
        if reader is None:
            return None
        if flags & PRIORITY:
            block = block[_PRIORITY_BYTES:]
        if flags & PADDED or not flags & END_HEADERS or len(block) > _MOST_BLOCK_BYTES:
            self._reader = None
            return None
        try:
            asked = reader.read(block)
        except HPACKError:  # the server behind will say so
            self._reader = None
            return None
        if reader.knew:
            self._left_bytes = min(self._left_bytes + len(block) / _EARNED_BY, _FIRST_BYTES)
            return asked
        self._left_bytes -= len(block)
        if self._left_bytes <= 0:
            self._reader = None
        return None  # a new one may have changed the table


def is_one_message(data: bytes, start: int, end: int, most_bytes: int) -> bool:
    """Whether the DATA of `data` from `start` to `end` is one message, not packed, of `most_bytes` at most.

    Only the beginning need be there.
    """
    if not _PREFIX_BYTES <= end - start <= _PREFIX_BYTES + most_bytes:
        return False
    packed, message_bytes = MESSAGE_PREFIX.unpack_from(data, start)
    return packed == 0 and bool(message_bytes == end - start - _PREFIX_BYTES)
