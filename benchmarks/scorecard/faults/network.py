"""C7: what a bad network does to connections harms nobody but those whose connections they are."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np
from scorecard.case import Case, Figure, Form, Outcome, Stage
from scorecard.driver import Driven, Load, Running, driving
from scorecard.faults.bad_network import Faults, bad_network
from scorecard.faults.slow_readers import ANSWER_BYTES, slow_readers
from scorecard.http_way import write_request
from scorecard.judging import Question
from scorecard.known import MODEL
from scorecard.server import Endpoints, Server, serving_both

from mlserve.stats import quantile

__all__ = ["CASE"]

_LATENCY_S, _RESET_SHARE = 0.2, 0.01
_NORMAL_PER_S, _LATE_PER_S, _CUT_PER_S = 100.0, 30.0, 150.0
_ROUNDS = {"seconds": 1, "short": 3, "long": 20}
_WINDOW_S = {"seconds": 0.8, "short": 4.0, "long": 15.0}
_READERS, _ASKED = {"seconds": 4, "short": 16, "long": 64}, 220
_HALF_CLOSED = 20
_SETTLE_S = 0.5
_PATIENCE_S = 5.0
_MOST_TIMES = 1.5
# A few dozen requests have no p99 to speak of.
_SHARE = {"seconds": 0.5, "short": 0.99, "long": 0.99}
# Less of a difference than this is the machine's.
_GRACE_S = 0.01
_MOST_HELD_BYTES = 4 << 20

# A server that reads on and on from clients that do not read.
_UNBOUNDED = """
import mlserve.serve.transports.http_replying as replying

replying.ReplyingProtocol.pause_writing = lambda self: None
"""


class _Faulty(NamedTuple):
    """What became of the clients behind the bad network. `resets` is how many connections it cut."""

    late: Driven
    cut: Driven
    resets: int
    half_closed: list[str]
    held_bytes: float


class _Window(NamedTuple):
    from_s: float
    until_s: float


def run(stage: Stage) -> Outcome:
    flags = ("--max-queue-rows", "1000000")
    with serving_both(stage.folder, *flags, plant=_UNBOUNDED) as (sound, broken):
        outcome = _play(sound, stage.form)
        held_bytes = _held_bytes(broken, _READERS["seconds"])
    return Outcome(
        passed=outcome.passed,
        found=outcome.found,
        figures=outcome.figures,
        control=f"a server that reads on from clients that do not read their answers held {held_bytes / 2**20:.1f} MiB "
        f"for each of them",
        control_failed=held_bytes > _MOST_HELD_BYTES,
    )


def _play(server: Server, form: Form) -> Outcome:
    calm, faulty, found = list[_Window](), list[_Window](), list[_Faulty]()
    load = Load(per_s=_NORMAL_PER_S, seconds=3600.0, ways=("http", "grpc"))
    with driving(server.endpoints, load) as normal:
        for _ in range(_ROUNDS[form]):
            time.sleep(_SETTLE_S)
            calm.append(_window(normal, _WINDOW_S[form]))
            with _bad_clients(server, form, found):
                time.sleep(_SETTLE_S)
                faulty.append(_window(normal, _WINDOW_S[form]))
        normal.stop()
    return _judge(server, normal.driven, calm, faulty, found, form)


def _window(normal: Running, seconds: float) -> _Window:
    from_s = normal.now_s
    time.sleep(seconds)
    return _Window(from_s, normal.now_s)


@contextmanager
def _bad_clients(server: Server, form: Form, found: list[_Faulty]) -> Iterator[None]:
    """All of them at once; what became of them is added to `found`."""
    before_bytes, readers, seconds = server.rss_bytes(), _READERS[form], _WINDOW_S[form]
    http, grpc = server.endpoints.http, server.endpoints.grpc
    with ExitStack() as stack:
        # What they ask for before they are held back is work like any other, and is not to be judged here.
        stack.enter_context(slow_readers(http, readers, _ASKED)).wait(_PATIENCE_S)
        far = [stack.enter_context(bad_network(each, Faults(latency_s=_LATENCY_S))) for each in (http, grpc)]
        cutting = stack.enter_context(bad_network(http, Faults(reset_share=_RESET_SHARE)))
        late_load = Load(per_s=_LATE_PER_S, seconds=seconds, ways=("http", "http-new", "grpc"), seed=1)
        late = stack.enter_context(driving(Endpoints(*(each.address for each in far)), late_load))
        cut_load = Load(per_s=_CUT_PER_S, seconds=seconds, ways=("http-new",), seed=2)
        cut = stack.enter_context(driving(Endpoints(cutting.address), cut_load))
        half_closed = _half_close(http)
        yield
        held_bytes = (server.rss_bytes() - before_bytes) / readers
    found.append(_Faulty(late.driven, cut.driven, cutting.resets, half_closed, held_bytes))


def _held_bytes(server: Server, readers: int) -> float:
    """What the server keeps for each of so many slow readers, once that does not grow any more or is too much."""
    before_bytes, held_bytes, quiet = server.rss_bytes(), 0.0, 0
    with slow_readers(server.endpoints.http, readers, _ASKED):
        while quiet < 5 and held_bytes <= _MOST_HELD_BYTES:
            time.sleep(0.2)
            now_bytes = (server.rss_bytes() - before_bytes) / readers
            quiet = 0 if now_bytes > held_bytes * 1.05 else quiet + 1
            held_bytes = max(held_bytes, now_bytes)
    return held_bytes


def _half_close(address: str) -> list[str]:
    """What clients were told that asked, and said at once that they would send no more: a status, or `nothing`."""
    host, _, port = address.rpartition(":")

    def ask(number: int) -> str:
        with socket.create_connection((host, int(port)), _PATIENCE_S) as connection:
            connection.sendall(write_request(Question(number), MODEL, address))
            connection.shutdown(socket.SHUT_WR)
            try:
                return connection.recv(64).decode("latin-1")[9:12] or "nothing"
            except OSError as error:
                return str(error)

    with ThreadPoolExecutor(_HALF_CLOSED) as threads:
        return list(threads.map(ask, range(_HALF_CLOSED)))


def _judge(
    server: Server, normal: Driven, calm: list[_Window], faulty: list[_Window], found: list[_Faulty], form: Form
) -> Outcome:
    share = _SHARE[form]
    name = f"p{100 * share:.0f} of others"
    calm_s, faulty_s = (_quantile_s(normal, share, windows) for windows in (calm, faulty))
    most_s = max(_MOST_TIMES * calm_s, calm_s + _GRACE_S)
    held_bytes = max(one.held_bytes for one in found)
    resets = sum(one.resets for one in found)
    cut = sum(one.cut.count("lost") for one in found)
    told = [each for one in found for each in one.half_closed]
    odd = sorted({each for each in told if each not in ("200", "503")})
    late_s = min(one.late.quantile_s(0.5) for one in found)
    faults = [
        server.traceback,
        f"others: {normal.not_ok}" if normal.not_ok else "",
        f"{name} {1e3 * faulty_s:.1f} ms, {1e3 * calm_s:.1f} ms without faults" if faulty_s > most_s else "",
        f"{held_bytes / 2**20:.1f} MiB held for each slow reader" if held_bytes > _MOST_HELD_BYTES else "",
        *(f"200 ms away: {one.late.not_ok}" for one in found if one.late.not_ok),
        f"the network brought answers after {1e3 * late_s:.0f} ms, and is none" if late_s < 2 * _LATENCY_S else "",
        f"{cut} requests lost, {resets} connections reset" if cut > resets else "",
        *(f"of those that were not reset: {one.cut.examples('wrong', 'error')}" for one in found if _spoilt(one.cut)),
        f"after half a close clients were told: {', '.join(odd)}" if odd else "",
    ]
    fault = "; ".join(filter(None, faults))
    asked = normal.count() + sum(one.late.count() + one.cut.count() for one in found)
    return Outcome(
        passed=not fault,
        found=fault
        or f"{asked} requests, {resets} connections reset, {len(told)} half closed, and "
        f"{_READERS[form]} readers of a kilobyte a second: no traceback, nothing lost that was not cut off",
        figures=(
            Figure(f"{name}, to that without faults", faulty_s / calm_s, "times", "at most 1.5, or 10 ms more"),
            Figure(name, 1e3 * faulty_s, "ms"),
            Figure("held for each slow reader", held_bytes / 2**20, "MiB", "at most 4"),
            Figure("asked for by each slow reader", _ASKED * ANSWER_BYTES / 2**20, "MiB"),
            Figure("connections reset", resets),
            Figure("requests lost by them", cut, limit="at most one a reset"),
            Figure("tracebacks", int(bool(server.traceback)), limit="0"),
        ),
    )


def _spoilt(driven: Driven) -> int:
    return driven.count("wrong", "error", "shed")


def _quantile_s(normal: Driven, share: float, windows: list[_Window]) -> float:
    """Of all that was due in these windows."""
    found = [one.latency_s for one in normal.of("ok") for each in windows if each.from_s <= one.due_s < each.until_s]
    return quantile(np.array(found), share)


CASE = Case(
    id="C7",
    title="A bad network",
    criterion="200 ms of latency, 1% of the connections reset, half-closed ones, readers of 1 kB/s: 0 tracebacks; at "
    "most 4 MiB kept for a slow reader over HTTP; "
    "p99 of other clients (in the shortest form p50) below 1.5 times that without faults, or 10 ms more",
    source="Envoy's resets of streams that take much memory",
    run=run,
)
