"""The way back to a gRPC client: the frames of the server behind, answers of the worker's own between them.

What a client's windows allow is one account for the connection, and who writes on it must be one. So the server behind
is told of an endless window, and what it sends waits here for the real one.
"""

import asyncio
from typing import cast

from mlserve.serve.transports.grpc_ending import ANSWER_HEAD
from mlserve.serve.transports.grpc_inspection import Abuse, Inspection
from mlserve.wire.http2_frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES,
    FRAME_HEAD,
    HEAD_BYTES,
    HEADERS,
    MOST_WINDOW_BYTES,
    PADDED,
    WINDOW_BYTES,
    frame,
    frame_start,
    window_update,
)

__all__ = ["WayBack"]

# The server behind gets back what it has sent of its endless window.
_TOP_UP_BYTES = 1 << 30
_HEAD_START = frame_start(HEADERS, END_HEADERS, len(ANSWER_HEAD))


class _Answer:
    """What is left of an answer that waits for a window."""

    __slots__ = ("end", "rest", "window_bytes")

    def __init__(self, rest: bytes, end: bytes, window_bytes: int) -> None:
        self.rest, self.end, self.window_bytes = memoryview(rest), end, window_bytes


class WayBack(asyncio.Protocol):
    """Of one connection. What comes from the server behind is noted in its `inspection`."""

    def __init__(self, client: asyncio.Transport, inspection: Inspection) -> None:
        self._client, self._inspection = client, inspection
        self._left_bytes = 0  # of the frame that is passing
        self._rest = b""  # of what came: a part of the next frame's head, or what waits for the window
        self._waiting: list[bytes] = []  # frames of our own, for where the next frame begins
        self._window_bytes = self._first_bytes = WINDOW_BYTES  # the connection's; a stream's at its beginning
        self._passed_bytes = 0
        self._answers: dict[int, _Answer] = {}
        self._is_full = self._is_held = False
        self.has_begun = False  # the server behind has said something

    # asyncio calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._client.is_closing():
            self._pass(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._client.close()

    def pause_writing(self) -> None:
        if not self._client.is_closing():
            self._client.pause_reading()

    def resume_writing(self) -> None:
        if not self._client.is_closing():
            self._client.resume_reading()

    # The client's side of the connection calls these.

    @property
    def held_bytes(self) -> int:
        """Of own answers, what waits for a window."""
        return sum([len(answer.rest) for answer in self._answers.values()])

    def open_wide(self) -> None:
        """Tells the server behind, once the client has greeted it, of its endless window."""
        self._transport.write(window_update(MOST_WINDOW_BYTES - WINDOW_BYTES))

    def fill(self, *, full: bool) -> None:
        """Takes nothing more from the server behind while the client's buffer is `full`."""
        self._is_full = full
        self._choose()

    def put_in(self, frames: bytes) -> None:
        """Sends `frames` to the client, at the next place where one frame ends and another begins."""
        if self._left_bytes:
            self._waiting.append(frames)
        elif not self._client.is_closing():
            self._client.write(frames)

    def answer(self, stream: int, payload: bytes, trailers: bytes, granted_bytes: int) -> None:
        """Answers a call with one message. `granted_bytes`: so much its stream's window was widened by."""
        number, size = stream.to_bytes(4), len(payload) + 5
        message = b"\0" + len(payload).to_bytes(4) + payload
        head = _HEAD_START + number + ANSWER_HEAD
        end = frame(HEADERS, END_HEADERS | END_STREAM, stream, trailers)
        stream_bytes = self._first_bytes + granted_bytes
        if size <= FRAME_BYTES and size <= self._window_bytes and size <= stream_bytes:
            self._window_bytes -= size
            self.put_in(b"".join((head, frame_start(DATA, 0, size), number, message, end)))
        else:
            self.put_in(head)
            self._answers[stream] = _Answer(message, end, stream_bytes)
            self.send_on()

    def forget(self, stream: int) -> None:
        """Sends no more of the answer to a call that its client has given up."""
        self._answers.pop(stream, None)

    def widen(self, stream: int, more_bytes: int) -> None:
        """The client lets so much more come: on the connection (0), or on the stream of an answer that waits. Raises
        Abuse. `send_on` makes use of it.
        """
        if stream == 0:
            self._window_bytes += more_bytes
        elif (answer := self._answers.get(stream)) is not None:
            answer.window_bytes += more_bytes
        if not more_bytes or self._window_bytes > MOST_WINDOW_BYTES:
            raise Abuse(f"a window was widened by {more_bytes} bytes")

    def begin_at(self, first_bytes: int) -> None:
        """Every stream's window begins at so much, those of the open ones too (RFC 9113, 6.9.2)."""
        for answer in self._answers.values():
            answer.window_bytes += first_bytes - self._first_bytes
        self._first_bytes = first_bytes

    def send_on(self) -> None:
        """Sends what waited for a window, as far as it goes."""
        if self._window_bytes <= 0:
            return
        for stream, answer in list(self._answers.items()):
            while (size := min(len(answer.rest), FRAME_BYTES, answer.window_bytes, self._window_bytes)) > 0:
                self.put_in(frame(DATA, 0, stream, bytes(answer.rest[:size])))
                answer.rest = answer.rest[size:]
                answer.window_bytes -= size
                self._window_bytes -= size
            if not answer.rest:
                del self._answers[stream]
                self.put_in(answer.end)
        if self._is_held:
            self._pass(b"")

    def _pass(self, data: bytes) -> None:
        """Hands on what came from behind, up to a frame that the window does not hold."""
        if self._rest:
            data = self._rest + data
        size, position, held = len(data), self._left_bytes, False
        while position + HEAD_BYTES <= size:
            high, low, kind, flags, stream = FRAME_HEAD.unpack_from(data, position)
            length = high << 8 | low
            end = position + HEAD_BYTES + length
            if kind == DATA:
                if length > self._window_bytes:
                    if self._window_bytes > 0 and end <= size and not flags & PADDED:
                        data = data[:position] + _cut(data[position:end], self._window_bytes) + data[end:]
                        size = len(data)
                        continue
                    held = True
                    break
                self._window_bytes -= length
                self._passed_bytes += length
            self._inspection.note_answer(kind, flags, stream)
            position = end
        self._rest, self._left_bytes = data[position:], max(0, position - size)
        whole = data[:position]
        if self._waiting and position <= size:
            whole = b"".join((whole, *self._waiting))
            self._waiting.clear()
        if whole:
            self.has_begun = True
            self._client.write(whole)
        if held != self._is_held:
            self._is_held = held
            self._choose()
        if self._passed_bytes >= _TOP_UP_BYTES:
            self._transport.write(window_update(self._passed_bytes))
            self._passed_bytes = 0

    def _choose(self) -> None:
        """Reads what comes from behind, or lets it wait."""
        if self._transport.is_closing():
            return
        if self._is_full or self._is_held:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


def _cut(data: bytes, size: int) -> bytes:
    """A frame of DATA in two, the first with `size` bytes."""
    _, _, _, flags, stream = FRAME_HEAD.unpack_from(data)
    first, rest = data[HEAD_BYTES : HEAD_BYTES + size], data[HEAD_BYTES + size :]
    return frame(DATA, flags & ~END_STREAM, stream, first) + frame(DATA, flags, stream, rest)
