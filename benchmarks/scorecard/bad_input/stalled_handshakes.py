"""Clients that begin to speak TLS and do not go on: half of the first message of a handshake, and then nothing."""

import socket
import ssl
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from scorecard.driver import Load, driving
from scorecard.security.authority import Authority
from scorecard.server import Server, Tls, serving_both

__all__ = ["Stalled", "play_stalled"]

_SLACK_S = 2.0
_PER_S = 100.0

# Every handshake has as much time as it likes.
_PATIENT = """
import mlserve.serve.tls as tls

right = tls.listening
tls.listening = lambda context, handshake_s: right(context, 3600.0)
"""


class Stalled(NamedTuple):
    """What became of `made` of them: the first and the last were let go after so many seconds; `still` are not.

    `fault` says what is wrong with that, or with what others were answered meanwhile.
    """

    made: int
    first_s: float
    last_s: float
    still: int
    fault: str


def play_stalled(folder: Path, sockets: int, limit_s: float) -> tuple[Stalled, Stalled]:
    """So many over HTTP and as many over gRPC, on a server that gives a handshake `limit_s`; and on one that waits."""
    root = Authority(folder / "root")
    pair = root.issue("localhost", ["localhost", "127.0.0.1"])
    flags = ("--tls-cert", pair.certificate, "--tls-key", pair.key, "--receive-timeout", f"{limit_s:g}s")
    with serving_both(folder, *flags, plant=_PATIENT) as (sound, broken):
        return _play(sound, Tls(root.path), sockets, limit_s), _play(broken, Tls(root.path), 3, limit_s)


def _play(server: Server, trust: Tls, sockets: int, limit_s: float) -> Stalled:
    load = Load(per_s=_PER_S, seconds=limit_s + _SLACK_S, ways=("http", "http-new", "grpc"))
    half = _half_hello()
    with ExitStack() as stack:
        running = stack.enter_context(driving(server.endpoints._replace(tls=trust), load))
        began_s, waiting = time.monotonic(), set[socket.socket]()
        for number in range(2 * sockets):
            host, _, port = (server.endpoints.http, server.endpoints.grpc)[number % 2].rpartition(":")
            connection = stack.enter_context(socket.create_connection((host, int(port)), 10))
            connection.sendall(half)
            connection.setblocking(False)
            waiting.add(connection)
        gone_s: list[float] = []
        while waiting and time.monotonic() - began_s < limit_s + _SLACK_S:
            over = {each for each in waiting if _is_over(each)}
            gone_s += [time.monotonic() - began_s] * len(over)
            waiting -= over
            time.sleep(0.05)
        running.stop()
    faults = [
        f"{len(waiting)} handshakes were still open after {limit_s + _SLACK_S:g} s" if waiting else "",
        f"others: {running.driven.not_ok}" if running.driven.not_ok else "",
        server.traceback[:200],
    ]
    return Stalled(
        2 * sockets, min(gone_s, default=0.0), max(gone_s, default=0.0), len(waiting), "; ".join(filter(None, faults))
    )


def _half_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    context = ssl._create_unverified_context()  # noqa: SLF001  # the server is not to be believed, nor heard
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    hello = outgoing.read()
    return hello[: len(hello) // 2]


def _is_over(connection: socket.socket) -> bool:
    try:
        return not connection.recv(4096)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
