"""The peers' servers: each started on the server's core, stopped in its tracks while others have their turn, ended."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from closed_loop import Timing, fail, on_core, run_h2load, run_wrk, wrk_script
from environments import HERE, Environment
from served import INFER
from subjects import Subject, differing_output

from mlserve.model.tensors import Tensors
from mlserve.wire import grpc as wire_grpc
from mlserve.wire import rest as wire_rest

__all__ = ["PeerServer", "Setting", "paused", "serving_peer", "settings_of"]

APPS = HERE / "apps"
# The first answer: MLServer and LitServe start processes of their own.
START_LIMIT_S = 120.0
STOP_LIMIT_S = 10.0


class Setting(NamedTuple):
    """One peer and how it is told to batch; `rows` 1 is without."""

    peer: str
    name: str
    rows: int = 1
    delay_s: float = 0.0
    threads: bool = False


SETTINGS = (
    Setting("fastapi", "on the loop"),
    Setting("fastapi", "on threads", threads=True),
    Setting("litserve", "no batching"),
    Setting("litserve", "32 rows, 1 ms", 32, 0.001),
    Setting("mlserver", "no batching"),
    Setting("mlserver", "32 rows, 1 ms", 32, 0.001),
)


def settings_of(peers: Sequence[str]) -> list[Setting]:
    """What is tried of `peers`."""
    return [setting for setting in SETTINGS if setting.peer in peers]


class PeerServer(NamedTuple):
    """A running server, its process group's leader, and how it is asked: `ways` by protocol.

    `http`, `grpc` and `metrics` are its addresses, of which only MLServer has all three.
    """

    setting: Setting
    process: psutil.Process
    ways: dict[str, Callable[[int, float], Timing]]
    http: str
    grpc: str
    metrics: str


@contextmanager
def serving_peer(
    setting: Setting, environment: Environment, subject: Subject, core: int, folder: Path
) -> Iterator[PeerServer]:
    """The peer serving `subject`, checked to answer what onnxruntime does; ended, with its children, in any case."""
    place = folder / f"{setting.peer}-{setting.rows}-{setting.threads}-{subject.name}"
    place.mkdir()
    port, grpc_port, metrics_port = _free_ports(3)
    command = _command(setting, environment, subject, place, (port, grpc_port, metrics_port))
    log = place / "log"
    with log.open("wb") as output, on_core(core):
        process = subprocess.Popen(
            command, cwd=place, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        ways = _checked_ways(setting, process, subject, place, (port, grpc_port), log)
        yield PeerServer(
            setting,
            psutil.Process(process.pid),
            ways,
            f"http://127.0.0.1:{port}",
            f"grpc://127.0.0.1:{grpc_port}" if "gRPC" in ways else "",
            f"http://127.0.0.1:{metrics_port}/metrics" if "gRPC" in ways else "",
        )
    finally:
        _end(process)


@contextmanager
def paused(servers: Sequence[PeerServer]) -> Iterator[Callable[[PeerServer], Any]]:
    """All servers stand still, but the one inside `with turn_of(server)`: some poll while they have nothing to do."""

    @contextmanager
    def turn_of(server: PeerServer) -> Iterator[None]:
        os.killpg(server.process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.killpg(server.process.pid, signal.SIGSTOP)

    for server in servers:
        os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        yield turn_of
    finally:
        for server in servers:
            with suppress(ProcessLookupError):
                os.killpg(server.process.pid, signal.SIGCONT)


def _command(
    setting: Setting, environment: Environment, subject: Subject, place: Path, ports: tuple[int, int, int]
) -> list[str]:
    python = str(environment.python)
    if setting.peer == "mlserver":
        _write_mlserver_settings(setting, subject, place, ports)
        return [str(environment.python.with_name("mlserver")), "start", str(place)]
    given = ["--model", str(subject.path), "--port", str(ports[0])]
    if setting.peer == "fastapi":
        return [python, str(APPS / "fastapi_app.py"), *given, *(["--threads"] if setting.threads else [])]
    batching = ["--batch-rows", str(setting.rows), "--batch-delay-s", str(setting.delay_s)]
    return [python, str(APPS / "litserve_app.py"), *given, *batching]


def _write_mlserver_settings(setting: Setting, subject: Subject, place: Path, ports: tuple[int, int, int]) -> None:
    server = {
        "host": "127.0.0.1",
        "http_port": ports[0],
        "grpc_port": ports[1],
        "metrics_port": ports[2],
        "parallel_workers": 0,
        "debug": False,
        "use_structured_logging": False,
        "logging_settings": None,
    }
    model = {
        "name": subject.name,
        "implementation": "mlserver_runtime.OnnxModel",
        "max_batch_size": setting.rows if setting.rows > 1 else 0,
        "max_batch_time": setting.delay_s,
        "parameters": {"uri": str(subject.path), "version": "1"},
    }
    (place / "settings.json").write_text(json.dumps(server))
    (place / "model-settings.json").write_text(json.dumps(model))
    (place / "mlserver_runtime.py").write_text((APPS / "mlserver_runtime.py").read_text())


def _checked_ways(
    setting: Setting,
    process: "subprocess.Popen[bytes]",
    subject: Subject,
    place: Path,
    ports: tuple[int, int],
    log: Path,
) -> dict[str, Callable[[int, float], Timing]]:
    """How the server is asked, once it answers right."""
    is_v2 = setting.peer == "mlserver"
    url = f"http://127.0.0.1:{ports[0]}" + (f"/v2/models/{subject.name}/infer" if is_v2 else "/predict")
    body = subject.rest_body if is_v2 else _plain_body(subject)
    found = {"REST": _decode(subject, _first_answer(process, url, body, log), is_v2=is_v2)}
    script = place / "wrk.lua"
    script.write_text(wrk_script(body))
    running = psutil.Process(process.pid)

    def ask_rest(at_once: int, seconds: float) -> Timing:
        return run_wrk(script, url, at_once, running, seconds)

    ways = {"REST": ask_rest}
    if is_v2:
        found["gRPC"] = _ask_grpc(subject, ports[1])
        message = place / "message"
        payload = subject.grpc_message
        message.write_bytes(b"\0" + len(payload).to_bytes(4, "big") + payload)
        ways["gRPC"] = partial(_run_grpc, message, f"http://127.0.0.1:{ports[1]}{INFER}", running)
    for protocol, outputs in found.items():
        wrong = differing_output(subject, outputs)
        if wrong:
            fail(f"{setting.peer} ({setting.name}) over {protocol}: output {wrong!r} of {subject.name} is not right")
    return ways


def _run_grpc(message: Path, url: str, running: psutil.Process, at_once: int, seconds: float) -> Timing:
    return run_h2load(message, url, at_once, running, seconds)


def _plain_body(subject: Subject) -> bytes:
    return json.dumps({"inputs": {name: array.tolist() for name, array in subject.row.items()}}).encode()


def _decode(subject: Subject, body: bytes, *, is_v2: bool) -> Tensors:
    if is_v2:
        return wire_rest.decode_response(body, {spec.name: spec for spec in subject.outputs})
    return {name: np.asarray(rows) for name, rows in json.loads(body)["outputs"].items()}


def _first_answer(process: "subprocess.Popen[bytes]", url: str, body: bytes, log: Path) -> bytes:
    """What the server answers as soon as it does."""
    deadline_s = time.monotonic() + START_LIMIT_S
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    reason = "it does not answer"
    while True:
        if time.monotonic() > deadline_s or process.poll() is not None:
            last = log.read_text(errors="replace")[-2000:]
            fail(f"{' '.join(map(str, process.args))} did not serve ({reason}); its last words:\n{last}")
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return bytes(reply.read())
        except urllib.error.HTTPError as error:
            reason = f"{error.code}: {error.read().decode(errors='replace')[:500]}"
        except OSError:
            pass
        time.sleep(0.2)


def _ask_grpc(subject: Subject, port: int) -> Tensors:
    import grpc

    specs = {spec.name: spec for spec in subject.outputs}
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        reply = channel.unary_unary(INFER)(subject.grpc_message, timeout=30, wait_for_ready=True)
    return wire_grpc.decode_response(reply, specs)


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends the process and everything it started: its session is its own."""
    for number in (signal.SIGCONT, signal.SIGTERM):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_LIMIT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
