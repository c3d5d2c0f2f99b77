"""D4: what is larger than allowed is refused before it is kept, however small it came."""

import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import NamedTuple

from scorecard.bad_input.asking import Asker, Heard, connect, read_reply
from scorecard.bad_input.echo import write_echo
from scorecard.bad_input.wrong_requests import INFER, INFER_CALL, RIGHT, v2_message
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.server import Server, serving_both

__all__ = ["CASE"]

_MIB = 1 << 20
_GZIP = 31
_SETTLE_S = 0.3
_CHUNK_GROWTH_MIB, _BOMB_GROWTH_MIB = 1.0, 32.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class _Size(NamedTuple):
    limit_mib: int
    chunks: int
    floods: int
    bombs: int


_SIZES = {
    "seconds": _Size(4, 50_000, 3, 3),
    "short": _Size(64, 1_000_000, 3, 10),
    "long": _Size(64, 1_000_000, 100, 100),
}

# Nothing is too large.
_BOUNDLESS = """
import msgspec
import mlserve.serve.transports.connections as connections
connections.affordable = lambda limits, *_: msgspec.structs.replace(limits, max_request_bytes=1 << 30)
import mlserve.serve.transports.http_bounds as bounds
import mlserve.serve.transports.http as http
import mlserve.serve.transports.grpc_call as grpc_call
bounds.BoundedProtocol._head_fits = lambda self: True
bounds.BoundedProtocol._check_size = lambda self: None
grpc_call.Call.read = lambda *_: None
"""


class _Check(NamedTuple):
    """Something too large, what must be said to it, and how many MiB the server may take for it, on its way: what is
    allowed, and answered, may take what it needs.
    """

    what: str
    ask: Callable[[], Heard]
    wanted: tuple[str, ...]
    most_mib: float


def run(stage: Stage) -> Outcome:
    size = _SIZES[stage.form]
    flags = (write_echo(stage.folder / "echo.onnx"),)
    limit = f"{size.limit_mib}MiB"
    with serving_both(stage.folder, *flags, "--max-request", limit, plant=_BOUNDLESS) as (sound, broken):
        outcome = _play(sound, size)
        spoilt = _play(broken, size._replace(limit_mib=4, floods=0, bombs=0))
    return Outcome(
        passed=outcome.passed,
        found=outcome.found,
        figures=outcome.figures,
        control=f"a server whose limit is a gigabyte, and that looks at no header: {spoilt.found}",
        control_failed=not spoilt.passed,
    )


def _play(server: Server, size: _Size) -> Outcome:
    faults: list[str] = []
    most_mib = 0.0
    with Asker(server.endpoints) as asker:
        for question in RIGHT:
            asker.http(question.path, question.body, question.headers)
        _ask_right(asker)
        checks = list(_checks(server, asker, size.limit_mib * _MIB))
        for check in checks:
            heard, rise_mib = _watched(server, check.ask)
            if check.most_mib < inf:
                most_mib = max(most_mib, rise_mib)
            if heard.status not in check.wanted:
                faults.append(f"{check.what}: {heard.status or 'no answer'} {heard.body[:100]!r}")
            if rise_mib > check.most_mib:
                faults.append(f"{check.what}: {rise_mib:.0f} MiB more at its peak")
        floods_mib = _growth(server, lambda: _flood(server, size.chunks), size.floods)
        bombs_mib = _growth(server, lambda: _bomb(asker, 4 * size.limit_mib * _MIB), size.bombs)
        if floods_mib > _CHUNK_GROWTH_MIB:
            faults.append(f"{size.floods} floods of {size.chunks:,} chunks left {floods_mib:.1f} MiB")
        if bombs_mib > _BOMB_GROWTH_MIB:
            faults.append(f"{size.bombs} bombs left {bombs_mib:.1f} MiB")
        if not _ask_right(asker):
            faults.append("what is right is not answered any more")
    if server.traceback:
        faults.append(server.traceback[:200])
    return Outcome(
        passed=not faults,
        found=f"{len(checks)} sizes at and above their limits ({size.limit_mib} MiB a request): "
        + ("; ".join(faults) or "each told so, or answered where it was just allowed"),
        figures=(
            Figure("sizes tried", len(checks)),
            Figure("peak above what was there", round(most_mib, 1), "MiB", f"{2 * size.limit_mib}"),
            Figure(f"left by {size.floods} x {size.chunks:,} chunks", round(floods_mib, 2), "MiB", "1"),
            Figure(f"left by {size.bombs} bombs", round(bombs_mib, 2), "MiB", "32"),
        ),
    )


def _checks(server: Server, asker: Asker, limit: int) -> Iterator[_Check]:
    allowed_mib, small_mib = 2 * limit / _MIB, 8.0
    exact = RIGHT[0].body.ljust(limit)
    yield _Check("a body of the limit", lambda: asker.http(INFER, exact), ("200",), inf)
    yield _Check("a body of the limit + 1", lambda: asker.http(INFER, exact + b" "), ("413", ""), small_mib)
    yield _Check("a body said to be 2^60", lambda: _raw(server, _head(1 << 60)), ("413",), small_mib)
    for name, wrapping in (("gzip", _GZIP), ("deflate", 15)):
        fits, bomb = _packed(RIGHT[0].body.ljust(limit), wrapping), _packed(b" " * (4 * limit), wrapping)
        coding = {"content-encoding": name}
        yield _Check(f"{name} of the limit", lambda b=fits, c=coding: asker.http(INFER, b, c), ("200",), inf)
        yield _Check(f"a {name} bomb", lambda b=bomb, c=coding: asker.http(INFER, b, c), ("413",), allowed_mib)
    line = b"x: " + b"y" * 65_000 + b"\r\n"
    yield _Check(
        "headers of 65 kB", lambda: _raw(server, _get(line + b"z: " + b"y" * 1000 + b"\r\n")), ("431",), small_mib
    )
    yield _Check("1,000 headers", lambda: _raw(server, _get(b"x: y\r\n" * 1000)), ("431",), small_mib)
    yield _Check("100 headers", lambda: _raw(server, _get(b"x: y\r\n" * 98)), ("200",), small_mib)
    trailers = (
        b"POST %b HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n" % INFER.encode()
    )
    yield _Check("trailers without end", lambda: _raw(server, trailers + b"a: b\r\n" * 200_000), ("413",), small_mib)
    words = struct.pack("<I", 2**32 - 1) + b"word"
    tensor = {"name": "in_BYTES", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": len(words)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    sized = {"inference-header-content-length": str(len(head))}
    yield _Check(
        "a text of 2^32 - 1", lambda: asker.http("/v2/models/echo/infer", head + words, sized), ("400",), small_mib
    )
    # A message of just the limit: the rest of it is filled by its id.
    bare = v2_message(id="i" * (limit // 2))
    filled = v2_message(id="i" * (limit // 2 + limit - bare.ByteSize())).SerializeToString()
    refused = ("RESOURCE_EXHAUSTED",)
    yield _Check("a message of the limit", lambda: asker.grpc(INFER_CALL, filled), ("OK",), inf)
    yield _Check("a message of the limit + 1", lambda: asker.grpc(INFER_CALL, filled + b"\0"), refused, allowed_mib)
    yield _Check("a packed message of 4 limits", lambda: _bomb(asker, 4 * limit), refused, allowed_mib)
    yield _Check("a message said to be 4 GiB", lambda: _say_large(server), refused, small_mib)


def _watched(server: Server, ask: Callable[[], Heard]) -> tuple[Heard, float]:
    """What comes back, and by how many MiB the workers' memory rose above what it was, at its peak."""
    before = 0
    for worker in server.workers:
        with suppress(OSError):
            Path(f"/proc/{worker.pid}/clear_refs").write_text("5")  # the peak is what there is
        before += _memory(worker.pid, "VmRSS")
    heard = ask()
    peak = sum(_memory(worker.pid, "VmHWM") for worker in server.workers)
    return heard, (peak - before) / _MIB


def _memory(pid: int, name: str) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) << 10
    return 0


def _growth(server: Server, ask: Callable[[], object], times: int) -> float:
    """By how many MiB the server has grown after `times`, beyond what the first left."""
    if not times:
        return 0.0
    ask()
    time.sleep(_SETTLE_S)
    before = server.rss_bytes()
    for _ in range(times):
        ask()
    time.sleep(_SETTLE_S)
    return max(0.0, (server.rss_bytes() - before) / _MIB)


def _flood(server: Server, chunks: int) -> Heard:
    head = b"POST %b HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n" % INFER.encode()
    return _raw(server, head + b"1\r\n[\r\n" * chunks + b"0\r\n\r\n")


def _bomb(asker: Asker, size: int) -> Heard:
    import grpc

    return asker.grpc(INFER_CALL, b"\0" * size, compression=grpc.Compression.Gzip)


def _say_large(server: Server) -> Heard:
    """A hundred calls whose messages are said to have 4 GiB; all must end, and with the right status."""
    block = b"\x83\x86" + _literal(b":path", INFER_CALL.encode()) + _literal(b":authority", b"x")
    block += _literal(b"content-type", b"application/grpc") + _literal(b"te", b"trailers")
    calls = range(1, 201, 2)
    with connect(server.endpoints.grpc, 3.0) as connection:
        connection.sendall(_PREFACE + _frame(4, 0, 0, b""))
        for stream in calls:
            connection.sendall(_frame(1, 4, stream, block) + _frame(0, 0, stream, b"\0\xff\xff\xff\xffmore"))
        said = b""
        with suppress(OSError):
            while said.count(b"grpc-status\x018") < len(calls) and (piece := connection.recv(65_536)):
                said += piece
    ended = said.count(b"grpc-status\x018")
    return Heard("RESOURCE_EXHAUSTED" if ended == len(calls) else "", f"{ended} of {len(calls)} refused".encode())


def _literal(name: bytes, value: bytes) -> bytes:
    return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _raw(server: Server, content: bytes) -> Heard:
    """The status of the answer to bytes, which are sent as far as the server lets them."""
    with connect(server.endpoints.http, 20.0) as connection:
        with suppress(OSError):
            connection.sendall(content)
        with suppress(OSError):
            connection.shutdown(1)
        said = read_reply(connection)
    return Heard(said[9:12].decode("ascii", "replace"), said)


def _head(length: int) -> bytes:
    return b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % (INFER.encode(), length)


def _get(fields: bytes) -> bytes:
    return b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n" + fields + b"\r\n"


def _packed(content: bytes, wrapping: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, wrapping)
    return packer.compress(content) + packer.flush()


def _ask_right(asker: Asker) -> bool:
    over_http = asker.http(INFER, RIGHT[0].body).good
    return over_http and asker.grpc(INFER_CALL, v2_message().SerializeToString()).good


CASE = Case(
    id="D4",
    title="Sizes at and above their limits",
    criterion="413, 431, 400 or RESOURCE_EXHAUSTED before memory is taken: a peak of at most twice the limit; after 100"
    " repeats less than 1 MiB more (chunks), 32 MiB (bombs)",
    source="Triton many_chunks and size_limit tests",
    run=run,
)
