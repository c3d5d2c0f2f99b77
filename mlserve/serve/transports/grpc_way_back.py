"""The way back to a gRPC client: the frames of the server behind, answers of the worker's own between them.

What a client's windows allow is one account for the connection, and who writes on it must be one. So the server behind
is told of an endless window, and what it sends waits here for the real one. What is no part of an answer never waits:
clients look by it whether the server lives, and may have to hear it before they let more come.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple, cast

from mlserve.serve.transports.grpc_ending import ANSWER_HEAD
from mlserve.serve.transports.grpc_inspection import Abuse, Inspection
from mlserve.wire.http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES,
    FRAME_HEAD,
    HEAD_BYTES,
    HEADERS,
    MOST_WINDOW_BYTES,
    PADDED,
    SETTINGS,
    WINDOW_BYTES,
    WINDOW_UPDATE,
    frame,
    frame_start,
    window_update,
)

__all__ = ["WayBack"]

# The server behind gets back what it has sent of its endless window.
_TOP_UP_BYTES = 1 << 30
# Beyond so much that waits for the client's window, nothing more is read from the server behind.
_MOST_QUEUED_BYTES = 1 << 20
_HEAD_START = frame_start(HEADERS, END_HEADERS, len(ANSWER_HEAD))


class _Answer:
    """What is left of an answer of our own whose stream's window is used up."""

    __slots__ = ("end", "rest", "window_bytes")

    def __init__(self, rest: bytes, end: bytes, window_bytes: int) -> None:
        self.rest, self.end, self.window_bytes = memoryview(rest), end, window_bytes


class _Waiting(NamedTuple):
    """A frame, or headers in several; `own`: not of the server behind."""

    stream: int
    data: bytes
    own: bool


class WayBack(asyncio.Protocol):
    """Of one connection. What comes from the server behind is noted in its `inspection`.

    `fill(full=...)` hears whether the server behind takes no more for now.
    """

    def __init__(self, client: asyncio.Transport, inspection: Inspection, fill: Callable[..., None]) -> None:
        self._client, self._inspection, self._fill = client, inspection, fill
        self._rest = b""  # of a frame, or of headers in several, that has come in part
        self._window_bytes = self._first_bytes = WINDOW_BYTES  # the connection's; a stream's at its beginning
        self._queue: deque[_Waiting] = deque()  # frames that wait for the connection's window
        self._queued = Counter[int]()  # how many of them each stream has
        self._given_up: set[int] = set()  # streams whose frames in the queue are not to be sent
        self._queued_bytes = self._unsent_bytes = self._passed_bytes = 0
        self._answers: dict[int, _Answer] = {}
        self._settings: deque[int] = deque()  # windows of streams, as told in settings that are not acknowledged yet
        self._acknowledged = 0  # of those settings, and yet to be taken up
        self._is_full = self._is_held = self._has_ended = False
        self.may_begin = False

    # asyncio calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # Behind what a client sends may be the word that lets answers come, which is to be read.
        self._transport.set_write_buffer_limits(high=_MOST_QUEUED_BYTES)

    def data_received(self, data: bytes) -> None:
        if not self._client.is_closing():
            self._pass(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._has_ended = True
        self._close_if_done()

    def pause_writing(self) -> None:
        self._fill(full=True)

    def resume_writing(self) -> None:
        self._fill(full=False)

    # The client's side of the connection calls these.

    @property
    def held(self) -> int:
        """Streams of which something waits for windows."""
        return len(self._answers) + len(self._queued)

    @property
    def held_bytes(self) -> int:
        """What waits for windows."""
        return self._queued_bytes + self._unsent_bytes

    def open_wide(self) -> None:
        """Tells the server behind, once the client has greeted it, of its endless window."""
        self._transport.write(window_update(MOST_WINDOW_BYTES - WINDOW_BYTES))

    def be_full(self, *, full: bool) -> None:
        """Takes nothing more from the server behind while the client's buffer is `full`."""
        self._is_full = full
        self._choose()

    def put_in(self, frames: bytes) -> None:
        """Sends `frames` to the client that are no part of an answer that waits."""
        if not self._client.is_closing():
            self._client.write(frames)

    def answer(self, stream: int, payload: bytes, trailers: bytes, granted_bytes: int) -> None:
        """Answers a call with one message. `granted_bytes`: so much its stream's window was widened by."""
        number, size = stream.to_bytes(4), len(payload) + 5
        message = b"\0" + len(payload).to_bytes(4) + payload
        head = _HEAD_START + number + ANSWER_HEAD
        end = frame(HEADERS, END_HEADERS | END_STREAM, stream, trailers)
        stream_bytes = self._first_bytes + granted_bytes
        if size <= FRAME_BYTES and size <= self._window_bytes and size <= stream_bytes and not self._queue:
            self._window_bytes -= size
            self.put_in(b"".join((head, frame_start(DATA, 0, size), number, message, end)))
        else:
            self.put_in(head)
            self._unsent_bytes += size
            self._answers[stream] = answer = _Answer(message, end, stream_bytes)
            self._go_on(stream, answer)

    def forget(self, stream: int) -> None:
        """Sends no more of the answer to a call that is given up."""
        answer = self._answers.pop(stream, None)
        if answer is not None:
            self._unsent_bytes -= len(answer.rest)
        if stream in self._queued:
            self._given_up.add(stream)
            if self._queue[0].stream == stream:
                self._send_queue()

    def widen(self, stream: int, more_bytes: int) -> None:
        """The client lets so much more come: on the connection (0), or on the stream of an answer that waits. Raises
        Abuse.
        """
        if not more_bytes or (stream == 0 and self._window_bytes + more_bytes > MOST_WINDOW_BYTES):
            raise Abuse(f"a window was widened by {more_bytes} bytes")
        if stream == 0:
            self._window_bytes += more_bytes
            if self._queue:
                self._send_queue()
        elif (answer := self._answers.get(stream)) is not None:
            answer.window_bytes += more_bytes
            self._go_on(stream, answer)

    def settle(self, first_bytes: int) -> None:
        """The client has sent settings; by them a stream's window begins at so much, or as before for -1.

        They hold when the server behind has acknowledged them. Only its headers may be the first after that, for what
        they may have to say of their table (RFC 7541, 4.2).
        """
        self._settings.append(first_bytes)
        self.may_begin = False

    def _go_on(self, stream: int, answer: _Answer) -> None:
        """Sends of an answer what its stream's window allows."""
        while (size := min(len(answer.rest), FRAME_BYTES, answer.window_bytes)) > 0:
            data = frame(DATA, 0, stream, bytes(answer.rest[:size]))
            answer.rest = answer.rest[size:]
            answer.window_bytes -= size
            self._unsent_bytes -= size
            if not self._must_wait(DATA, stream, size):
                self._window_bytes -= size
                self.put_in(data)
            else:
                self._wait(stream, data, own=True)
        if not answer.rest:
            del self._answers[stream]
            if stream in self._queued:
                self._wait(stream, answer.end, own=True)
            else:
                self.put_in(answer.end)
        if self._queue:
            self._send_queue()

    def _pass(self, data: bytes) -> None:
        """Hands on what came from behind, but for the frames that wait."""
        if self._rest:
            data = self._rest + data
        size, position, kept = len(data), 0, 0
        pieces: list[bytes] = []
        while position + HEAD_BYTES <= size:
            high, low, kind, flags, stream = FRAME_HEAD.unpack_from(data, position)
            length = high << 8 | low
            end = position + HEAD_BYTES + length
            if kind == HEADERS and not flags & END_HEADERS:
                end = _end_of_headers(data, end)
            if end > size:
                break
            if kind == DATA:
                self._passed_bytes += length
            if self._must_wait(kind, stream, length):
                self._wait(stream, data[position:end], own=False)
                pieces.append(data[kept:position])
                kept = end
            else:
                self._count(kind, flags, stream, length)
            position = end
        self._rest = data[position:]
        pieces.append(data[kept:position])
        if whole := b"".join(pieces) if kept else pieces[0]:
            self._client.write(whole)
        self._take_up_settings()
        if self._queue:
            self._send_queue()
        if self._passed_bytes >= _TOP_UP_BYTES and not self._inspection.in_headers:
            self._transport.write(window_update(self._passed_bytes))
            self._passed_bytes = 0

    def _must_wait(self, kind: int, stream: int, length: int) -> bool:
        """Whether a frame waits: for the window, or for others of its stream; settings, for what was meant without."""
        if kind == DATA:
            return bool(self._queue) or length > self._window_bytes
        if kind == SETTINGS or stream == 0:
            return kind == SETTINGS and bool(self._queue)
        return stream in self._queued and kind != WINDOW_UPDATE

    def _wait(self, stream: int, data: bytes, *, own: bool) -> None:
        self._queue.append(_Waiting(stream, data, own))
        self._queued[stream] += 1
        self._queued_bytes += len(data)
        self._look_at_queue()

    def _send_queue(self) -> None:
        """Sends what waited for the connection's window, as far as that goes."""
        while self._queue:
            stream, data, own = self._queue[0]
            high, low, kind, flags, _ = FRAME_HEAD.unpack_from(data)
            length = high << 8 | low
            is_given_up = stream in self._given_up
            if kind == DATA and length > self._window_bytes and not is_given_up:
                if self._window_bytes > 0 and not flags & PADDED:
                    first, rest = _cut(data, self._window_bytes)
                    self._queue[0] = _Waiting(stream, rest, own)
                    self._queued_bytes -= self._window_bytes
                    self._window_bytes = 0
                    self.put_in(first)
                break
            self._leave_queue()
            if not is_given_up:
                self._count(kind, flags, stream, length, own=own)
                self.put_in(data)
        self._look_at_queue()
        self._take_up_settings()
        self._close_if_done()

    def _leave_queue(self) -> None:
        stream, data, _ = self._queue.popleft()
        self._queued_bytes -= len(data)
        self._queued[stream] -= 1
        if not self._queued[stream]:
            del self._queued[stream]
            self._given_up.discard(stream)

    def _count(self, kind: int, flags: int, stream: int, length: int, *, own: bool = False) -> None:
        """Takes note of a frame that goes to the client now."""
        self._inspection.note_answer(kind, flags, stream)
        if kind == DATA:
            self._window_bytes -= length
        elif kind == HEADERS and not own:
            self.may_begin = self._acknowledged == len(self._settings)
        elif kind == SETTINGS and flags & ACK:
            self._acknowledged = min(self._acknowledged + 1, len(self._settings))

    def _take_up_settings(self) -> None:
        """Lets those hold that the client knows to be acknowledged by now."""
        while self._acknowledged:
            self._acknowledged -= 1
            self._begin_at(self._settings.popleft())

    def _close_if_done(self) -> None:
        if self._has_ended and not self.held_bytes:
            self._client.close()

    def _begin_at(self, first_bytes: int) -> None:
        """Every stream's window begins at so much, those of the open ones too (RFC 9113, 6.9.2); -1: as before."""
        if first_bytes < 0:
            return
        more_bytes, self._first_bytes = first_bytes - self._first_bytes, first_bytes
        for stream, answer in list(self._answers.items()):
            answer.window_bytes += more_bytes
            self._go_on(stream, answer)

    def _look_at_queue(self) -> None:
        """Reads nothing more from behind while too much waits."""
        is_held = self._queued_bytes > _MOST_QUEUED_BYTES
        if is_held != self._is_held:
            self._is_held = is_held
            self._choose()

    def _choose(self) -> None:
        if self._transport.is_closing():
            return
        if self._is_full or self._is_held:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


def _end_of_headers(data: bytes, end: int) -> int:
    """Where the CONTINUATION ends that is the last one of headers; beyond the end of `data` where it has not come."""
    while end + HEAD_BYTES <= len(data):
        high, low, kind, flags, _ = FRAME_HEAD.unpack_from(data, end)
        end += HEAD_BYTES + (high << 8 | low)
        if kind != CONTINUATION or flags & END_HEADERS:
            return end
    return len(data) + 1


def _cut(data: bytes, size: int) -> tuple[bytes, bytes]:
    """A frame of DATA in two, the first with `size` bytes."""
    _, _, _, flags, stream = FRAME_HEAD.unpack_from(data)
    first, rest = data[HEAD_BYTES : HEAD_BYTES + size], data[HEAD_BYTES + size :]
    return frame(DATA, flags & ~END_STREAM, stream, first), frame(DATA, flags, stream, rest)
