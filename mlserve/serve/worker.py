"""One worker process: its own engines, batchers and front ends, on ports that all workers share.

    python -m mlserve.serve.worker < settings    (started by the supervisor; not a command for people)

It reads one line of settings from stdin and writes one line to stdout: ready, or what went wrong. Stdin stays open for
as long as the supervisor lives: when it ends, the worker drains, so no worker outlives its supervisor.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import msgspec
import uvicorn

from mlserve.errors import MlserveError
from mlserve.serve.answering import Answering
from mlserve.serve.application import application
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.catalog import Catalog
from mlserve.serve.dialects import CALLS, http_dialects
from mlserve.serve.loading import load_model
from mlserve.serve.service import Service
from mlserve.serve.settings import ServeSettings, WorkerReport
from mlserve.serve.transports.http import HttpLane, lane_class, sweep_connections

if TYPE_CHECKING:
    from mlserve.serve.transports.grpc_fallback import FallbackGrpcServer
    from mlserve.serve.transports.grpc_native import NativeGrpcServer

__all__ = ["main"]

_log = logging.getLogger("mlserve.serve")

# What is told that it is given up answers within this, or is cut.
_GIVE_UP_S = 2
# The last answers are on their way to the socket.
_LAST_WRITES_S = 0.05


async def _serve_until_told(settings: ServeSettings) -> None:
    """Loads the models, serves until told to stop, answers what was accepted, and returns."""
    loop = asyncio.get_running_loop()
    stop = _stop_event(loop)
    turn = LoopTurn(loop)
    models = [load_model(source, settings, turn) for source in settings.models]
    found = {(model.signature.name, model.signature.version): model for model in models}
    service = Service(Catalog(found, settings.defaults), name=settings.server_name)
    answering = Answering(service, turn)
    grpc_server = _grpc_server(service, settings, turn)
    http_server = _http_server(service, settings, answering)
    serving = asyncio.create_task(http_server.serve([_listen(settings.host, settings.http_port)]))
    sweeping = asyncio.create_task(sweep_connections(http_server.server_state.connections))
    await grpc_server.start()
    while not http_server.started and not serving.done():
        await asyncio.sleep(0.005)
    _report(WorkerReport())
    await asyncio.wait([asyncio.create_task(stop.wait()), serving], return_when=asyncio.FIRST_COMPLETED)
    service.draining = True
    http_server.should_exit = True
    await _until_idle(service, settings.limits.drain_s)
    if not service.idle:
        answering.abandon()
        for connection in list(http_server.server_state.connections):
            cast("HttpLane", connection).abandon()
    await serving
    await asyncio.sleep(_LAST_WRITES_S)
    await grpc_server.stop()
    sweeping.cancel()
    if not service.idle:
        _log.warning("gave up what still ran after the drain limit of %g s", settings.limits.drain_s)
        os._exit(1)  # the interpreter cannot end while an engine's thread computes
    service.close()


def main() -> None:
    """Runs one worker to its end; the exit status is 0 after a drain, 2 when it could not start."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    line = sys.stdin.buffer.readline()
    if not line:
        sys.exit("this is started by `mlserve serve`; it reads its settings from stdin")
    settings = msgspec.json.decode(line, type=ServeSettings)
    try:
        with _runner() as runner:
            runner.run(_serve_until_told(settings))
    except (MlserveError, OSError) as error:
        _report(WorkerReport(fault=str(error)))
        sys.exit(2)


def _runner() -> asyncio.Runner:
    if sys.platform == "win32":
        return asyncio.Runner()
    import uvloop

    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def _stop_event(loop: asyncio.AbstractEventLoop) -> asyncio.Event:
    """Set on SIGTERM, and when the supervisor's end of stdin closes. Ctrl-C is the supervisor's to handle."""
    stop = asyncio.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    loop.add_signal_handler(signal.SIGTERM, stop.set)

    def look() -> None:
        if not os.read(sys.stdin.fileno(), 1024):
            loop.remove_reader(sys.stdin.fileno())
            stop.set()

    loop.add_reader(sys.stdin.fileno(), look)
    return stop


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the worker decides when it ends."""

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await self._serve(sockets)


def _http_server(service: Service, settings: ServeSettings, answering: Answering) -> uvicorn.Server:
    config = uvicorn.Config(
        application(service, answering, http_dialects(service, answering, settings)),
        http=lane_class(service, answering, settings.limits),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=round(settings.limits.keep_alive_s),
        timeout_graceful_shutdown=round(settings.limits.drain_s) + _GIVE_UP_S,
        backlog=2048,
    )
    return _Server(config)


def _grpc_server(service: Service, settings: ServeSettings, turn: LoopTurn) -> "NativeGrpcServer | FallbackGrpcServer":
    if settings.grpc_transport == "native":
        from mlserve.serve.transports.grpc_native import NativeGrpcServer

        return NativeGrpcServer(service, CALLS, settings.authority(settings.grpc_port), settings.limits)
    from mlserve.serve.transports.grpc_fallback import FallbackGrpcServer

    return FallbackGrpcServer(service, CALLS, settings.authority(settings.grpc_port), settings.limits, turn)


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    return listener


async def _until_idle(service: Service, limit_s: float) -> None:
    """Waits until every accepted request is answered, or `limit_s` is over."""
    with suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            while not service.idle:
                await asyncio.sleep(0.01)


def _report(report: WorkerReport) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
