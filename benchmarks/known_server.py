"""A model server whose every response time is known beforehand: so that a load generator can be checked against it.

    python benchmarks/known_server.py BEHAVIOUR --seconds S     (prints its port; speaks what V2 REST a bench asks for)

Requests wait in one queue for `LANES` lanes, each of which takes one at a time for as long as the behaviour says. When
an answer leaves is computed from when its request, and those before it, came; then a timer waits for that instant. The
same computation, with the instants of a schedule, tells what a perfect load generator would have to find. An answer
that leaves late delays no other: what the machine does to one request does not add up.

Time counts from the first request of a load: one of the first few that come half a second after the one before. Those
were questions.
"""

import argparse
import asyncio
import ctypes
import heapq
import json
import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import uvloop

LANES = 12
MODEL = "known"
INFER = f"/v2/models/{MODEL}/infer"
BEHAVIOURS = ("fixed", "stall", "ramp", "bimodal", "errors")
TRIAL = "short stall"
# Every so many seconds, from the one second to the other, nothing begins.
STALLS = {"stall": (10.0, 6.0, 7.0), TRIAL: (3.0, 1.5, 2.0)}
QUIET_S, QUESTIONS = 0.5, 5

_SEED = 20
_NS = 1_000_000_000
_CLOCK_MONOTONIC, _TFD_TIMER_ABSTIME, _PR_SET_TIMERSLACK = 1, 1, 29
_TENSOR = {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
_METADATA = {"name": MODEL, "versions": ["1"], "platform": "known", "inputs": [_TENSOR], "outputs": [_TENSOR]}
_ANSWER = {
    "model_name": MODEL,
    "model_version": "1",
    "outputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [0.0]}],
}


class Served(NamedTuple):
    """When an answer leaves, and whether it is a good one."""

    done_s: float
    ok: bool


class KnownQueue:
    """What becomes of requests that come in order. Pure.

    fixed      40 ms each
    stall      the same, but from the sixth second of every ten to the seventh nothing begins
    ramp       from 30 ms at the beginning to 72 ms after `seconds`
    bimodal    40 ms, and 160 ms for one request in ten
    errors     40 ms each, and one request in a hundred fails when they are over
    short stall   for a test: as stall, but from 1.5 s to 2 s of every 3
    """

    def __init__(self, behaviour: str, seconds: float) -> None:
        self._behaviour, self._seconds = behaviour, seconds
        self._chances = np.random.default_rng(_SEED)
        self._free_s = [0.0] * LANES

    def arrive(self, at_s: float) -> Served:
        """The request that comes at `at_s`."""
        begun_s = max(at_s, heapq.heappop(self._free_s))
        if self._behaviour in STALLS:
            every_s, from_s, to_s = STALLS[self._behaviour]
            if from_s <= begun_s % every_s < to_s:
                begun_s += to_s - begun_s % every_s
        chance = self._chances.random()
        done_s = begun_s + self._service_s(at_s, chance)
        heapq.heappush(self._free_s, done_s)
        return Served(done_s, self._behaviour != "errors" or chance >= 0.01)

    def _service_s(self, at_s: float, chance: float) -> float:
        if self._behaviour == "ramp":
            return 0.030 + 0.042 * min(1.0, at_s / self._seconds)
        if self._behaviour == "bimodal":
            return 0.160 if chance < 0.1 else 0.040
        return 0.040


def true_latencies(behaviour: str, seconds: float, due_s: Iterable[float]) -> tuple[np.ndarray, np.ndarray]:
    """(response times [n], which were answered well [n]) of requests that come exactly when they are due, in order."""
    due = np.asarray(list(due_s))
    queue = KnownQueue(behaviour, seconds)
    served = [queue.arrive(at_s) for at_s in due - due[0]]
    return np.array([one.done_s for one in served]) - (due - due[0]), np.array([one.ok for one in served])


class PreciseTimer:
    """Calls `due(now_ns)` at the instant that was set: a timerfd, for the loop's own timers round to a millisecond."""

    def __init__(self, loop: asyncio.AbstractEventLoop, due: Callable[[int], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
        self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop, self._due = loop, due
        loop.add_reader(self._fd, self._fired)

    def set(self, instant_ns: int) -> None:
        seconds, rest = divmod(instant_ns, _NS)
        when = (ctypes.c_long * 4)(0, 0, seconds, rest)
        self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(when), None)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _fired(self) -> None:
        with suppress(BlockingIOError):  # it was set anew since it fired
            os.read(self._fd, 8)
        self._due(time.monotonic_ns())


class KnownService:
    """Hands requests to a KnownQueue and sends each answer at its instant."""

    def __init__(self, behaviour: str, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        self._behaviour, self._seconds = behaviour, seconds
        self._queue = KnownQueue(behaviour, seconds)
        self._start_ns = self._last_ns = 0
        self._waiting: list[tuple[int, int, asyncio.Transport, bytes]] = []
        self._number = 0
        self._timer = PreciseTimer(loop, self._send_due)
        self._good, self._bad = reply(200, _ANSWER), reply(500, {"error": "as asked"})

    def arrive(self, transport: asyncio.Transport) -> None:
        now_ns = time.monotonic_ns()
        if self._number < QUESTIONS and now_ns - self._last_ns > QUIET_S * _NS:
            self._queue, self._start_ns = KnownQueue(self._behaviour, self._seconds), now_ns
        self._last_ns = now_ns
        served = self._queue.arrive((now_ns - self._start_ns) / _NS)
        due_ns = self._start_ns + round(served.done_s * _NS)
        self._number += 1
        heapq.heappush(self._waiting, (due_ns, self._number, transport, self._good if served.ok else self._bad))
        self._send_due(now_ns)

    def _send_due(self, now_ns: int) -> None:
        while self._waiting and self._waiting[0][0] <= now_ns:
            _, _, transport, answer = heapq.heappop(self._waiting)
            if not transport.is_closing():
                transport.write(answer)
        if self._waiting:
            self._timer.set(self._waiting[0][0])


class Connection(asyncio.Protocol):
    """HTTP/1.1, requests with a content-length."""

    def __init__(self, service: KnownService) -> None:
        self._service, self._buffer = service, b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            lines = self._buffer[:end].lower().split(b"\r\n")
            length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
            if len(self._buffer) < end + 4 + length:
                return
            path = self._buffer.split(b" ", 2)[1].decode()
            self._buffer = self._buffer[end + 4 + length :]
            if path == INFER:
                self._service.arrive(self._transport)
            else:
                self._transport.write(_about(path))


def _about(path: str) -> bytes:
    if path == f"/v2/models/{MODEL}":
        return reply(200, _METADATA)
    if path == "/v2/repository/index":
        return reply(200, [{"name": MODEL}])
    return reply(404, {"error": f"nothing at {path}"})


def reply(status: int, content: object) -> bytes:
    body = json.dumps(content, separators=(",", ":")).encode()
    return b"HTTP/1.1 %d x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
        status,
        len(body),
        body,
    )


async def _serve(behaviour: str, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    service = KnownService(behaviour, seconds, loop)
    server = await loop.create_server(lambda: Connection(service), "127.0.0.1", 0, family=socket.AF_INET, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("behaviour", choices=(*BEHAVIOURS, TRIAL))
    parser.add_argument("--seconds", type=float, required=True, help="how long the ramp takes")
    arguments = parser.parse_args()
    uvloop.run(_serve(arguments.behaviour, arguments.seconds))


if __name__ == "__main__":
    main()
