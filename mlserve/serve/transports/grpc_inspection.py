"""What a gRPC client sends, looked through frame by frame: how large its messages are, as they come and unpacked.

A message has five bytes before it, whether it is packed and how long it is (gRPC over HTTP/2,
"Length-Prefixed-Message"), so its size is known before any of it is kept; and a packed one is unpacked here, into
nothing, to know what it holds. Headers are not read: they are the business of the server behind. Pure: bytes in,
bytes out; the caller brings the time.
"""

import struct
import zlib
from typing import NamedTuple

from mlserve.serve.transports.receiving import Receiving

__all__ = ["FRAME_BYTES", "Abuse", "Inspection", "Refusal", "frame"]

FRAME_BYTES = 16_384
"""The largest payload of a frame: the server behind allows no more."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PING = 0, 1, 2, 3, 4, 6
_END_STREAM, _PADDED = 0x1, 0x8
_FRAME, _PREFIX = struct.Struct(">HBBBI"), struct.Struct(">BI")
_HEAD_BYTES, _PREFIX_BYTES = 9, 5
# deflate makes at most so many bytes of one (zlib's own documentation): below that nothing need be unpacked to know.
_MOST_RATIO = 1032
# zlib finds out itself whether it is gzip or zlib that it unpacks.
_EITHER_WRAPPING = 47
# Of so many refused calls the rest is waited for. A client stops sending it soon after it hears.
_MOST_REFUSED = 1024
# Frames that ask for work and carry no request. So many may come in a second.
_MOST_IDLE_FRAMES = 1000

_INVALID_ARGUMENT, _DEADLINE_EXCEEDED, _RESOURCE_EXHAUSTED = 3, 4, 8


class Abuse(Exception):
    """The client breaks the protocol, or wears the server out by keeping to it: its connection ends."""


class Refusal(NamedTuple):
    """A call that ends here. `code` is a gRPC status. `answered`: the server behind may have begun an answer."""

    stream: int
    code: int
    message: str
    answered: bool


class _Call:
    """A call whose messages do not come in one frame each."""

    __slots__ = ("began_s", "is_first", "left_bytes", "prefix", "taken_bytes", "unpacked_bytes", "unpacking")

    def __init__(self, now_s: float) -> None:
        self.prefix = b""
        self.left_bytes = self.taken_bytes = self.unpacked_bytes = 0
        self.began_s: float | None = now_s
        self.is_first = True
        self.unpacking: zlib._Decompress | None = None


class Inspection:
    """One connection's. `refusals` are those that `read` and `look_at_clock` have found, for the caller to take."""

    def __init__(self, most_message_bytes: int, receiving: Receiving, now_s: float) -> None:
        self._most_bytes, self._receiving = most_message_bytes, receiving
        self._rest = b""
        self._since_s = now_s  # when what is not complete began
        self._greeted = False
        self._calls: dict[int, _Call] = {}
        self._refused: dict[int, None] = {}  # in the order they were refused
        self._idle_frames, self._second_s = 0, now_s
        self.refusals: list[Refusal] = []
        self.dropped_bytes = 0

    def read(self, data: bytes, now_s: float) -> bytes:
        """What of `data` goes on to the server behind: whole frames. Raises Abuse.

        `dropped_bytes` grows by those of DATA that do not go on: nobody else will make room for more of them.
        """
        if self._rest:
            data = self._rest + data
        else:
            self._since_s = now_s
        size, position, kept = len(data), 0, 0
        if not self._greeted:
            self._greeted = _is_greeting(data)
            position = len(_PREFACE) if self._greeted else size
        pieces: list[bytes] = []
        while size - position >= _HEAD_BYTES:
            high, low, kind, flags, stream = _FRAME.unpack_from(data, position)
            length = high << 8 | low
            if length > FRAME_BYTES:
                raise Abuse(f"a frame of {length} bytes, where {FRAME_BYTES} are allowed")
            end = position + _HEAD_BYTES + length
            if end > size:
                break
            if kind != _DATA:
                self._note(kind, flags, stream, now_s)
            elif not (
                (flags == _END_STREAM and stream not in self._calls and self._is_whole(data, position, length))
                or self._goes_on(stream, flags, data[position + _HEAD_BYTES : end], now_s)
            ):
                pieces.append(data[kept:position])
                kept = end
                self.dropped_bytes += length
            position = end
        if not self._greeted:
            position = 0
        elif position:
            self._since_s = now_s
        self._rest = data[position:]
        pieces.append(data[kept:position])
        return b"".join(pieces) if kept else pieces[0]

    def look_at_clock(self, now_s: float, head_s: float, message_s: float) -> None:
        """Refuses the messages that began more than `message_s` ago. Raises Abuse for a frame begun `head_s` ago."""
        if (self._rest or not self._greeted) and now_s - self._since_s > head_s:
            raise Abuse(f"a frame was not complete after {head_s:g} s")
        late = [
            stream
            for stream, call in self._calls.items()
            if call.began_s is not None and now_s - call.began_s > message_s
        ]
        for stream in late:
            self._refuse(stream, _DEADLINE_EXCEEDED, f"the message was not complete after {message_s:g} s")

    def close(self) -> None:
        """Gives back what was counted."""
        for stream in list(self._calls):
            self._forget(stream)

    def _note(self, kind: int, flags: int, stream: int, now_s: float) -> None:
        """Looks at a frame that is not DATA."""
        if kind in (_PING, _SETTINGS, _PRIORITY):
            self._count_idle(now_s)
        elif kind == _RST_STREAM or (kind == _HEADERS and flags & _END_STREAM):
            self._forget(stream)

    def _is_whole(self, data: bytes, position: int, length: int) -> bool:
        """Whether a call's only DATA is one plain message, which nearly every request is."""
        if length < _PREFIX_BYTES or length - _PREFIX_BYTES > self._most_bytes:
            return False
        packed, message_bytes = _PREFIX.unpack_from(data, position + _HEAD_BYTES)
        return packed == 0 and message_bytes == length - _PREFIX_BYTES and not self._refused

    def _goes_on(self, stream: int, flags: int, payload: bytes, now_s: float) -> bool:
        """Whether a frame of DATA may go on; a call that is refused by it is in `refusals` then."""
        if flags & _PADDED:
            padding = payload[0] if payload else 0
            payload = payload[1 : len(payload) - padding]
        if not payload and not flags & _END_STREAM:
            self._count_idle(now_s)
        if stream not in self._refused:
            call = self._calls.get(stream)
            if call is None:
                call = self._calls[stream] = _Call(now_s)
            self._read_messages(stream, call, memoryview(payload), now_s)
        goes_on = stream not in self._refused
        if flags & _END_STREAM:
            self._forget(stream)
        return goes_on

    def _read_messages(self, stream: int, call: _Call, view: memoryview, now_s: float) -> None:
        """Follows a call's messages through what came of them, until one is refused."""
        while view and stream not in self._refused:
            if call.left_bytes == 0:
                view = self._begin(stream, call, view, now_s)
                continue
            piece = view[: call.left_bytes]
            view = view[len(piece) :]
            call.left_bytes -= len(piece)
            self._read_piece(stream, call, piece)
            if call.left_bytes == 0:
                self._end_message(call)

    def _begin(self, stream: int, call: _Call, view: memoryview, now_s: float) -> memoryview:
        """Reads what is there of a message's five bytes; returns what follows."""
        if not call.prefix:
            call.began_s = now_s
        wanted = _PREFIX_BYTES - len(call.prefix)
        call.prefix += bytes(view[:wanted])
        if len(call.prefix) < _PREFIX_BYTES:
            return view[wanted:]
        packed, message_bytes = _PREFIX.unpack(call.prefix)
        call.prefix, call.left_bytes = b"", message_bytes
        if message_bytes > self._most_bytes:
            self._refuse(
                stream,
                _RESOURCE_EXHAUSTED,
                f"the message has {message_bytes} bytes, which exceeds the maximum allowed input size of "
                f"{self._most_bytes}",
            )
        elif packed and message_bytes * _MOST_RATIO > self._most_bytes:
            call.unpacking, call.unpacked_bytes = zlib.decompressobj(_EITHER_WRAPPING), 0
        if message_bytes == 0:
            self._end_message(call)
        return view[wanted:]

    def _read_piece(self, stream: int, call: _Call, piece: memoryview) -> None:
        if not self._receiving.take(len(piece)):
            self._refuse(stream, _RESOURCE_EXHAUSTED, "the server is receiving too much at once; try again later")
            return
        call.taken_bytes += len(piece)
        if call.unpacking is None:
            return
        try:
            room_bytes = self._most_bytes - call.unpacked_bytes
            call.unpacked_bytes += len(call.unpacking.decompress(piece, room_bytes + 1))
        except zlib.error:
            self._refuse(stream, _INVALID_ARGUMENT, "the message is not compressed as its grpc-encoding says")
            return
        if call.unpacked_bytes > self._most_bytes:
            self._refuse(
                stream,
                _RESOURCE_EXHAUSTED,
                f"the message has more than {self._most_bytes} bytes once it is unpacked, which exceeds the maximum "
                f"allowed input size of {self._most_bytes}",
            )
        elif call.unpacking.unused_data:
            self._refuse(stream, _INVALID_ARGUMENT, "the compressed message goes on behind its end")

    def _end_message(self, call: _Call) -> None:
        self._receiving.release(call.taken_bytes)
        call.taken_bytes, call.unpacking, call.is_first, call.began_s = 0, None, False, None

    def _refuse(self, stream: int, code: int, message: str) -> None:
        call = self._calls[stream]
        self._forget(stream)
        self._refused[stream] = None
        if len(self._refused) > _MOST_REFUSED:
            del self._refused[next(iter(self._refused))]
        self.refusals.append(Refusal(stream, code, message, not call.is_first))

    def _forget(self, stream: int) -> None:
        call = self._calls.pop(stream, None)
        if call is not None:
            self._receiving.release(call.taken_bytes)
        self._refused.pop(stream, None)

    def _count_idle(self, now_s: float) -> None:
        if now_s - self._second_s >= 1:
            self._idle_frames, self._second_s = 0, now_s
        self._idle_frames += 1
        if self._idle_frames > _MOST_IDLE_FRAMES:
            raise Abuse(f"more than {_MOST_IDLE_FRAMES} frames in a second that carry no request")


def _is_greeting(data: bytes) -> bool:
    """Whether a client's first word is complete. Raises Abuse for another one."""
    if not _PREFACE.startswith(data[: len(_PREFACE)]):
        raise Abuse("this is not HTTP/2")
    return len(data) >= len(_PREFACE)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One whole frame (RFC 9113, 4.1)."""
    return _FRAME.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload
