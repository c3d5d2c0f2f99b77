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
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec
import uvicorn

from mlserve.errors import MlserveError
from mlserve.serve.access import Access
from mlserve.serve.answering import Answering
from mlserve.serve.application import application
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.catalog import Catalog
from mlserve.serve.dialects import CALLS, SLOW_CALLS, http_dialects
from mlserve.serve.keys import KeyFile
from mlserve.serve.recording.recorder import open_recorder
from mlserve.serve.service import Service
from mlserve.serve.settings import ServeSettings, WorkerReport
from mlserve.serve.transports.http import HttpLane, lane_class
from mlserve.serve.transports.http_replying import sweep_connections
from mlserve.serve.versions.agreement import Agreement
from mlserve.serve.versions.controlling import StoreControl
from mlserve.serve.versions.following import Follower, initially_asked
from mlserve.serve.watching.watched import headers_wanted

if TYPE_CHECKING:
    from mlserve.serve.transports.grpc_fallback import FallbackGrpcServer
    from mlserve.serve.transports.grpc_native import NativeGrpcServer

__all__ = ["main"]

_log = logging.getLogger("mlserve.serve")

# What is told that it is given up answers within this, or is cut.
_GIVE_UP_S = 2
# A change of the keys is noticed within this.
_LOOK_EVERY_S = 0.2
# The last answers are on their way to the socket.
_LAST_WRITES_S = 0.05


async def _serve_until_told(settings: ServeSettings) -> None:
    """Loads the models, serves until told to stop, answers what was accepted, and returns."""
    loop = asyncio.get_running_loop()
    stop = _stop_event(loop)
    turn = LoopTurn(loop)
    keys = KeyFile(Path(settings.keys_file)) if settings.keys_file else None
    service = Service(Catalog(), Access(keys.read() if keys else None), name=settings.server_name)
    follower = _follower(service, settings, turn)
    await _start_unless_told(follower, settings, stop)
    answering = Answering(service, turn)
    grpc_server = _grpc_server(service, settings, answering)
    http_servers = _http_servers(service, settings, answering)
    serving = [asyncio.create_task(server.serve([listener])) for server, listener in http_servers.items()]
    sweeping = [asyncio.create_task(sweep_connections(each.server_state.connections)) for each in http_servers]
    await grpc_server.start()
    while not all(server.started for server in http_servers) and not any(task.done() for task in serving):
        await asyncio.sleep(0.005)
    follows = (follower.follow(), _follow_keys(keys, service), open_recorder(settings.run_directory).follow())
    following = [asyncio.create_task(each) for each in follows]
    _report(WorkerReport(served=tuple((model.signature.name, model.signature.version) for model in service.models)))
    # One that ends by itself has failed: another worker shall take this one's place.
    await asyncio.wait([asyncio.create_task(stop.wait()), *serving, *following], return_when=asyncio.FIRST_COMPLETED)
    service.draining = True
    for task in following:
        if task.done():
            _log.error("the store, the file of keys, or a recording was no longer followed", exc_info=task.exception())
        task.cancel()
    for server in http_servers:
        server.should_exit = True
    await _until_idle(service, settings.limits.drain_s)
    if not service.idle:
        answering.abandon()
        for connection in [each for server in http_servers for each in server.server_state.connections]:
            cast("HttpLane", connection).abandon()
    await asyncio.gather(*serving)
    await asyncio.sleep(_LAST_WRITES_S)
    await grpc_server.stop()
    for task in sweeping:
        task.cancel()
    if not service.idle:
        _log.warning("gave up what still ran after the drain limit of %g s", settings.limits.drain_s)
        os._exit(1)  # the interpreter cannot end while an engine's thread computes
    service.close()
    if follower.busy:
        os._exit(0)  # nor while a version loads


def _follower(service: Service, settings: ServeSettings, turn: LoopTurn) -> Follower:
    """Keeps what is served in step; where clients may load and unload, they do it through the same files."""
    agreement = Agreement(Path(settings.run_directory), initially_asked(settings))
    follower = Follower(service, settings, turn, agreement)
    if settings.model_control == "explicit" and settings.store is not None:
        service.control = StoreControl(service, settings.store.root, agreement, follower)
    return follower


async def _start_unless_told(follower: Follower, settings: ServeSettings, stop: asyncio.Event) -> None:
    """Loads what is to be served; when told to stop meanwhile, the process ends at once."""
    told = asyncio.create_task(stop.wait())
    starting = asyncio.create_task(follower.start(resumes=settings.resumes))
    await asyncio.wait([told, starting], return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        os._exit(0)  # a load cannot be told to stop
    told.cancel()
    await starting


async def _follow_keys(keys: KeyFile | None, service: Service) -> None:
    """Takes the keys of the file as it changes, for ever."""
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        found = keys.changed() if keys is not None else None
        if found is not None:
            service.access.replace(found)


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


def _http_servers(
    service: Service, settings: ServeSettings, answering: Answering
) -> dict[uvicorn.Server, socket.socket]:
    """The server of all pages and, where there is one, that of the management pages; and where each listens."""
    servers = {_http_server(service, settings, answering): _listen(settings.host, settings.http_port)}
    if settings.management_port is not None:
        management = _http_server(service, settings, answering, management=True)
        servers[management] = _listen("127.0.0.1", settings.management_port)
    return servers


def _http_server(
    service: Service, settings: ServeSettings, answering: Answering, *, management: bool = False
) -> uvicorn.Server:
    config = uvicorn.Config(
        application(
            service, answering, http_dialects(service, answering, settings), settings.limits, management=management
        ),
        http=lane_class(service, answering, settings.limits, headers_wanted(settings.watch), infers=not management),
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


def _grpc_server(
    service: Service, settings: ServeSettings, answering: Answering
) -> "NativeGrpcServer | FallbackGrpcServer":
    calls, target = (*CALLS, *SLOW_CALLS), settings.authority(settings.grpc_port)
    if settings.grpc_transport == "native":
        from mlserve.serve.transports.grpc_native import NativeGrpcServer

        return NativeGrpcServer(service, answering, calls, target, settings.limits, settings.run_directory)
    from mlserve.serve.transports.grpc_fallback import FallbackGrpcServer

    return FallbackGrpcServer(service, answering, calls, target, settings.limits)


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
