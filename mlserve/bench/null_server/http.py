"""HTTP/1.1: answers every request, whatever its path, once its body is there."""

import asyncio
from collections.abc import Callable
from typing import cast

import httptools
import uvloop

__all__ = ["serve_http"]


class _Answering(asyncio.Protocol):
    """One connection. The parser calls `on_message_complete`."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpRequestParser(self)
        self._complete = 0

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()
            return
        if self._complete:
            self._transport.write(self._answer * self._complete)
            self._complete = 0

    def on_message_complete(self) -> None:
        self._complete += 1


def serve_http(answer: bytes, ready: Callable[[int], None]) -> None:
    """Serves on a free port of 127.0.0.1, which `ready` is told, until the process ends."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(answer)}\r\n\r\n"

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Answering(head.encode() + answer), "127.0.0.1", 0, backlog=4096)
        ready(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(serve())
