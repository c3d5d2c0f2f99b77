"""A V2 server over REST of known behaviour: how long it takes, how slowly it starts, and how often it fails.

python benchmarks/spoiled_server.py '{"service_s": 0.004}'      (started by spoiled.py; prints its port)
"""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen

import httptools
import msgspec

from mlserve.bench.leash import leashed

__all__ = ["Behaviour", "serving_badly"]

_METADATA = {
    "name": "known",
    "versions": ["1"],
    "platform": "known",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
}
_ANSWER = {
    "model_name": "known",
    "model_version": "1",
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 1], "data": [0.5]}],
}


class Behaviour(msgspec.Struct, frozen=True):
    """One request after the other takes `service_s`, and each of the first `cold_requests` takes `cold_extra_s` more;
    every `fails_each`-th is refused, none if 0.
    """

    service_s: float = 0.0
    cold_extra_s: float = 0.0
    cold_requests: int = 0
    fails_each: int = 0


@contextmanager
def serving_badly(behaviour: Behaviour, cpus: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """(URL, pid) of a server on `cpus`, which ends with the block."""
    command = [sys.executable, str(Path(__file__)), msgspec.json.encode(behaviour).decode()]
    with Popen(leashed(command, cpus), stdin=DEVNULL, stdout=PIPE, text=True, process_group=0) as process:
        try:
            assert process.stdout is not None, "asked for"
            yield f"http://127.0.0.1:{int(process.stdout.readline())}", process.pid
        finally:
            process.kill()


class _Queue:
    """Requests wait for the one before them. No processor time is spent: when each is done is computed."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._free_at_s = 0.0
        self._asked = 0

    def done_at_s(self, now_s: float) -> tuple[float, bool]:
        """(when a request that came now is done, whether it is refused)."""
        behaviour = self._behaviour
        self._asked += 1
        cold = self._asked <= behaviour.cold_requests
        took_s = behaviour.service_s + (behaviour.cold_extra_s if cold else 0.0)
        self._free_at_s = max(self._free_at_s, now_s) + took_s
        refused = bool(behaviour.fails_each) and self._asked % behaviour.fails_each == 0
        return self._free_at_s, refused


class _Connection(asyncio.Protocol):
    def __init__(self, queue: _Queue) -> None:
        self._queue = queue

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_message_complete(self) -> None:
        if not self._url.endswith(b"/infer"):
            known = self._url == b"/v2/models/known"
            answer = _METADATA if known else [{"name": "known"}]
            self._write(200, answer if known or self._url == b"/v2/repository/index" else {"error": "not here"})
            return
        loop = asyncio.get_running_loop()
        done_at_s, refused = self._queue.done_at_s(loop.time())
        status, content = (503, {"error": "as asked"}) if refused else (200, _ANSWER)
        loop.call_at(done_at_s, self._write, status, content)

    def _write(self, status: int, content: object) -> None:
        body = msgspec.json.encode(content)
        head = f"HTTP/1.1 {status} {'OK' if status == 200 else 'Unavailable'}\r\ncontent-type: application/json\r\n"
        if not self._transport.is_closing():
            self._transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)


async def _serve(behaviour: Behaviour) -> None:
    queue = _Queue(behaviour)
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(queue), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(msgspec.json.decode(sys.argv[1], type=Behaviour)))
