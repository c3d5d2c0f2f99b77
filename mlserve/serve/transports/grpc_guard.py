"""In front of the native gRPC server, which has no limits of its own: what clients send is looked through on its way.

The native front keeps a message of any size it is told of, and unpacks a packed one whole. The guard listens in its
place, and passes on to a Unix socket what keeps to the limits. Calls that came whole it gives to the fast lane.
"""

import asyncio
import socket
import ssl
import time
from collections import deque
from contextlib import suppress
from typing import cast

from mlserve.serve.identities import certificate_credential
from mlserve.serve.settings import Limits
from mlserve.serve.tls import listening
from mlserve.serve.transports.certificate_mark import CertificateMark
from mlserve.serve.transports.grpc_ending import ending
from mlserve.serve.transports.grpc_fallback import MOST_METADATA_BYTES
from mlserve.serve.transports.grpc_inspection import Abuse, Inspection
from mlserve.serve.transports.grpc_lane import GrpcLane, LaneCalls
from mlserve.serve.transports.grpc_way_back import WayBack
from mlserve.serve.transports.grpc_whole import WholeCalls
from mlserve.serve.transports.receiving import Receiving
from mlserve.wire.http2_frames import (
    FRAME_BYTES,
    GOAWAY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    reset,
    window_update,
)

__all__ = ["GrpcGuard"]

_NO_ERROR, _CANCEL, _ENHANCE_YOUR_CALM = 0, 8, 11
_LAST_STREAM = 0x7FFF_FFFF
_SWEEP_EVERY_S = 0.5
# So long a client may take over what is still on its way to it when its connection ends.
_LINGER_S = 2.0
_LAST_ANSWERS_S = 1.0


class GrpcGuard:
    """Listens on `listener`, for the native front that listens on the Unix socket `behind`.

    With a `context` it speaks TLS, and tells the front of the certificates that clients show. What `lane` can answer
    does not get there.
    """

    def __init__(
        self,
        listener: socket.socket,
        behind: str,
        limits: Limits,
        receiving: Receiving,
        context: ssl.SSLContext | None = None,
        lane: GrpcLane | None = None,
    ) -> None:
        self._listener, self.behind, self.limits, self.receiving = listener, behind, limits, receiving
        self.lane = lane
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

    def abandon(self) -> None:
        """Tells the fast lane's calls that are not answered yet that the server stops."""
        for connection in list(self.connections):
            connection.abandon()

    async def stop(self) -> None:
        """Closes every connection, once what is on its way to it is sent, or has had a moment to be."""
        self.stop_listening()
        if self._sweeping is not None:
            self._sweeping.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_ANSWERS_S):
                while any(connection.is_busy for connection in self.connections):
                    await asyncio.sleep(0.01)
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
        now_s, most_bytes = time.monotonic(), guard.limits.max_request_bytes
        self._whole = WholeCalls(guard.lane.reader(), most_bytes) if guard.lane else None
        self._inspection = Inspection(most_bytes, MOST_METADATA_BYTES, guard.receiving, now_s, self._whole)
        self._unsent_bytes, self._read_s = 0, now_s  # what waits for the client, and when it took some of it last
        self._behind: asyncio.Transport | None = None
        self._early: deque[bytes] = deque()
        self._mark: CertificateMark | None = None
        self._certificate: bytes | None = None
        self._calls: LaneCalls | None = None
        self._held_bytes = 0  # of answers, that wait for the client to let them come
        self._is_wide = self._is_full = self._is_behind_full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if len(self._guard.connections) >= self._guard.limits.max_connections:
            self.transport.abort()
            return
        self._guard.connections.add(self)
        self.transport.pause_reading()
        self._certificate = certificate_credential(transport)
        if self._certificate:
            self._mark = CertificateMark(self._certificate)
        task = self._loop.create_task(self._connect())
        self._guard.connecting.add(task)
        task.add_done_callback(self._guard.connecting.discard)

    def data_received(self, data: bytes) -> None:
        inspection, behind = self._inspection, self._behind
        if behind is None:  # TLS hands over what came with the end of the handshake
            self._early.append(data)
            return
        if self._whole is not None and self._calls is not None:
            self._whole.room = 0 if self._is_full else self._calls.room
        try:
            found = inspection.read(data, time.monotonic())
            if found and not behind.is_closing():
                behind.write(found if self._mark is None else self._mark.mark(found))
            if not self._is_wide and inspection.has_greeted and not inspection.in_headers:
                self._is_wide = True
                self._back.open_wide()
            if self._whole is not None and self._whole.found:
                self._answer(self._whole)
            if inspection.told:  # of those answers, perhaps
                self._hear()
        except Abuse as abuse:
            self._end(_ENHANCE_YOUR_CALM, _LAST_STREAM, str(abuse))
            return
        if inspection.refusals or inspection.dropped_bytes > FRAME_BYTES:
            self._refuse()

    def connection_lost(self, _: Exception | None) -> None:
        self._guard.connections.discard(self)
        self._inspection.close()
        if self._calls is not None:
            self._calls.close()
        if self._mark is not None:
            self._mark.close()
        if self._behind is not None:
            self._behind.close()

    def pause_writing(self) -> None:
        # A client that does not read its answers gets no more requests read.
        self._is_full = True
        self._choose()
        if self._behind is not None:
            self._back.be_full(full=True)

    def resume_writing(self) -> None:
        self._is_full = False
        self._choose()
        if self._behind is not None:
            self._back.be_full(full=False)

    def sweep(self, now_s: float) -> None:
        """Ends what is late, and the connection where nothing is asked or nothing is read any more."""
        limits, inspection = self._guard.limits, self._inspection
        if self._does_not_read(now_s):
            self.transport.abort()  # to close would wait for it
            return
        if self.transport.is_closing():
            return
        held_bytes = self._back.held_bytes if self._behind is not None else 0
        if held_bytes != self._held_bytes or (self._calls is not None and self._calls.open):
            inspection.touch(now_s)
        self._held_bytes = held_bytes
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

    @property
    def is_busy(self) -> bool:
        """Whether an answer waits for the client to let it come."""
        return self._behind is not None and self._back.held_bytes > 0

    def abandon(self) -> None:
        if self._calls is not None:
            self._calls.abandon()

    def close(self) -> None:
        self.transport.close()

    async def _connect(self) -> None:
        try:
            transport, back = await self._loop.create_unix_connection(
                lambda: WayBack(self.transport, self._inspection, self._fill), self._guard.behind
            )
        except OSError:  # the server behind has stopped
            self.transport.abort()
            return
        self._behind, self._back = transport, back
        if self._guard.lane is not None:
            self._calls = LaneCalls(self._guard.lane, back, self._certificate)
        if self.transport.is_closing():
            transport.close()
            return
        while self._early:
            self.data_received(self._early.popleft())
        self._choose()

    def _fill(self, *, full: bool) -> None:
        """The server behind takes no more for now, or does again."""
        self._is_behind_full = full
        self._choose()

    def _choose(self) -> None:
        """Reads what the client sends, or lets it wait."""
        if self.transport.is_closing():
            return
        if self._is_full or self._is_behind_full or self._behind is None:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def _answer(self, whole: WholeCalls) -> None:
        """Lets the fast lane answer what came whole."""
        calls = self._calls
        assert calls is not None
        for call in whole.found:
            calls.take(call)
        whole.found.clear()

    def _hear(self) -> None:
        """Takes up what the client says of its windows, and of answers that it no longer waits for. Raises Abuse."""
        inspection, back, calls = self._inspection, self._back, self._calls
        for kind, stream, number in inspection.told:
            if kind == WINDOW_UPDATE:
                back.widen(stream, number) if calls is None else calls.widen(stream, number)
            elif kind == RST_STREAM:
                back.forget(stream) if calls is None else calls.drop(stream)
            elif kind == SETTINGS:
                back.settle(number)
        inspection.told.clear()

    def _refuse(self) -> None:
        """Ends the calls that were refused, here and behind, and makes room for what is sent in their place."""
        inspection = self._inspection
        if self._behind is None or self._behind.is_closing() or inspection.in_headers:
            return
        for stream, code, message, answered in inspection.refusals:
            self._behind.write(reset(stream, _CANCEL))
            self._back.forget(stream)
            self._back.put_in(ending(stream, code, message, answered=answered) + reset(stream, _NO_ERROR))
        inspection.refusals.clear()
        if inspection.dropped_bytes:
            self._back.put_in(window_update(inspection.dropped_bytes))
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
            self._back.put_in(frame(GOAWAY, 0, 0, last_stream.to_bytes(4) + error.to_bytes(4) + reason.encode()))
        self.transport.close()
