"""One worker process: its own engines, batchers and front ends, on ports that all workers share.

    python -m mlserve.serve.worker < settings    (started by the supervisor; not a command for people)

It reads one line of settings from stdin and writes one line to stdout: ready, or what went wrong; what libraries print
goes to stderr. Stdin stays open for as long as the supervisor lives: when it ends, the worker drains, so no worker
outlives its supervisor.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec
import uvicorn

from mlserve.errors import MlserveError, Overloaded
from mlserve.serve.answering import Answering
from mlserve.serve.application import application
from mlserve.serve.audit import Audit, AuditedControl
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.browsers import BrowserGuard
from mlserve.serve.catalog import Catalog
from mlserve.serve.credentials import Credentials
from mlserve.serve.dialects import CALLS, SLOW_CALLS, http_dialects
from mlserve.serve.followed_file import LastGood
from mlserve.serve.life.doors import Doors, bound
from mlserve.serve.life.last_words import Will
from mlserve.serve.life.leaving import LAST_ANSWERS_S, leave, live
from mlserve.serve.life.slate import Slate, open_slate
from mlserve.serve.recording.recorder import open_recorder
from mlserve.serve.service import Service
from mlserve.serve.settings import ServeSettings, WorkerReport
from mlserve.serve.tls import Certificates, listening
from mlserve.serve.transports.connections import affordable
from mlserve.serve.transports.http import lane_class
from mlserve.serve.transports.http_replying import sweep_connections
from mlserve.serve.transports.receiving import Receiving
from mlserve.serve.versions.agreement import Agreement
from mlserve.serve.versions.controlling import StoreControl
from mlserve.serve.versions.following import Follower, initially_asked
from mlserve.serve.versions.noticing import notice_changes
from mlserve.serve.watching.watched import headers_wanted

if TYPE_CHECKING:
    from mlserve.serve.transports.grpc_fallback import FallbackGrpcServer
    from mlserve.serve.transports.grpc_guarded import GuardedGrpcServer
    from mlserve.serve.transports.grpc_native import NativeGrpcServer

__all__ = ["main"]

# So often it is looked whether clients are let in at all doors where they should be.
_LOOK_AT_DOORS_S = 1.0

_log = logging.getLogger("mlserve.serve")


async def _serve_until_told(settings: ServeSettings, reports: BinaryIO) -> None:
    """Loads the models, serves until told to stop, answers what was accepted, and returns."""
    loop = asyncio.get_running_loop()
    doors = Doors(settings.doors, settings.door) if settings.doors else None
    stop, nudged = _supervisors_words(loop)
    turn = LoopTurn(loop)
    certificates = _certificates(settings)
    audit = Audit(settings.access.audit_file)
    credentials = Credentials(settings, audit)
    service = Service(Catalog(), credentials.access, settings.server_name, audit)
    slate = open_slate(settings.slate)
    living = asyncio.create_task(live(slate, service))
    follower = _follower(service, settings, turn)
    await _start_unless_told(follower, settings, stop)
    # What is there now mostly stays. A full collection would walk all of it, for 40 ms, and every request would wait.
    # Not collected first: whoever waits for this worker would wait for that, too.
    gc.freeze()
    answering = Answering(service, turn)
    receiving = Receiving(settings.limits.max_receiving_bytes)
    grpc_server = _grpc_server(service, settings, answering, receiving, certificates)
    http_servers = _http_servers(service, settings, answering, receiving, certificates, doors)
    serving = [asyncio.create_task(server.serve([listener])) for server, listener in http_servers.items()]
    sweeping = [asyncio.create_task(sweep_connections(each.server_state.connections)) for each in http_servers]
    await grpc_server.start()
    while not all(server.started for server in http_servers) and not any(task.done() for task in serving):
        await asyncio.sleep(0.005)
    follows = [follower.follow(), credentials.follow(), open_recorder(settings.run_directory).follow()]
    if certificates is not None:
        follows.append(certificates.follow())
    if settings.store is not None:
        follows.append(notice_changes(Path(settings.store.root), follower.wake))
    following = [asyncio.create_task(each) for each in follows]
    everything = next(iter(http_servers))
    if doors is not None:
        everything.standing_in = asyncio.create_task(_stand_in(everything, doors, slate, nudged))
    endless = [*serving, *following, *filter(None, [everything.standing_in])]
    served = tuple((model.signature.name, model.signature.version) for model in service.models)
    _report(WorkerReport(served=served), reports)
    # One that ends by itself has failed: another worker shall take this one's place.
    await asyncio.wait([asyncio.create_task(stop.wait()), *endless], return_when=asyncio.FIRST_COMPLETED)
    for task in following:
        if task.done():
            _log.error("the store, the file of keys, or a recording was no longer followed", exc_info=task.exception())
        task.cancel()
    hurry = slate.hurry or not stop.is_set()
    answered = await leave(service, answering, [*http_servers], grpc_server, serving, settings, hurry=hurry)
    for task in (living, *sweeping):
        task.cancel()
    if not answered:
        os._exit(1)  # the interpreter cannot end while an engine's thread computes
    service.close()
    if follower.busy:
        os._exit(0)  # nor while a version loads


def _certificates(settings: ServeSettings) -> Certificates | None:
    if settings.tls is None:
        return None
    return Certificates(settings.tls, LastGood.within(settings.run_directory, "tls"), resumes=settings.resumes)


def _follower(service: Service, settings: ServeSettings, turn: LoopTurn) -> Follower:
    """Keeps what is served in step; where clients may load and unload, they do it through the same files."""
    agreement = Agreement(Path(settings.run_directory), initially_asked(settings))
    follower = Follower(service, settings, turn, agreement)
    if settings.model_control == "explicit" and settings.store is not None:
        service.control = AuditedControl(StoreControl(service, settings.store.root, agreement, follower))
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


def main(will: Will | None = None) -> None:
    """Runs one worker to its end; the exit status is 0 after a drain, 2 when it could not start.

    `will` says who speaks for it when it is killed.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    line = sys.stdin.buffer.readline()
    if not line:
        sys.exit("this is started by `mlserve serve`; it reads its settings from stdin")
    reports = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print
    settings = msgspec.json.decode(line, type=ServeSettings)
    settings = msgspec.structs.replace(settings, limits=affordable(settings.limits, len(settings.doors)))
    Overloaded.http_status = settings.batch.overload_status  # a process serves by one set of settings
    if will is not None and settings.tls is None:
        shared = [settings.http_port] if settings.doors else []
        will.write([settings.http_port, settings.management_port or 0], [settings.grpc_port], shared)
        open_slate(settings.slate).executor = will.pid
    try:
        with _runner() as runner:
            runner.run(_serve_until_told(settings, reports))
    except (MlserveError, OSError) as error:
        _report(WorkerReport(fault=str(error)), reports)
        sys.exit(2)


def _runner() -> asyncio.Runner:
    if sys.platform == "win32":
        return asyncio.Runner()
    import uvloop

    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def _supervisors_words(loop: asyncio.AbstractEventLoop) -> tuple[asyncio.Event, asyncio.Event]:
    """One that is set on SIGTERM, and when the supervisor's end of stdin closes; one that is set when the slate says
    anew who is away. Ctrl-C is the supervisor's to handle.
    """
    stop, nudged = asyncio.Event(), asyncio.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    loop.add_signal_handler(signal.SIGTERM, stop.set)

    def look() -> None:
        if os.read(sys.stdin.fileno(), 1024):
            nudged.set()
        else:
            loop.remove_reader(sys.stdin.fileno())
            stop.set()

    loop.add_reader(sys.stdin.fileno(), look)
    return stop, nudged


async def _stand_in(server: "_Server", doors: Doors, slate: Slate, nudged: asyncio.Event) -> None:
    """Lets in who comes to the doors of workers that are away, until its own is lost: then another worker shall take
    this one's place.
    """
    while not doors.lost:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_AT_DOORS_S):
                await nudged.wait()
        nudged.clear()
        await doors.stand_in(slate.away, server.let_in)
    _log.error("the socket at which this worker listened is closed; another worker takes its place")


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the worker decides when it ends. `listening` says how it speaks TLS; `doors`
    are the sockets that it shares, if it does.
    """

    def __init__(self, config: uvicorn.Config, listening: dict[str, Any], doors: Doors | None) -> None:
        super().__init__(config)
        self._listening, self._doors = listening, doors
        self.standing_in: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, which would give a handshake as much time as it likes."""
        self.servers: list[asyncio.Server] = [await self.let_in(each) for each in sockets or []]
        self.started = True

    async def let_in(self, listener: socket.socket) -> asyncio.Server:
        """Accepts the clients that come to `listener`."""
        loop, config = asyncio.get_running_loop(), self.config
        protocol: Any = config.http_protocol_class
        make = partial(protocol, config=config, server_state=self.server_state, app_state=self.lifespan.state)
        return await loop.create_server(make, sock=listener, backlog=config.backlog, **self._listening)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, which could not close what others have copies of."""
        if self._doors is not None:
            for server in self.servers:
                server.close()
            if self.standing_in is not None:
                self.standing_in.cancel()
            self._doors.leave()
        await super().shutdown(sockets)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await self._serve(sockets)


def _http_servers(
    service: Service,
    settings: ServeSettings,
    answering: Answering,
    receiving: Receiving,
    certificates: Certificates | None,
    doors: Doors | None,
) -> "dict[_Server, socket.socket]":
    """The server of all pages and, where there is one, that of the management pages; and where each listens."""
    everything = _http_server(service, settings, answering, receiving, certificates, doors)
    servers = {everything: doors.own() if doors else bound(settings.host, settings.http_port)}
    if settings.management_port is not None:
        management = _http_server(service, settings, answering, receiving, management=True)
        servers[management] = bound("127.0.0.1", settings.management_port)
    return servers


def _http_server(
    service: Service,
    settings: ServeSettings,
    answering: Answering,
    receiving: Receiving,
    certificates: Certificates | None = None,
    doors: Doors | None = None,
    *,
    management: bool = False,
) -> _Server:
    guard = BrowserGuard(
        "127.0.0.1" if management else settings.host,
        open_to_all=service.access.open,
        hosts=settings.access.hosts,
        origins=settings.access.origins,
    )
    config = uvicorn.Config(
        application(
            service, answering, http_dialects(service, answering, settings), settings.limits, management=management
        ),
        http=lane_class(
            service,
            answering,
            settings.limits,
            headers_wanted(settings.watch),
            guard=guard,
            receiving=receiving,
            infers=not management,
        ),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=round(settings.limits.keep_alive_s),
        timeout_graceful_shutdown=round(settings.limits.drain_s) + LAST_ANSWERS_S,
        backlog=2048,
    )
    server = _Server(config, listening(certificates.http if certificates else None, settings.limits.head_s), doors)
    if certificates is not None:
        certificates.http.limit(server.server_state.connections, settings.limits.max_connections)
    return server


def _grpc_server(
    service: Service,
    settings: ServeSettings,
    answering: Answering,
    receiving: Receiving,
    certificates: Certificates | None,
) -> "NativeGrpcServer | GuardedGrpcServer | FallbackGrpcServer":
    calls, target = (*CALLS, *SLOW_CALLS), settings.authority(settings.grpc_port)
    if settings.grpc_transport == "grpcio":
        from mlserve.serve.transports.grpc_fallback import FallbackGrpcServer

        return FallbackGrpcServer(service, answering, calls, target, settings.limits)
    from mlserve.serve.transports.grpc_native import NativeGrpcServer

    if settings.grpc_transport == "native":
        return NativeGrpcServer(service, answering, calls, target, settings.limits, settings.run_directory)
    from mlserve.serve.transports.grpc_guard import GrpcGuard
    from mlserve.serve.transports.grpc_guarded import GuardedGrpcServer
    from mlserve.serve.transports.grpc_lane import GrpcLane

    listener = bound(settings.host, settings.grpc_port)
    native = NativeGrpcServer(service, answering, calls, "", settings.limits, settings.run_directory)
    context = certificates.grpc if certificates else None
    lane = GrpcLane(service, answering.turn, CALLS)
    guard = GrpcGuard(listener, native.path, settings.limits, receiving, context, lane)
    if context is not None:
        context.limit(guard.connections, settings.limits.max_connections)
    return GuardedGrpcServer(native, guard)


def _report(report: WorkerReport, reports: BinaryIO) -> None:
    reports.write(msgspec.json.encode(report) + b"\n")
    reports.flush()


if __name__ == "__main__":
    main()
