"""The supervisor: binds the ports, starts the workers, replaces those that die or hang, and ends them all."""

import errno
import logging
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from types import FrameType

import msgspec

from mlserve.errors import EngineError, UsageError
from mlserve.model.private_copy import remove_copies
from mlserve.serve.common_folder import CommonFolder, open_common_folder
from mlserve.serve.life.breaker import Breaker, culprit
from mlserve.serve.life.doors import open_doors, shut
from mlserve.serve.life.process import WorkerProcess
from mlserve.serve.life.shedding import Shedding
from mlserve.serve.life.sockets_folder import remove_sockets_folders
from mlserve.serve.settings import GrpcTransport, ServeSettings, WorkerReport
from mlserve.serve.versions.agreement import bury

__all__ = ["Endpoints", "resolve_host", "run_server"]

# A worker that dies at once, again and again, is started again ever more slowly.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0
_HEALTHY_AFTER_S = 2.0
_LOOK_EVERY_S, _LOOK_AT_THE_END_S = 0.1, 0.02
_STOP_MARGIN_S = 5.0
# glibc's malloc_trim leaves the end of every arena but the first, where a model's weights may have been.
_ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}

_log = logging.getLogger("mlserve.serve")


class Endpoints(msgspec.Struct, frozen=True):
    """Where a server listens, and what it serves at first, by name and version. `management` is empty for none."""

    http: str
    grpc: str
    workers: tuple[int, ...]
    management: str = ""
    served: tuple[tuple[str, str], ...] = ()


def run_server(settings: ServeSettings, on_ready: Callable[[Endpoints], None]) -> None:
    """Serves until SIGTERM or Ctrl-C, then drains and returns.

    `on_ready` is called once every worker answers. Raises UsageError for a port in use or an address that is not this
    machine's, and EngineError, naming the cause, when the models cannot be loaded.
    """
    address = resolve_host(settings.host)
    with (
        _reserve(address, settings.http_port, "--http-port") as http,
        _reserve(address, settings.grpc_port, "--grpc-port") as grpc,
        _reserve_management(settings.management_port) as management_port,
        open_common_folder() as folder,
        open_doors((address, http.getsockname()[1]), settings.workers) as doors,
    ):
        supervisor = _Supervisor(
            folder,
            doors,
            msgspec.structs.replace(
                settings,
                host=address,
                http_port=http.getsockname()[1],
                grpc_port=grpc.getsockname()[1],
                management_port=management_port,
                grpc_transport=_grpc_transport(settings),
                run_directory=str(folder.path),
                doors=tuple(door.fileno() for door in doors),
            ),
        )
        try:
            if supervisor.start():
                on_ready(supervisor.endpoints())
                supervisor.watch()
        finally:
            supervisor.stop()


class _Slot:
    """The place of one worker: who has it, or when the next one shall."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.worker: WorkerProcess | None = None
        self.pause_s, self.start_at_s = 0.0, 0.0
        self.hung = False


class _Supervisor:
    def __init__(self, folder: CommonFolder, doors: Sequence[socket.socket], settings: ServeSettings) -> None:
        self._folder, self._doors, self._settings = folder, doors, settings
        self._served: tuple[tuple[str, str], ...] = ()
        self._slots = [_Slot(number) for number in range(settings.workers)]
        self._stopping = self._hurry = False
        self._executors: list[int] = []
        self._breaker = Breaker(settings.life.deaths_to_hold)
        self._shedding = Shedding(settings.life.memory_share)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    @property
    def _workers(self) -> list[WorkerProcess]:
        return [slot.worker for slot in self._slots if slot.worker is not None]

    def start(self) -> bool:
        """Starts every worker and waits until all answer; False when a signal came first.

        Raises EngineError when a worker cannot serve.
        """
        for slot in self._slots:
            if not self._stopping:
                slot.worker = self._spawn(slot, self._settings)
        while not self._stopping and any(worker.served_s is None for worker in self._workers):
            self._await_reports()
            for worker in self._workers:
                ended = worker.ended  # before its last words are read
                report = worker.report()
                if report is None and ended and worker.served_s is None:
                    report = WorkerReport(
                        f"a worker ended with {worker.cause()} before it served; its messages are above"
                    )
                if report is not None and not self._stopping:
                    if report.fault:
                        raise EngineError(report.fault)
                    self._served = report.served
        return not self._stopping

    def endpoints(self) -> Endpoints:
        """Where the workers listen."""
        settings = self._settings
        return Endpoints(
            http=f"{'https' if settings.tls else 'http'}://{settings.authority(settings.http_port)}",
            grpc=settings.authority(settings.grpc_port),
            workers=tuple(worker.pid for worker in self._workers),
            management="" if settings.management_port is None else f"http://127.0.0.1:{settings.management_port}",
            served=self._served,
        )

    def watch(self) -> None:
        """Returns when a signal has come; until then, puts a new worker in the place of each that dies or hangs.

        Nothing here waits for a worker, so that one that loads for minutes keeps nobody from being watched.
        """
        while not self._stopping:
            now_s = time.monotonic()
            if self._doors:
                self._tell_away()
            for slot in self._slots:
                if not self._stopping:
                    self._look(slot, now_s)
            serving = [worker for worker in self._workers if worker.served_s is not None]
            if not self._breaker.quiet:
                for change in self._breaker.look({worker.pid: worker.slate.runs() for worker in serving}, now_s):
                    _log.warning("%s", change)
                    self._hold()
            self._shedding.look(serving, now_s)
            self._executors = [each for each in self._executors if _is_ours(each)]
            self._await_reports()

    def stop(self) -> None:
        """Ends every worker: drained if it can, killed if it does not end in time."""
        self._terminate()
        deadline_s = time.monotonic() + self._settings.limits.drain_s + _STOP_MARGIN_S
        self._shut_doors()
        while time.monotonic() < deadline_s and not all(worker.ended for worker in self._workers):
            time.sleep(_LOOK_AT_THE_END_S)
            self._shut_doors()
        for worker in self._workers:
            try:
                worker.process.wait(0.1)
            except subprocess.TimeoutExpired:
                _log.warning("worker %d did not end in time and is killed", worker.pid)
                worker.kill()
                worker.process.wait()
            with suppress(OSError):
                remove_sockets_folders(str(self._folder.path), worker.pid)  # it may be outside of our folder
            worker.close()
        self._shut_doors()

    def _spawn(self, slot: _Slot, settings: ServeSettings) -> WorkerProcess:
        settings = msgspec.structs.replace(settings, door=slot.number)
        environment = {**_ONE_ARENA, **os.environ, "PROMETHEUS_MULTIPROC_DIR": str(self._folder.metrics)}
        worker = WorkerProcess(settings, self._folder.lock, environment)
        worker.slate.hold(self._breaker.held(worker.pid))
        return worker

    def _await_reports(self) -> None:
        """Waits for a moment, or until a starting worker has something to say, or one ends."""
        waiting = select.poll()
        for worker in self._workers:
            if worker.end is not None and worker.process.returncode is None:
                waiting.register(worker.end, select.POLLIN)
            if worker.served_s is None and not worker.ended:
                waiting.register(worker.output, select.POLLIN)
        waiting.poll(_LOOK_EVERY_S * 1000)

    def _look(self, slot: _Slot, now_s: float) -> None:
        worker = slot.worker
        if worker is None:
            if now_s >= slot.start_at_s:
                self._start_again(slot)
            return
        report = worker.report()
        if report is not None and report.fault:
            _log.error("the new worker does not serve: %s", report.fault)
        if worker.ended:
            self._bury(slot, worker, now_s)
        elif self._settings.life.hang_after_s and worker.is_hung(self._settings.life.hang_after_s, now_s):
            # One that somebody has stopped is no worse for what it ran.
            slot.hung = not worker.stopped
            _log.warning("worker %d does not answer and is killed", worker.pid)
            worker.kill()

    def _start_again(self, slot: _Slot) -> None:
        try:
            slot.worker = self._spawn(slot, msgspec.structs.replace(self._settings, resumes=True))
        except OSError as error:  # no process, or no file, to be had
            slot.pause_s = min(max(2 * slot.pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            slot.start_at_s = time.monotonic() + slot.pause_s
            _log.error("no worker can be started: %s; tried again in %.2g s", error.strerror, slot.pause_s)

    def _bury(self, slot: _Slot, worker: WorkerProcess, now_s: float) -> None:
        """Makes room for another, soon where this one had served for a while."""
        cause = worker.cause()
        _log.warning("worker %d ended with status %s; another takes its place", worker.pid, worker.process.returncode)
        with suppress(OSError):  # what it has agreed to is no worse than lost
            bury(self._folder.path, worker.pid)
        with suppress(OSError):  # at the latest they go with the server
            remove_copies(worker.pid, self._folder.path)  # of a model that it was loading; they may be in memory
            remove_sockets_folders(str(self._folder.path), worker.pid)
        blamed = culprit(worker.last_runs()) if slot.hung or worker.by_itself() else None
        if blamed is not None:
            why = "it hung" if slot.hung else cause
            pause_s = self._breaker.died(blamed, why, now_s)
            _log.warning("it was running %s@%s", *blamed)
            if pause_s is not None:
                _log.error("%s@%s is held back for %g s: workers died of it (%s)", *blamed, pause_s, why)
                self._hold()
        healthy = worker.served_s is not None and now_s - worker.served_s > _HEALTHY_AFTER_S
        slot.pause_s = 0.0 if healthy else min(max(2 * slot.pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        slot.start_at_s, slot.hung, slot.worker = now_s + slot.pause_s, False, None
        self._executors.append(worker.slate.executor)
        worker.close()

    def _tell_away(self) -> None:
        """Lets those that serve stand in for the others: first of all, for clients wait."""
        serving = {
            slot.number: slot.worker
            for slot in self._slots
            if slot.worker is not None
            and slot.worker.served_s is not None
            and not slot.worker.faulty
            and not slot.worker.ended
        }
        away = sum(1 << slot.number for slot in self._slots if slot.number not in serving)
        for worker in serving.values():
            worker.tell_away(away)

    def _shut_doors(self) -> None:
        """Those where nobody lets anybody in any more: who leaves shuts its own, who was killed cannot, and a
        successor that does not serve yet comes too late.
        """
        for slot, door in zip(self._slots, self._doors, strict=False):  # a worker that is alone has none
            if slot.worker is None or slot.worker.ended or slot.worker.served_s is None:
                shut(door)

    def _hold(self) -> None:
        """Tells every worker which models it shall not serve."""
        for worker in self._workers:
            worker.slate.hold(self._breaker.held(worker.pid))

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._stopping:  # asked twice: no more patience
            for worker in self._workers:
                worker.kill()
        self._stopping, self._hurry = True, self._hurry or number == signal.SIGINT
        self._terminate()

    def _terminate(self) -> None:
        for worker in self._workers:
            worker.terminate(hurry=self._hurry)


def _grpc_transport(settings: ServeSettings) -> GrpcTransport:
    """What serves gRPC here. TLS is the guard's, with pygrpc-native behind it: see `GrpcGuard`."""
    if find_spec("pygrpc_native"):
        return "guarded" if settings.tls else settings.grpc_transport
    if settings.tls:
        raise UsageError("gRPC over TLS needs pygrpc-native; install it: pip install pygrpc-native")
    return "grpcio"


def _is_ours(process_id: int) -> bool:
    """Whether an executor, whose worker has ended, is still to be collected: in a container all orphans are ours."""
    try:
        return process_id > 0 and os.waitpid(process_id, os.WNOHANG)[0] == 0
    except ChildProcessError:  # another process collects it
        return False


def resolve_host(host: str) -> str:
    """The address `host` means, IPv4 before IPv6. Raises UsageError for none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host!r} is no address of this machine; use 127.0.0.1, 0.0.0.0 or a name") from error
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


@contextmanager
def _reserve_management(port: int | None) -> Iterator[int | None]:
    """Holds the management port, which is this machine's alone; None for none."""
    if port is None:
        yield None
        return
    with _reserve("127.0.0.1", port, "--management-port") as held:
        yield held.getsockname()[1]


@contextmanager
def _reserve(address: str, port: int, flag: str) -> Iterator[socket.socket]:
    """Holds `port` (a free one for 0) without listening, so that only our workers can share it.

    Workers share the port by SO_REUSEPORT, and so could a second server by accident: a socket without it comes first
    and shows whether somebody listens already.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe, socket.socket(family) as held:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            probe.bind((address, port))
            probe.close()
            held.bind((address, port))
        except OSError as error:
            reason = {
                errno.EADDRINUSE: "is in use; stop what listens there, or choose another port",
                errno.EACCES: "may not be used by this user; choose one above 1023",
                errno.EADDRNOTAVAIL: "cannot be used: the address is not this machine's",
            }.get(error.errno or 0, f"cannot be used: {error.strerror}")
            raise UsageError(f"{flag} {port}: port {port} on {address} {reason}") from error
        yield held
