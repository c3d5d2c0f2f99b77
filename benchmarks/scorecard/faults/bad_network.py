"""A network that is slow, and cuts connections: a proxy between clients and a server."""

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec
import uvloop

__all__ = ["BadNetwork", "Faults", "bad_network"]

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: to close is to reset
_READ_BYTES = 65536


class _Cut(Exception):
    """The connection is to be reset."""


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong: every byte is `latency_s` on its way, there and back; a `reset_share` of the connections, from 0
    to 1, is reset once the first answer is on its way.
    """

    latency_s: float = 0.0
    reset_share: float = 0.0


class BadNetwork:
    """One proxy that runs. `address` is where clients connect; `resets` counts the connections it cut."""

    def __init__(self, address: str, faults: Faults) -> None:
        host, _, port = address.rpartition(":")
        self._target, self._faults = (host, int(port)), faults
        self._random = random.Random(7)
        self.address, self.resets = "", 0

    async def start(self) -> asyncio.Server:
        """Begins to accept connections."""
        server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, forth = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        cut = self._random.random() < self._faults.reset_share
        for one in (writer, forth):
            one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        carrying = [self._carry(reader, forth, cut=False), self._carry(back, writer, cut=cut)]
        tasks = [asyncio.ensure_future(each) for each in carrying]
        try:
            await asyncio.gather(*tasks)
        except _Cut:
            self.resets += 1
            for one in (writer, forth):
                one.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                one.transport.abort()
        except (OSError, asyncio.CancelledError):  # either end has gone, or the network has
            pass
        for task in tasks:
            task.cancel()
        for one in (writer, forth):
            one.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, cut: bool) -> None:
        """Brings bytes from one side to the other, and its end too."""
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        delivering = loop.create_task(self._deliver(under_way, writer))
        try:
            while data := await reader.read(_READ_BYTES):
                if cut:
                    raise _Cut
                await under_way.put((loop.time() + self._faults.latency_s, data))
            await under_way.put((loop.time() + self._faults.latency_s, b""))
            await delivering
        finally:
            delivering.cancel()

    async def _deliver(self, under_way: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s, data = await under_way.get()
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            if not data:
                with suppress(OSError):
                    writer.write_eof()
                return
            writer.write(data)
            with suppress(OSError):
                await writer.drain()


@contextmanager
def bad_network(address: str, faults: Faults) -> Iterator[BadNetwork]:
    """A proxy before `address`, in a thread of its own."""
    network, ready, ending = BadNetwork(address, faults), threading.Event(), threading.Event()

    async def serve() -> None:
        server = await network.start()
        ready.set()
        while not ending.is_set():
            await asyncio.sleep(0.02)
        server.close()

    thread = threading.Thread(target=lambda: uvloop.run(serve()), name="network")
    thread.start()
    ready.wait()
    try:
        yield network
    finally:
        ending.set()
        thread.join()
