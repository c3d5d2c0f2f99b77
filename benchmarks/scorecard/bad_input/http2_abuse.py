"""D6: a client that abuses HTTP/2 is stopped, and the others do not notice it."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from scorecard.bad_input.asking import connect
from scorecard.bad_input.wrong_requests import INFER_CALL, v2_message
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.driver import Load, driving
from scorecard.server import Server, serving_both

__all__ = ["CASE"]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0, 1, 2, 3, 4, 6, 7
_END_STREAM, _END_HEADERS = 1, 4
_REFUSED, _CALM, _CANCEL = 7, 11, 8
_EXHAUSTED = b"grpc-status\x018"
_MOST_GROWTH_MIB = 64.0


class _Size(NamedTuple):
    streams: int
    frames: int
    patience_s: float
    limit_mib: int


_SIZES = {
    "seconds": _Size(10_000, 20_000, 2.0, 4),
    "short": _Size(10_000, 200_000, 5.0, 4),
    "long": _Size(50_000, 2_000_000, 20.0, 4),
}

# Frames that ask for work are free, and no message is too large.
_TAKES_ALL = """
import mlserve.serve.transports.grpc_call as grpc_call
import mlserve.serve.transports.grpc_inspection as inspection
inspection.Inspection._count_idle = lambda *_: None
grpc_call.Call.read = lambda *_: None
"""


class _Attack(NamedTuple):
    """What is sent until the server ends it; `ended` says of what it has said whether it did."""

    name: str
    frames: Iterator[bytes]
    ended: Callable[[bytes], bool]


def run(stage: Stage) -> Outcome:
    size = _SIZES[stage.form]
    flags = ("--max-request", f"{size.limit_mib}MiB")
    with serving_both(stage.folder, *flags, plant=_TAKES_ALL) as (sound, broken):
        outcome = _play(sound, size)
        spoilt = _play(broken, size._replace(streams=2000, frames=5000, patience_s=1.0))
    return Outcome(
        passed=outcome.passed,
        found=outcome.found,
        figures=outcome.figures,
        control=f"a server that counts no frames and takes any message: {spoilt.found}",
        control_failed=not spoilt.passed,
    )


def _play(server: Server, size: _Size) -> Outcome:
    faults, ends = [], []
    before = server.rss_bytes()
    peak = before
    with driving(server.endpoints, Load(per_s=50.0, seconds=120.0, ways=("grpc",))) as others:
        for attack in _attacks(size):
            began_s = time.monotonic()
            ended = _play_attack(server, attack, size.patience_s)
            ends.append(f"{attack.name} after {time.monotonic() - began_s:.1f} s")
            peak = max(peak, server.rss_bytes(), _peak_bytes(server))
            if not ended:
                faults.append(f"{attack.name} went on for {size.patience_s:g} s")
        others.stop()
    growth_mib = (peak - before) / 2**20
    if growth_mib > _MOST_GROWTH_MIB:
        faults.append(f"{growth_mib:.0f} MiB more at its peak")
    told = "; ".join(filter(None, [*faults, others.driven.not_ok, server.traceback[:200]]))
    return Outcome(
        passed=not told,
        found=told or f"ended: {', '.join(ends)}; {others.driven.count('ok')} requests of another client all answered",
        figures=(
            Figure("attacks that went on", len(faults), limit="0"),
            Figure("others' requests not ok", others.driven.count() - others.driven.count("ok"), limit="0"),
            Figure("others' p99", round(1e3 * others.driven.quantile_s(0.99), 1), "ms"),
            Figure("peak above what was there", round(growth_mib, 1), "MiB", f"{_MOST_GROWTH_MIB:g}"),
        ),
    )


def _attacks(size: _Size) -> Iterator[_Attack]:
    opened = _headers()
    whole = _message(v2_message().SerializeToString())
    over = (size.limit_mib << 20) + 1

    def goes_away(said: bytes) -> bool:
        return any(kind == _GOAWAY for kind, *_ in _frames(said))

    resets = (opened(n) + _frame(_RST_STREAM, 0, n, _CANCEL.to_bytes(4)) for n in _numbers(size.streams))
    yield _Attack("rapid reset", resets, goes_away)
    asked = (
        opened(n) + _frame(_DATA, _END_STREAM, n, whole) + _frame(_RST_STREAM, 0, n, _CANCEL.to_bytes(4))
        for n in _numbers(size.streams)
    )
    yield _Attack("reset of whole requests", asked, goes_away)
    for name, kind, payload in (
        ("a ping flood", _PING, b"12345678"),
        ("a settings flood", _SETTINGS, b""),
        ("a priority flood", _PRIORITY, b"\0\0\0\0\1"),
    ):
        stream = 1 if kind == _PRIORITY else 0
        yield _Attack(name, (_frame(kind, 0, stream, payload) for _ in range(size.frames)), goes_away)
    empty = (opened(1) if n == 1 else _frame(_DATA, 0, 1, b"") for n in range(1, size.frames))
    yield _Attack("empty DATA", empty, goes_away)
    yield _Attack("10^4 streams", (opened(n) for n in _numbers(size.streams)), _refuses)
    pieces = (_frame(_DATA, 0, 1, b"\0" * 16_384) for _ in range(over // 16_384 + 1))
    head = opened(1) + _frame(_DATA, 0, 1, b"\0" + over.to_bytes(4))
    yield _Attack("a message too large", _chained(head, pieces), lambda said: _EXHAUSTED in said)
    yield _Attack("headers without end", _endless_headers(size.frames), goes_away)


def _refuses(said: bytes) -> bool:
    """Whether streams beyond those allowed were refused, or the connection was ended."""
    return any(
        kind == _GOAWAY or (kind == _RST_STREAM and payload[:4] == _REFUSED.to_bytes(4))
        for kind, _, payload in _frames(said)
    )


def _chained(first: bytes, more: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from more


def _endless_headers(count: int) -> Iterator[bytes]:
    """One header block in ever more frames (the CONTINUATION flood)."""
    yield _frame(_HEADERS, 0, 1, b"\x83\x86")
    for number in range(count):
        name = b"x%d" % number
        yield _frame(9, 0, 1, b"\0" + bytes((len(name),)) + name + b"\x01y")


def _play_attack(server: Server, attack: _Attack, patience_s: float) -> bool:
    """Whether the server ended it, by a word or by closing, before the patience was over or everything was sent."""
    deadline_s = time.monotonic() + patience_s
    said, closed = b"", False
    with connect(server.endpoints.grpc, 0.2) as connection:
        connection.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, b""))
        batch: list[bytes] = []
        with suppress(ConnectionError):
            for content in _chained(b"", attack.frames):
                batch.append(content)
                if len(batch) < 100:
                    continue
                said += _send(connection, b"".join(batch), deadline_s)
                batch.clear()
                if attack.ended(said) or time.monotonic() > deadline_s:
                    break
            else:
                said += _send(connection, b"".join(batch), deadline_s)
            while not attack.ended(said) and time.monotonic() < deadline_s:
                piece = _receive(connection)
                said += piece or b""
                if piece == b"":
                    closed = True
                    break
            return closed or attack.ended(said)
    return True  # it was reset


def _send(connection: socket.socket, content: bytes, deadline_s: float) -> bytes:
    """Sends all of it, reading meanwhile, or as much as goes until the deadline."""
    said, view = b"", memoryview(content)
    while view and time.monotonic() < deadline_s:
        with suppress(TimeoutError, BlockingIOError):
            view = view[connection.send(view) :]
        connection.setblocking(False)
        with suppress(BlockingIOError):
            said += connection.recv(1 << 20)
        connection.settimeout(0.2)
    return said


def _receive(connection: socket.socket) -> bytes | None:
    """What the server says; b"" for its end, None for nothing yet."""
    try:
        return connection.recv(65_536)
    except TimeoutError:
        return None


def _numbers(count: int) -> Iterator[int]:
    return iter(range(1, 2 * count, 2))


def _headers() -> Callable[[int], bytes]:
    """Makes the HEADERS of a call by its stream's number."""
    block = b"\x83\x86" + b"".join(
        b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value
        for name, value in (
            (b":path", INFER_CALL.encode()),
            (b":authority", b"x"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        )
    )
    return lambda stream: _frame(_HEADERS, _END_HEADERS, stream, block)


def _message(payload: bytes) -> bytes:
    return b"\0" + len(payload).to_bytes(4) + payload


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _frames(said: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, stream, payload) of every whole frame."""
    position = 0
    while position + 9 <= len(said):
        end = position + 9 + int.from_bytes(said[position : position + 3])
        yield said[position + 3], int.from_bytes(said[position + 5 : position + 9]), said[position + 9 : end]
        position = end


def _peak_bytes(server: Server) -> int:
    """The highest that the workers' memory ever was, with the supervisor's as it is."""
    total = server.supervisor.memory_info().rss
    for worker in server.workers:
        with suppress(OSError):
            text = Path(f"/proc/{worker.pid}/status").read_text()
            total += int(text.partition("VmHWM:")[2].split()[0]) << 10
    return total


CASE = Case(
    id="D6",
    title="Abuse of HTTP/2",
    criterion="the connection ended, or the calls refused; others unaffected; memory bounded",
    source="gRPC's keepalive limits; Envoy's 100 streams; CVE-2023-44487 (rapid reset)",
    run=run,
)
