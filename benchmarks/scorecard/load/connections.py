"""A9: thousands of idle connections cost others nothing; those above the limit are told so, and all are given back."""

import socket
import time
from contextlib import ExitStack, suppress
from typing import NamedTuple

from scorecard.bad_input.asking import connect
from scorecard.capacity import find_capacity
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.driver import Load, drive
from scorecard.server import Server, serving_both

__all__ = ["CASE"]

_SHARE = 0.5
_MOST_ANSWER_S = 1.0
_SETTLE_S = 5.0
# Log files, and connections of the load that close a moment later.
_FDS_SLACK = 5
# The load's own connections come beside the idle ones.
_BESIDE = 100


class _Size(NamedTuple):
    idle: int
    seconds: float  # of the load; without it only the connections are looked at
    step_s: float
    most_per_s: float = 20_000.0  # what is found beyond it is not asked for


_SIZES = {"seconds": _Size(300, 1.0, 0.2, 400.0), "short": _Size(2000, 10.0, 0.5), "long": _Size(2000, 60.0, 2.0)}

# Nobody counts connections.
_UNCOUNTED = """
import mlserve.serve.transports.http_replying as replying
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
replying.ReplyingProtocol.connection_made = HttpToolsProtocol.connection_made
"""
_ASK = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"


def run(stage: Stage) -> Outcome:
    size = _SIZES[stage.form]
    flags = ("--max-connections", str(size.idle + _BESIDE))
    with serving_both(stage.folder, *flags, plant=_UNCOUNTED) as (sound, broken):
        outcome = _play(sound, size)
        spoilt = _play(broken, size._replace(seconds=0.0))
    return Outcome(
        passed=outcome.passed,
        found=outcome.found,
        figures=outcome.figures,
        control=f"a server that does not count its connections: {spoilt.found}",
        control_failed=not spoilt.passed,
    )


def _play(server: Server, size: _Size) -> Outcome:
    load = Load(per_s=50.0, seconds=0.2, connections=_BESIDE // 2)
    if size.seconds:
        capacity = find_capacity(server.endpoints, load, size.step_s, halvings=1, most_per_s=size.most_per_s)
        per_s = _SHARE * capacity.per_s
        load = Load(per_s=per_s, seconds=size.seconds, connections=_BESIDE // 2)
    time.sleep(0.3)
    fds = server.fds()
    with ExitStack() as stack:
        for _ in range(size.idle):
            idle = stack.enter_context(connect(server.endpoints.http))
            idle.sendall(_ASK)
            idle.recv(4096)
        driven = drive(server.endpoints, load)
        refused, slowest_s = _ask_beyond(server, stack)
    given_back_s = _wait_for_fds(server, fds + _FDS_SLACK)
    faults = [
        driven.not_ok,
        "" if refused else f"{2 * _BESIDE} connections more were all let in",
        f"one beyond the limit waited {slowest_s:.1f} s" if slowest_s > _MOST_ANSWER_S else "",
        f"{server.fds()} files open, {fds} before" if given_back_s is None else "",
        server.traceback[:200],
    ]
    told = "; ".join(filter(None, faults))
    return Outcome(
        passed=not told,
        found=f"{size.idle} idle connections beside {load.per_s:.0f} requests/s: "
        + (told or f"no error; {refused} beyond the limit were refused or closed at once, and all files given back"),
        figures=(
            Figure("idle connections", size.idle),
            Figure("requests not ok", driven.count() - driven.count("ok"), limit="0"),
            Figure("longest wait beyond the limit", round(slowest_s, 3), "s", f"{_MOST_ANSWER_S:g}"),
            Figure("files open more than before", max(0, server.fds() - fds), limit=str(_FDS_SLACK)),
        ),
    )


def _ask_beyond(server: Server, stack: ExitStack) -> tuple[int, float]:
    """Opens more than are allowed: how many were told no, or closed, and how long the slowest of these waited."""
    refused, slowest_s = 0, 0.0
    for _ in range(2 * _BESIDE):
        started_s = time.monotonic()
        said = b""
        with suppress(ConnectionError):
            more = stack.enter_context(connect(server.endpoints.http, 5.0))
            with suppress(ConnectionError):
                more.sendall(_ASK)
            said = _said(more)
        if not said.startswith(b"HTTP/1.1 200"):
            refused += 1
            slowest_s = max(slowest_s, time.monotonic() - started_s)
    return refused, slowest_s


def _said(connection: socket.socket) -> bytes:
    with suppress(OSError):
        return connection.recv(4096)
    return b""


def _wait_for_fds(server: Server, most: int) -> float | None:
    """How long it takes until no more files are open; None for longer than is waited."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < _SETTLE_S:
        if server.fds() <= most:
            return time.monotonic() - began_s
        time.sleep(0.05)
    return None


CASE = Case(
    id="A9",
    title="Idle connections, and more than are allowed",
    criterion="no error beside 2,000 idle ones; beyond the limit 503 or a close, no wait; all files given back",
    source="Envoy's connection limits",
    run=run,
)
