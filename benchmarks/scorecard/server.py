"""Our server under test, started as a user starts it, and what can be seen of it from outside."""

import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import grpc
import psutil
from prometheus_client.parser import text_string_to_metric_families
from scorecard.known import MODEL, publish

__all__ = [
    "Endpoints",
    "NotStarted",
    "Reply",
    "Server",
    "Tls",
    "foreign",
    "load_cores",
    "server_cores",
    "serving",
    "serving_both",
    "serving_known",
]

# A server that neither gets ready nor ends.
_START_S = 60.0
_STOP_S = 60.0


class Tls(NamedTuple):
    """How a client speaks TLS with a server called `localhost`: whom it trusts and what it shows (PEM files)."""

    root: Path
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """For HTTP."""
        made = ssl.create_default_context(cafile=str(self.root))
        if self.certificate is not None:
            made.load_cert_chain(self.certificate, self.key)
        return made

    def credentials(self) -> Any:
        """For gRPC."""
        shown = [path.read_bytes() for path in (self.key, self.certificate) if path is not None]
        return grpc.ssl_channel_credentials(self.root.read_bytes(), *shown)


class Endpoints(NamedTuple):
    """Where a server listens, `host:port` each; `grpc` is empty for REST alone, `tls` None for plain text."""

    http: str
    grpc: str = ""
    tls: Tls | None = None


class Reply(NamedTuple):
    """One answer over HTTP, names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)


class NotStarted(Exception):
    """The server ended before it was ready; the message holds its status and its log."""


class Server:
    """A server that was found ready. `process` is the supervisor, `folder` where its log lies."""

    def __init__(self, process: "subprocess.Popen[bytes]", ready: Mapping[str, Any], log_path: Path) -> None:
        self.process, self.log_path, self.ready = process, log_path, dict(ready)
        self.endpoints = Endpoints(urlsplit(ready["http"]).netloc, ready["grpc"])
        self.supervisor = psutil.Process(process.pid)

    @property
    def log(self) -> str:
        """What it has said on stderr so far."""
        return self.log_path.read_text(errors="replace")

    @property
    def traceback(self) -> str:
        """The first traceback or crash of the log, in at most a few lines; empty for none, as it should be."""
        found = re.search(r"(Traceback|Fatal Python|Segmentation|Exception in)[^\0]{0,600}", self.log)
        return found[0] if found else ""

    @property
    def workers(self) -> list[psutil.Process]:
        """The living worker processes, those that came for others included."""
        with suppress(psutil.NoSuchProcess):
            return [
                child for child in self.supervisor.children() if "mlserve.serve.worker" in " ".join(_command(child))
            ]
        return []

    @property
    def processes(self) -> list[psutil.Process]:
        """The supervisor and everything below it."""
        with suppress(psutil.NoSuchProcess):
            return [self.supervisor, *self.supervisor.children(recursive=True)]
        return []

    def rss_bytes(self) -> int:
        """Resident memory of all processes together."""
        return sum(_ask(process, lambda one: one.memory_info().rss) for process in self.processes)

    def fds(self) -> int:
        """Open descriptors of all processes together."""
        return sum(_ask(process, lambda one: one.num_fds()) for process in self.processes)

    def threads(self) -> int:
        """Threads of all processes together."""
        return sum(_ask(process, lambda one: one.num_threads()) for process in self.processes)

    def request(
        self, method: str, path: str, body: bytes | str | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection(self.endpoints.http, timeout=60)
        try:
            connection.request(method, path, body, dict(headers or {}))
            reply = connection.getresponse()
            return Reply(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())
        finally:
            connection.close()

    def counted(self, sample: str, **labels: str) -> float:
        """The sum of all series of `/metrics` that are called `sample` and have these labels."""
        text = self.request("GET", "/metrics").body.decode()
        return sum(
            each.value
            for family in text_string_to_metric_families(text)
            for each in family.samples
            if each.name == sample and labels.items() <= each.labels.items()
        )

    def stop(self, number: int = signal.SIGTERM, within_s: float = _STOP_S) -> int:
        """Sends the signal and waits for the end. Returns the exit status; raises TimeoutExpired when it stays."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(within_s)


@contextmanager
def serving(
    folder: Path, *arguments: str | Path, plant: str = "", environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """`mlserve serve ARGUMENTS...` on free ports, on its own cores; its log is in `folder`.

    `plant` is Python that every process of it runs first: a fault for a negative control, put in from outside.
    Raises NotStarted, and RuntimeError where the plant itself failed: that control would control nothing. Whoever has
    stopped the server inside finds nothing done at the end; whatever is left is killed.
    """
    descriptor, name = tempfile.mkstemp(prefix="server-", suffix=".log", dir=folder)
    os.close(descriptor)
    log_path = Path(name)
    variables = {**os.environ, **(environment or {})}
    if plant:
        planted = log_path.with_suffix("")
        planted.mkdir()
        (planted / "sitecustomize.py").write_text(plant)
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(planted), variables.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "mlserve", "serve", *map(str, arguments)]
    with log_path.open("wb") as log, _cores_of_server():
        process = subprocess.Popen(
            [*command, "--http-port", "0", "--grpc-port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=log,
            env=variables,
            cwd=folder,
        )
    below: list[psutil.Process] = []
    try:
        server = Server(process, _first_document(process, log_path), log_path)
        if plant and "Error in sitecustomize" in server.log:
            raise RuntimeError(f"the fault could not be planted: {server.log[:1000]}")
        yield server
        below = _below(process)
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
    finally:
        for each in (*below, *_below(process)):
            with suppress(psutil.Error):
                each.kill()
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def serving_known(
    folder: Path,
    *flags: str | Path,
    versions: int = 1,
    run_s: float = 0.0,
    plant: str = "",
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """`serving` of the known model, with one thread a run; its store is `folder`/store, made where there is none."""
    root = folder / "store"
    if not root.exists():
        publish(root, versions=range(1, versions + 1), run_s=run_s)
    with serving(
        folder, MODEL, "--store", root, "--threads", "1", *flags, plant=plant, environment=environment
    ) as server:
        yield server


@contextmanager
def serving_both(
    folder: Path,
    *flags: str | Path,
    plant: str,
    versions: int = 1,
    run_s: float = 0.0,
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[Server, Server]]:
    """`serving_known` as it is, and with the fault planted: both start at once, which takes half the time."""
    if not (folder / "store").exists():  # before both look
        publish(folder / "store", versions=range(1, versions + 1), run_s=run_s)
    with ExitStack() as stack, ThreadPoolExecutor(2) as threads:
        sound, broken = (serving_known(folder, *flags, plant=each, environment=environment) for each in ("", plant))
        starting = [threads.submit(stack.enter_context, each) for each in (sound, broken)]
        servers = starting[0].result(), starting[1].result()
        try:
            yield servers
        finally:
            for server in servers:
                server.process.terminate()


def foreign(url: str) -> Endpoints:
    """The server of `--url`, which must serve the known model under its own name."""
    return Endpoints(urlsplit(url).netloc)


def server_cores() -> set[int]:
    """All cores but the last, where there are several."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return set(cores[:-1] or cores)


def load_cores() -> set[int]:
    """The last core."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return set(cores[-1:])


@contextmanager
def _cores_of_server() -> Iterator[None]:
    """What is started inside keeps to the server's cores."""
    if not server_cores():
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, server_cores())
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _first_document(process: "subprocess.Popen[bytes]", log_path: Path) -> dict[str, Any]:
    """The JSON that a ready server prints."""
    assert process.stdout is not None
    text, patience = b"", threading.Timer(_START_S, process.kill)
    patience.start()
    try:
        for line in process.stdout:
            text += line
            with suppress(ValueError):
                return dict(json.loads(text))
    finally:
        patience.cancel()
    process.wait()
    raise NotStarted(f"the server ended with {process.poll()}: {log_path.read_text(errors='replace')[-2000:]}")


def _below(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        return []


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _ask(process: psutil.Process, question: Any) -> int:
    try:
        return int(question(process))
    except psutil.Error:
        return 0
