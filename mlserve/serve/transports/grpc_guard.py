"""In front of the native gRPC server, which has no limits of its own: what clients send is looked through on its way.

The native front keeps a message of any size it is told of, and unpacks a packed one whole. The guard listens in its
place, and passes on to a Unix socket what keeps to the limits. It reads no headers, and what comes back goes through as
it is.
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
from mlserve.serve.transports.grpc_inspection import Abuse, Inspection, Refusal, frame
from mlserve.serve.transports.receiving import Receiving

__all__ = ["GrpcGuard"]

_HEADERS, _RST_STREAM, _GOAWAY, _WINDOW_UPDATE = 1, 3, 7, 8
_END_OF_CALL = 0x5  # END_STREAM and END_HEADERS
_NO_ERROR, _CANCEL, _ENHANCE_YOUR_CALM = 0, 8, 11
_LAST_STREAM = 0x7FFF_FFFF
_SWEEP_EVERY_S = 0.5
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
        self._inspection = Inspection(guard.limits.max_request_bytes, guard.receiving, time.monotonic())
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
            self._end(abuse)
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
        """Ends what is late."""
        limits = self._guard.limits
        try:
            self._inspection.look_at_clock(now_s, limits.head_s, limits.receive_s)
        except Abuse as abuse:
            self._end(abuse)
            return
        if self._inspection.refusals:
            self._refuse()

    def close(self) -> None:
        self.transport.close()

    async def _connect(self) -> None:
        try:
            transport, back = await self._loop.create_unix_connection(
                lambda: _ServerSide(self.transport), self._guard.behind
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

    def _end(self, abuse: Abuse) -> None:
        if self._behind is not None:
            last_word = _LAST_STREAM.to_bytes(4) + _ENHANCE_YOUR_CALM.to_bytes(4) + str(abuse).encode()
            self._back.put_in(frame(_GOAWAY, 0, 0, last_word))
        self.transport.close()


class _ServerSide(asyncio.Protocol):
    """What comes from behind, on its way to the client; frames of our own are put in between."""

    def __init__(self, client: asyncio.Transport) -> None:
        self._client = client
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
            position = wanted + int.from_bytes((self._head + data[:wanted])[:3])
            self._head = b""
        while position + _HEAD_BYTES <= size:
            position += _HEAD_BYTES + int.from_bytes(data[position : position + 3])
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


def _ending(refusal: Refusal) -> bytes:
    """What ends a call at its client: a status, and the word that no more of it is read.

    Where an answer may have begun there is no place for a status any more; gRPC reads the reset itself as one.
    """
    if refusal.answered:
        return frame(_RST_STREAM, 0, refusal.stream, _ENHANCE_YOUR_CALM.to_bytes(4))
    fields = (
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"%d" % refusal.code),
        (b"grpc-message", refusal.message.replace("%", "%25").encode("ascii", "replace")),
    )
    # The table of headers between client and server is not ours: only what leaves it alone is used (RFC 7541, 6.2.2).
    block = b"\x88" + b"".join(b"\0" + _string(name) + _string(value) for name, value in fields)
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
