"""A6: what nobody waits for any more is not computed, and its place in the queue is free at once."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import Event

import grpc
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.grpc_way import INFER, write_message
from scorecard.judging import Question
from scorecard.known import MODEL, publish
from scorecard.load.clients import ask_http, body_of, executed
from scorecard.server import Server, serving_known

__all__ = ["CASE"]

_SPOILT = 12
_CLIENTS = {"seconds": _SPOILT, "short": 100, "long": 1000}
_RUN_S = {"seconds": 0.15, "short": 0.2, "long": 0.3}
# What does not fit makes up for those that are run before all have come.
_ROOM = 2 / 3
_AT_ONCE_S = 0.1
_DROPPED_SHARE = 0.99
_TRIES = 3
_SETTLED_S = 5.0

# Whoever leaves is forgotten, and what it asked is run.
_DUTIFUL = """
import mlserve.serve.batching.batcher as batcher

batcher.Batcher.drop = lambda self, ticket, error=None: False
"""


def run(stage: Stage) -> Outcome:
    count = _CLIENTS[stage.form]
    run_s = _RUN_S[stage.form]
    publish(stage.folder / "store", run_s=run_s)
    flags = ("--max-batch-rows", "1", "--max-queue-rows")
    starting = [("guarded", count, ""), ("guarded", _SPOILT, _DUTIFUL), ("grpcio", count, "")]
    if stage.form == "seconds":
        starting.pop()
    with ExitStack() as stack, ThreadPoolExecutor(3) as threads:
        servers = [
            threads.submit(
                stack.enter_context,
                serving_known(stage.folder, *flags, _room(clients), "--grpc-transport", grpc_by, plant=plant),
            )
            for grpc_by, clients, plant in starting
        ]
        guarded, dutiful, *others = [each.result() for each in servers]
        found = {name: _play(guarded, way, count, run_s) for name, way in _WAYS.items()}
        for grpcio in others:
            found["gRPC by grpcio"] = _play(grpcio, _grpc_calls, count, run_s)
            found["gRPC stream by grpcio"] = _play(grpcio, _grpc_streams, count, run_s)
        spoilt = _leave(dutiful, _http_connections, _SPOILT, run_s)
        tracebacks = "".join(each.traceback for each in (guarded, *others))
    faults = [f"{name}: {each.fault}" for name, each in found.items() if each.fault]
    gone = sum(each.left for each in found.values())
    ran = sum(each.ran for each in found.values())
    return Outcome(
        passed=not faults and not tracebacks,
        found="; ".join(faults) + tracebacks or f"{gone} left, by {', '.join(found)}: {ran} of theirs were run",
        figures=(
            Figure("left while they waited", gone),
            Figure("never run", 100 * (1 - ran / max(gone, 1)), "%", "at least 99"),
            Figure("slowest place to be free", 1e3 * max(each.free_s for each in found.values()), "ms", "at most 100"),
        ),
        control=f"a server that forgets who has left: {spoilt.fault or 'nothing was found'}",
        control_failed=bool(spoilt.fault),
    )


class _Found:
    """`left` clients went away; `ran` of what they had asked was run; after `free_s` there was room for others."""

    def __init__(self, left: int, ran: int, free_s: float) -> None:
        self.left, self.ran, self.free_s = left, ran, free_s
        self.fault = ", ".join(
            [
                *([f"{ran} of {left} were run"] if ran > (1 - _DROPPED_SHARE) * left else []),
                *([f"there was room after {1e3 * free_s:.0f} ms"] if free_s > _AT_ONCE_S else []),
            ]
        )


def _play(server: Server, way: "Way", count: int, run_s: float) -> _Found:
    """Played again where all is well but for the time: other work on the machine takes that, too."""
    for _ in range(_TRIES):
        found = _leave(server, way, count, run_s)
        if not found.fault.startswith("there was room"):
            break
    return found


def _leave(server: Server, way: "Way", count: int, run_s: float) -> _Found:
    """Fills the queue behind a run, lets all leave at once, and sees who is let in, and what has been run at last."""
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(ask_http, server, 0)
        time.sleep(run_s / 5)
        with way(server, count):
            _until_full(server)
            before = executed(server)
        left_s = time.perf_counter()
        free_s = _until_free(server, left_s)
        running.result()
    # One ran when they left, and another one of ours was let in.
    return _Found(int(_room(count)), max(0, _settled(server, run_s) - before - 2), free_s)


def _room(count: int) -> str:
    """How many of so many clients find room."""
    return str(round(_ROOM * count))


def _until_full(server: Server) -> None:
    """Waits until somebody who comes is refused."""
    ends_s = time.monotonic() + _SETTLED_S
    while _knock(server) != "503":
        if time.monotonic() > ends_s:
            return


def _knock(server: Server) -> str:
    """The status of a request that leaves at once if it is let in: one with no time to wait."""
    return ask_http(server, 2, parameters={"timeout": 1}).status


def _until_free(server: Server, left_s: float) -> float:
    """How long it took until a request was let in, which is answered."""
    while time.perf_counter() - left_s < _SETTLED_S:
        asked_s = time.perf_counter()
        if _knock(server) != "503":
            assert ask_http(server, 3).status == "200"
            return asked_s - left_s
    return _SETTLED_S


def _settled(server: Server, run_s: float) -> int:
    """How many rows have been run, once no more are."""
    found, changed_s = executed(server), time.monotonic()
    while time.monotonic() < changed_s + 2.5 * run_s:
        time.sleep(0.1)
        before, found = found, executed(server)
        if found != before:
            changed_s = time.monotonic()
    return found


@contextmanager
def _http_connections(server: Server, count: int) -> Iterator[None]:
    host, _, port = server.endpoints.http.rpartition(":")
    with ExitStack() as stack:
        for number in range(count):
            connection = stack.enter_context(socket.create_connection((host, int(port))))
            body = body_of(number).encode()
            head = f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nhost: {server.endpoints.http}\r\n"
            connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        yield


@contextmanager
def _http_pages(server: Server, count: int) -> Iterator[None]:
    """Over the path whose body names the model, which another part of the server answers."""
    host, _, port = server.endpoints.http.rpartition(":")
    with ExitStack() as stack:
        for number in range(count):
            connection = stack.enter_context(socket.create_connection((host, int(port))))
            body = b'{"model": "%b", "inputs": {"x": [[%d, 1]]}}' % (MODEL.encode(), number)
            head = f"POST /v1/predict HTTP/1.1\r\nhost: {server.endpoints.http}\r\n"
            connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        yield


@contextmanager
def _grpc_calls(server: Server, count: int) -> Iterator[None]:
    with grpc.insecure_channel(server.endpoints.grpc) as channel:
        infer = channel.unary_unary(INFER)
        calls = [infer.future(write_message(Question(number), MODEL)) for number in range(count)]
        yield
        for call in calls:
            call.cancel()


@contextmanager
def _grpc_streams(server: Server, count: int) -> Iterator[None]:
    """Streams of ten requests each, all of them waiting."""
    each, gone = 10, Event()

    def messages(first: int) -> Iterator[bytes]:
        for number in range(first, min(first + each, count)):
            yield write_message(Question(number), MODEL)
        gone.wait()

    with grpc.insecure_channel(server.endpoints.grpc) as channel:
        infer = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        calls = [infer(messages(first)) for first in range(0, count, each)]
        yield
        for call in calls:
            call.cancel()
        gone.set()


Way = Callable[[Server, int], AbstractContextManager[None]]
_WAYS: dict[str, Way] = {
    "HTTP": _http_connections,
    "HTTP by body": _http_pages,
    "gRPC": _grpc_calls,
    "gRPC stream": _grpc_streams,
}


CASE = Case(
    id="A6",
    title="Clients that leave while they wait",
    criterion="of what they asked, at least 99% is never run, and others find room within 100 ms; over HTTP, gRPC and "
    "gRPC streams, on both transports",
    source="Triton's L0_request_cancellation",
    run=run,
)
