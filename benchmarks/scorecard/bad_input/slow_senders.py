"""D5: clients that send a byte now and then are let go in time, and others do not notice them."""

import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

from scorecard.bad_input.asking import connect
from scorecard.bad_input.stalled_handshakes import play_stalled
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.driver import Driven, Load, driving
from scorecard.server import Endpoints, Server, serving_both

__all__ = ["CASE"]

_MOST_TIMES = 1.5


class _Size(NamedTuple):
    sockets: int
    limit_s: float
    per_s: float
    quiet_s: float
    noise_s: float  # what a shared core adds to a p99 of a millisecond by itself
    slack_s: float = 2.0


_SIZES = {
    "seconds": _Size(40, 0.5, 100.0, 0.5, 1.0),
    "short": _Size(200, 5.0, 100.0, 5.0, 0.05),
    "long": _Size(500, 10.0, 200.0, 10.0, 0.02),
}

# Nobody looks whether a connection is late.
_PATIENT = """
import mlserve.serve.transports.http_replying as replying
import mlserve.serve.transports.grpc_inspection as inspection
replying.ReplyingProtocol.sweep = lambda *_: None
inspection.Inspection.look_at_clock = lambda *_: None
"""

_HEAD = b"POST /v2/models/known/infer HTTP/1.1\r\nhost: localhost\r\n"
_CLIENT_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"


class _Kind(NamedTuple):
    """A way to be slow: what comes first, and what is sent now and then."""

    name: str
    over_grpc: bool
    first: bytes
    then: bytes


_KINDS = (
    _Kind("headers", False, _HEAD, b"x"),
    _Kind("bodies", False, _HEAD + b"content-length: 1000\r\n\r\n{", b" "),
    _Kind("chunks", False, _HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n", b"0"),
    _Kind("gRPC greetings", True, _CLIENT_HELLO[:5], b""),
    _Kind("gRPC frames", True, _CLIENT_HELLO + b"\0\0\x40\0\0\0", b""),
)


def run(stage: Stage) -> Outcome:
    size = _SIZES[stage.form]
    flags = ("--receive-timeout", f"{1000 * size.limit_s:g}ms")
    with serving_both(stage.folder, *flags, plant=_PATIENT) as (sound, broken):
        outcome = _play(sound, size)
        spoilt = _play(broken, _Size(5, size.limit_s, 50.0, 0.3, 1.0, 1.0))
    played = Outcome(
        passed=outcome.passed,
        found=outcome.found,
        figures=outcome.figures,
        control=f"a server that never looks at the clock: {spoilt.found}",
        control_failed=not spoilt.passed,
    )
    # In a few seconds there is no time for two servers more: tests/serve/test_tls.py plays handshakes then.
    return played if stage.form == "seconds" else _with_handshakes(played, stage, size)


def _with_handshakes(played: Outcome, stage: Stage, size: _Size) -> Outcome:
    """The same, and as many TLS handshakes that stop half way."""
    folder = stage.folder / "tls"
    folder.mkdir()
    stalled, spoilt = play_stalled(folder, size.sockets // 2, size.limit_s)
    return Outcome(
        passed=played.passed and not stalled.fault,
        found=f"{played.found}; {stalled.made} TLS handshakes that stalled: "
        + (stalled.fault or f"let go after {stalled.first_s:.1f} to {stalled.last_s:.1f} s"),
        figures=(
            *played.figures,
            Figure("stalled handshakes", stalled.made),
            Figure(
                "handshakes let go after, at the latest",
                round(stalled.last_s, 2),
                "s",
                f"{size.limit_s + size.slack_s:g}",
            ),
        ),
        control=f"{played.control}; one that gives handshakes an hour: {spoilt.fault}",
        control_failed=played.control_failed and bool(spoilt.fault),
    )


def _play(server: Server, size: _Size) -> Outcome:
    load = Load(per_s=size.per_s, seconds=size.quiet_s, ways=("http", "grpc"))
    with driving(server.endpoints, load) as quiet:
        time.sleep(0)
    with (
        driving(server.endpoints, Load(per_s=size.per_s, seconds=size.limit_s + 1.0, ways=("http", "grpc"))) as busy,
        _slow(server.endpoints, size.sockets) as (made, wait),
    ):
        latest_s = wait(size.limit_s + size.slack_s)
    return _judge(quiet.driven, busy.driven, size, made, latest_s, server.traceback)


def _judge(
    quiet: Driven, busy: Driven, size: _Size, made: int, closed_s: list[float | None], traceback: str
) -> Outcome:
    still = sum(when is None for when in closed_s)
    latest_s = max((when for when in closed_s if when is not None), default=0.0)
    before_s, after_s = quiet.quantile_s(0.99), busy.quantile_s(0.99)
    disturbed = after_s > _MOST_TIMES * before_s and after_s > before_s + size.noise_s
    faults = [
        f"{still} of {made} were still open after {size.limit_s + size.slack_s:g} s" if still else "",
        f"others waited: p99 {1e3 * before_s:.1f} -> {1e3 * after_s:.1f} ms" if disturbed else "",
        busy.not_ok,
        traceback[:200],
    ]
    told = "; ".join(filter(None, faults))
    return Outcome(
        passed=not told,
        found=f"{made} slow senders ({', '.join(kind.name for kind in _KINDS)}), the limit {size.limit_s:g} s: "
        + (told or f"the last was let go after {latest_s:.1f} s, and nobody else noticed"),
        figures=(
            Figure("slow senders", made),
            Figure("let go after, at the latest", round(latest_s, 2), "s", f"{size.limit_s + size.slack_s:g}"),
            Figure("p99 of others before", round(1e3 * before_s, 2), "ms"),
            Figure("p99 of others meanwhile", round(1e3 * after_s, 2), "ms", "1.5 times"),
        ),
    )


@contextmanager
def _slow(endpoints: Endpoints, each: int) -> Iterator[tuple[int, Callable[[float], list[float | None]]]]:
    """`each` connections of every kind: how many, and what waits for their ends, telling when each came."""
    with ExitStack() as stack:
        began_s = time.monotonic()
        made: list[tuple[socket.socket, _Kind]] = []
        for kind in _KINDS:
            for _ in range(each):
                connection = stack.enter_context(connect(endpoints.grpc if kind.over_grpc else endpoints.http))
                connection.sendall(kind.first)
                connection.setblocking(False)
                made.append((connection, kind))

        def wait(limit_s: float) -> list[float | None]:
            closed_s: dict[socket.socket, float] = {}
            told_s = began_s
            with selectors.DefaultSelector() as selector:
                for connection, _ in made:
                    selector.register(connection, selectors.EVENT_READ)
                while (now_s := time.monotonic()) - began_s < limit_s and selector.get_map():
                    over = {key.fileobj for key, _ in selector.select(0.05) if _is_over(key.fileobj)}
                    if now_s - told_s > limit_s / 10:
                        told_s = now_s
                        over |= {each for each, kind in made if each not in closed_s and not _sends(each, kind.then)}
                    for gone in over:
                        closed_s[gone] = now_s - began_s
                        selector.unregister(gone)
            return [closed_s.get(connection) for connection, _ in made]

        yield len(made), wait


def _is_over(connection: Any) -> bool:
    """Whether what there is to read is a refusal, or the end."""
    with suppress(BlockingIOError):
        try:
            found = connection.recv(65_536)
        except ConnectionError:
            return True
        # What is said before the end is a refusal over HTTP; over HTTP/2 the server greets first.
        return not found or found.startswith(b"HTTP/1.1 408")
    return False


def _sends(connection: socket.socket, content: bytes) -> bool:
    """Whether the server has not closed the connection yet, and takes `content`."""
    with suppress(BlockingIOError):
        try:
            connection.sendall(content)
        except ConnectionError:
            return False
    return True


CASE = Case(
    id="D5",
    title="Slow senders",
    criterion="each let go within the limit + 2 s (10 s for headers); others without error, their p99 below 1.5 times",
    source="xorbitsai/inference#5213; plain uvicorn waits for ever",
    run=run,
)
