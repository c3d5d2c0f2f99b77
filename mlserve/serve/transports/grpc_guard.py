"""In front of the native gRPC server, which has no limits of its own: what clients send is looked through on its way.

The native front keeps a message of any size it is told of, and unpacks a packed one whole. The guard listens in its
place, and passes on to a Unix socket what keeps to the limits. It reads no headers, and what comes back goes through as
it is; which calls it answers and ends is noted.
"""

import asyncio
import socket
import ssl
import time
from collections import deque
from typing import cast

from mlserve.serve.identities import certificate_credential
from mlserve.serve.settings import Limits
from mlserve.serve.tls import listening
from mlserve.serve.transports.certificate_mark import CertificateMark
from mlserve.serve.transports.grpc_fallback import MOST_METADATA_BYTES
from mlserve.serve.transports.grpc_inspection import FRAME_HEAD, Abuse, Inspection, Refusal, frame
from mlserve.serve.transports.receiving import Receiving

__all__ = ["GrpcGuard"]

_HEADERS, _RST_STREAM, _GOAWAY, _WINDOW_UPDATE = 1, 3, 7, 8
_END_OF_CALL = 0x5  # END_STREAM and END_HEADERS
_NO_ERROR, _CANCEL, _ENHANCE_YOUR_CALM = 0, 8, 11
_LAST_STREAM = 0x7FFF_FFFF
_SWEEP_EVERY_S = 0.5
# So long a client may take over what is still on its way to it when its connection ends.
_LINGER_S = 2.0
_HEAD_BYTES = 9


class GrpcGuard:
    """Listens on `listener`, for the native front that listens on the Unix socket `behind`.

    With a `context` it speaks TLS, and tells the front of the certificates that clients show.
    """

    def __init__(
        self,
        listener: socket.socket,
        behind: str,
        limits: Limits,
        receiving: Receiving,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._listener, self.behind, self.limits, self.receiving = listener, behind, limits, receiving
        self.connections: set[_ClientSide] = set()
        self._context = context
        self.connecting: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to accept connections."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _ClientSide(self, loop),
            sock=self._listener,
            backlog=2048,
            **listening(self._context, self.limits.head_s),
        )
        self._sweeping = loop.create_task(self._sweep())

    def stop_listening(self) -> None:
        """Accepts no more connections; those there are go on."""
        if self._server is not None:
            self._server.close()

    async def stop(self) -> None:
        """Closes every connection, once what is on its way to it is sent."""
        self.stop_listening()
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in list(self.connections):
            connection.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            now_s = time.monotonic()
            for connection in list(self.connections):
                connection.sweep(now_s)


class _ClientSide(asyncio.Protocol):
    """One connection of a client, and its other half behind."""

    def __init__(self, guard: GrpcGuard, loop: asyncio.AbstractEventLoop) -> None:
        self._guard, self._loop = guard, loop
        now_s = time.monotonic()
        self._inspection = Inspection(guard.limits.max_request_bytes, MOST_METADATA_BYTES, guard.receiving, now_s)
        self._unsent_bytes, self._read_s = 0, now_s  # what waits for the client, and when it took some of it last
        self._behind: asyncio.Transport | None = None
        self._early: deque[bytes] = deque()
        self._mark: CertificateMark | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if len(self._guard.connections) >= self._guard.limits.max_connections:
            self.transport.abort()
            return
        self._guard.connections.add(self)
        self.transport.pause_reading()
        if credential := certificate_credential(transport):
            self._mark = CertificateMark(credential)
        task = self._loop.create_task(self._connect())
        self._guard.connecting.add(task)
        task.add_done_callback(self._guard.connecting.discard)

    def data_received(self, data: bytes) -> None:
        inspection, behind = self._inspection, self._behind
        if behind is None:  # TLS hands over what came with the end of the handshake
            self._early.append(data)
            return
        try:
            found = inspection.read(data, time.monotonic())
        except Abuse as abuse:
            self._end(_ENHANCE_YOUR_CALM, _LAST_STREAM, str(abuse))
            return
        if found and not behind.is_closing():
            behind.write(found if self._mark is None else self._mark.mark(found))
        if inspection.refusals or inspection.dropped_bytes:
            self._refuse()

    def connection_lost(self, _: Exception | None) -> None:
        self._guard.connections.discard(self)
        self._inspection.close()
        if self._mark is not None:
            self._mark.close()
        if self._behind is not None:
            self._behind.close()

    def pause_writing(self) -> None:
        # A client that does not read its answers gets no more requests read.
        self.transport.pause_reading()
        if self._behind is not None:
            self._behind.pause_reading()

    def resume_writing(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()
        if self._behind is not None and not self._behind.is_closing():
            self._behind.resume_reading()

    def sweep(self, now_s: float) -> None:
        """Ends what is late, and the connection where nothing is asked or nothing is read any more."""
        limits, inspection = self._guard.limits, self._inspection
        if self._does_not_read(now_s):
            self.transport.abort()  # to close would wait for it
            return
        if self.transport.is_closing():
            return
        try:
            inspection.look_at_clock(now_s, limits.head_s, limits.receive_s)
        except Abuse as abuse:
            self._end(_ENHANCE_YOUR_CALM, _LAST_STREAM, str(abuse))
            return
        if inspection.refusals:
            self._refuse()
        if inspection.idle_s(now_s) > limits.keep_alive_s and not self._unsent_bytes:
            # A call that is on its way here now is one for the client to send again.
            self._end(_NO_ERROR, inspection.newest_stream, f"no call was open for {limits.keep_alive_s:g} s")

    def close(self) -> None:
        self.transport.close()

    async def _connect(self) -> None:
        try:
            transport, back = await self._loop.create_unix_connection(
                lambda: _ServerSide(self.transport, self._inspection), self._guard.behind
            )
        except OSError:  # the server behind has stopped
            self.transport.abort()
            return
        self._behind, self._back = transport, back
        if self.transport.is_closing():
            transport.close()
            return
        while self._early:
            self.data_received(self._early.popleft())
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def _refuse(self) -> None:
        """Ends the calls that were refused, here and behind, and makes room for what is sent in their place."""
        inspection = self._inspection
        if self._behind is None or self._behind.is_closing():
            return
        for refusal in inspection.refusals:
            self._behind.write(frame(_RST_STREAM, 0, refusal.stream, _CANCEL.to_bytes(4)))
            self._back.put_in(_ending(refusal))
        inspection.refusals.clear()
        if inspection.dropped_bytes:
            self._back.put_in(frame(_WINDOW_UPDATE, 0, 0, inspection.dropped_bytes.to_bytes(4)))
            inspection.dropped_bytes = 0

    def _does_not_read(self, now_s: float) -> bool:
        """Whether the client has taken nothing of what waits for it for longer than it may."""
        unsent_bytes = self.transport.get_write_buffer_size()
        if not unsent_bytes or unsent_bytes < self._unsent_bytes:
            self._read_s = now_s
        self._unsent_bytes = unsent_bytes
        return now_s - self._read_s > (_LINGER_S if self.transport.is_closing() else self._guard.limits.keep_alive_s)

    def _end(self, error: int, last_stream: int, reason: str) -> None:
        """Closes the connection, and says why: an error of HTTP/2, and the last call that may have been taken."""
        if self._behind is not None:
            self._back.put_in(frame(_GOAWAY, 0, 0, last_stream.to_bytes(4) + error.to_bytes(4) + reason.encode()))
        self.transport.close()


class _ServerSide(asyncio.Protocol):
    """What comes from behind, on its way to the client; frames of our own are put in between."""

    def __init__(self, client: asyncio.Transport, inspection: Inspection) -> None:
        self._client, self._inspection = client, inspection
        self._left_bytes = 0  # of the frame that is passing
        self._head = b""  # of the next one, where it came in two pieces
        self._waiting: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._client.is_closing():
            return
        size, position = len(data), self._left_bytes
        if self._head:
            wanted = _HEAD_BYTES - len(self._head)
            if size < wanted:
                self._head += data
                self._client.write(data)
                return
            position = wanted + self._note(self._head + data[:wanted], 0)
            self._head = b""
        while position + _HEAD_BYTES <= size:
            position += _HEAD_BYTES + self._note(data, position)
        if position < size:
            self._head, self._left_bytes = data[position:], 0
        else:
            self._left_bytes = position - size
        if self._waiting and position <= size:
            data = b"".join((data[:position], *self._waiting, data[position:]))
            self._waiting.clear()
        self._client.write(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._client.close()

    def pause_writing(self) -> None:
        if not self._client.is_closing():
            self._client.pause_reading()

    def resume_writing(self) -> None:
        if not self._client.is_closing():
            self._client.resume_reading()

    def put_in(self, frames: bytes) -> None:
        """Sends `frames` to the client, at the next place where one frame ends and another begins."""
        if self._left_bytes or self._head:
            self._waiting.append(frames)
        elif not self._client.is_closing():
            self._client.write(frames)

    def _note(self, data: bytes, position: int) -> int:
        """Has a frame's head looked at; returns the length of its payload."""
        high, low, kind, flags, stream = FRAME_HEAD.unpack_from(data, position)
        self._inspection.note_answer(kind, flags, stream)
        length: int = high << 8 | low
        return length


def _ending(refusal: Refusal) -> bytes:
    """What ends a call at its client: a status, and the word that no more of it is read."""
    message = refusal.message.replace("%", "%25").encode("ascii", "replace")
    fields = [(b"grpc-status", b"%d" % refusal.code), (b"grpc-message", message)]
    # The table of headers between client and server is not ours: only what leaves it alone is used (RFC 7541, 6.2.2).
    block = b""
    if not refusal.answered:  # what comes behind the headers of an answer are its trailers
        block = b"\x88"
        fields.insert(0, (b"content-type", b"application/grpc"))
    block += b"".join(b"\0" + _string(name) + _string(value) for name, value in fields)
    head = frame(_HEADERS, _END_OF_CALL, refusal.stream, block)
    return head + frame(_RST_STREAM, 0, refusal.stream, _NO_ERROR.to_bytes(4))


def _string(text: bytes) -> bytes:
    """A string of HPACK, as it is (RFC 7541, 5.1 and 5.2)."""
    size, prefix = len(text), b""
    if size < 127:
        return bytes((size,)) + text
    size -= 127
    while size >= 128:
        prefix += bytes((size % 128 | 128,))
        size //= 128
    return b"\x7f" + prefix + bytes((size,)) + text
