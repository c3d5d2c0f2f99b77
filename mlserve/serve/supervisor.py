"""The supervisor: binds the ports, starts the workers, replaces those that die, and ends them all."""

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from types import FrameType

import msgspec

from mlserve.errors import EngineError, UsageError
from mlserve.serve.common_folder import CommonFolder, open_common_folder
from mlserve.serve.settings import ServeSettings, WorkerReport
from mlserve.serve.versions.agreement import bury

__all__ = ["Endpoints", "resolve_host", "run_server"]

# A worker that dies at once, again and again, is started again ever more slowly.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0
_HEALTHY_AFTER_S = 10.0
_LOOK_EVERY_S = 0.1
_STOP_MARGIN_S = 5.0

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
    ):
        supervisor = _Supervisor(
            folder,
            msgspec.structs.replace(
                settings,
                host=address,
                http_port=http.getsockname()[1],
                grpc_port=grpc.getsockname()[1],
                management_port=management_port,
                grpc_transport=settings.grpc_transport if find_spec("pygrpc_native") else "grpcio",
                run_directory=str(folder.path),
            ),
        )
        try:
            if supervisor.start():
                on_ready(supervisor.endpoints())
                supervisor.watch()
        finally:
            supervisor.stop()


class _Worker:
    """One worker process and when it was started."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process, self.started_s = process, time.monotonic()


class _Supervisor:
    def __init__(self, folder: CommonFolder, settings: ServeSettings) -> None:
        self._folder, self._settings = folder, settings
        self._served: tuple[tuple[str, str], ...] = ()
        self._workers: list[_Worker] = []
        self._stopping = False
        self._pause_s = _FIRST_PAUSE_S
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def start(self) -> bool:
        """Starts every worker and waits until all answer; False when a signal came first.

        Raises EngineError when a worker cannot serve.
        """
        for _ in range(self._settings.workers):
            if not self._stopping:
                self._workers.append(_Worker(self._spawn(self._settings)))
        for worker in self._workers:
            report = _first_report(worker.process)
            if report.fault and not self._stopping:
                raise EngineError(report.fault)
            self._served = report.served
        return not self._stopping

    def endpoints(self) -> Endpoints:
        """Where the workers listen."""
        settings = self._settings
        return Endpoints(
            http=f"http://{settings.authority(settings.http_port)}",
            grpc=settings.authority(settings.grpc_port),
            workers=tuple(worker.process.pid for worker in self._workers),
            management="" if settings.management_port is None else f"http://127.0.0.1:{settings.management_port}",
            served=self._served,
        )

    def watch(self) -> None:
        """Returns when a signal has come; until then, puts a new worker in the place of each that dies."""
        while not self._stopping:
            for worker in self._workers:
                if worker.process.poll() is not None and not self._stopping:
                    self._replace(worker)
            time.sleep(_LOOK_EVERY_S)

    def stop(self) -> None:
        """Ends every worker: drained if it can, killed if it does not end in time."""
        self._terminate()
        deadline_s = time.monotonic() + self._settings.limits.drain_s + _STOP_MARGIN_S
        for worker in self._workers:
            try:
                worker.process.wait(max(deadline_s - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                _log.warning("worker %d did not end in time and was killed", worker.process.pid)
                worker.process.kill()
                worker.process.wait()
            _close_pipes(worker.process)

    def _spawn(self, settings: ServeSettings) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-m", "mlserve.serve.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(self._folder.metrics)},
            pass_fds=(self._folder.lock,),
            process_group=0,  # so that Ctrl-C in a terminal reaches the supervisor alone, which then drains
        )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(settings) + b"\n")
        process.stdin.flush()
        return process

    def _replace(self, worker: _Worker) -> None:
        process = worker.process
        _log.warning("worker %d ended with status %s; another takes its place", process.pid, process.returncode)
        _close_pipes(process)
        bury(self._folder.path, process.pid)
        lived_s = time.monotonic() - worker.started_s
        self._pause_s = _FIRST_PAUSE_S if lived_s > _HEALTHY_AFTER_S else min(2 * self._pause_s, _LONGEST_PAUSE_S)
        time.sleep(self._pause_s)
        if self._stopping:
            return
        settings = msgspec.structs.replace(self._settings, resumes=True)
        worker.process, worker.started_s = self._spawn(settings), time.monotonic()
        report = _first_report(worker.process)
        if report.fault and not self._stopping:
            _log.error("the new worker does not serve: %s", report.fault)

    def _on_signal(self, _: int, __: FrameType | None) -> None:
        if self._stopping:  # asked twice: no more patience
            for worker in self._workers:
                worker.process.kill()
        self._stopping = True
        self._terminate()

    def _terminate(self) -> None:
        for worker in self._workers:
            if worker.process.poll() is None:
                worker.process.terminate()


def _first_report(process: "subprocess.Popen[bytes]") -> WorkerReport:
    """Waits for the worker's line."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        return WorkerReport(f"a worker ended with status {process.wait()} before it served; its messages are above")
    return msgspec.json.decode(line, type=WorkerReport)


def _close_pipes(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


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
