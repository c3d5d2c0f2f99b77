"""E4: by itself a server is this machine's alone, and who wants it otherwise has to say so."""

import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import psutil
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.known import MODEL, publish
from scorecard.server import Server, serving_both, serving_known

__all__ = ["CASE"]

_START_S = 60.0
_PATIENCE_S = 30.0
# A server that asks nobody whether it may be reached, and nobody where he comes from.
_TRUSTING = """
import mlserve.serve.browsers as browsers
browsers.BrowserGuard.check = lambda self, fields: None
import mlserve.cli.serve as serve
serve.is_open = lambda *_, **__: False
import _socket, socket
def bind(self, address):
    _socket.socket.bind(self, ("0.0.0.0", address[1]) if address[0] == "127.0.0.1" else address)
socket.socket.bind = bind
"""
_EVIL = ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "169.254.169.254")
_FOREIGN = ("http://evil.example", "null", "http://localhost.evil.example")
_INFER = f"/v2/models/{MODEL}/infer"
_BODY = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}'
_ASKED = (("POST", _INFER), ("GET", "/v2"), ("GET", "/metrics"), ("POST", "/v2/repository/index"), ("GET", "/"))
_MANAGED = (("GET", "/models"), ("PUT", f"/models/{MODEL}"), ("OPTIONS", "/"))


def run(stage: Stage) -> Outcome:
    folder = stage.folder
    with ExitStack() as stack:
        publish(folder / "store")
        # They all start at once, which takes half the time.
        refusals = [stack.enter_context(_Refusal(folder, host)) for host in _hosts(stage)]
        started = stack.enter_context(_Refusal(folder, "0.0.0.0", _TRUSTING))
        sound, broken = stack.enter_context(serving_both(folder, plant=_TRUSTING))
        found = [*_doors(sound), *_browsed(sound, "http", _ASKED), *(refusal.fault() for refusal in refusals)]
        if stage.form != "seconds":
            managed = stack.enter_context(serving_known(folder, "--management-port", "0"))
            found += [*_doors(managed), *_browsed(managed, "management", _MANAGED)]
        spoilt = [*filter(None, (*_doors(broken), *_browsed(broken, "http", _ASKED[:1]), started.fault()))]
    faults = [*filter(None, found)]
    missed = {"listens", "started", "evil", "page"} - {word for fault in spoilt for word in fault.split()}
    return Outcome(
        passed=not faults,
        found=f"{len(found)} checks of what is listened on, refused to start, and asked by browsers: "
        + ("; ".join(faults[:8]) if faults else "all as they should be"),
        figures=(Figure("checks", len(found)), Figure("not as they should be", len(faults), limit="0")),
        control=f"of a server that trusts everybody {len(spoilt)} were not as they should be, such as "
        + "; ".join((*spoilt[:2], *spoilt[-1:])),
        control_failed=not missed,
    )


def _doors(server: Server) -> Iterator[str]:
    """What is wrong with each address that the server's processes listen on; "" for nothing."""
    told = {int(server.ready[name].rpartition(":")[2]) for name in ("http", "grpc", "management") if server.ready[name]}
    listening = {
        (found.laddr.ip, found.laddr.port)
        for process in server.processes
        for found in process.net_connections("inet")
        if found.status == psutil.CONN_LISTEN
    }
    for ip, port in sorted(listening):
        yield "" if ip == "127.0.0.1" and port in told else f"it listens on {ip}:{port}"
    yield "" if {port for _, port in listening} >= told else "a port that it tells of is not there"


def _browsed(server: Server, listener: str, asked: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Requests as browsers can be made to send them, and those of its own pages."""
    port = int(server.ready[listener].rpartition(":")[2])
    for method, path in asked:
        own = _status(port, method, path, "localhost", f"http://localhost:{port}")
        yield "" if own != 403 else f"{method} {path} for localhost: {own}"
        for host in _EVIL:
            status = _status(port, method, path, host, f"http://{host}")
            yield "" if status == 403 else f"{method} {path} for the evil host {host}: {status}"
        for origin in _FOREIGN:
            status = _status(port, method, path, "localhost", origin)
            yield "" if status == 403 else f"{method} {path} from a page of {origin}: {status}"


def _status(port: int, method: str, path: str, host: str, origin: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    name = f"{host}:{port}" if host == "localhost" else host
    try:
        connection.request(method, path, _BODY if method == "POST" else None, {"host": name, "origin": origin})
        return connection.getresponse().status
    finally:
        connection.close()


class _Refusal:
    """`mlserve serve --host HOST` without keys, which must end by itself and say how it can be meant."""

    def __init__(self, folder: Path, host: str, plant: str = "") -> None:
        self._host = host
        self._log = folder / f"refused-{host.replace(':', '_')}{'-planted' * bool(plant)}.log"
        variables = dict(os.environ)
        if plant:
            planted = self._log.with_suffix("")
            planted.mkdir()
            (planted / "sitecustomize.py").write_text(plant)
            variables["PYTHONPATH"] = str(planted)
        command = ["serve", MODEL, "--store", folder / "store", "--host", host, "--http-port", 0, "--grpc-port", 0]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlserve", *map(str, command), "--json"],
                stdout=subprocess.PIPE,
                stderr=log,
                env=variables,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_START_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def fault(self) -> str:
        """What it did instead; "" if it was refused."""
        assert self._process.stdout is not None
        if self._process.stdout.read(1):
            return f"--host {self._host}: it has started without keys"
        status = self._process.wait(_START_S)
        said = self._log.read_text()
        refused = status == 2 and "--allow-anonymous" in said and "Traceback" not in said
        return "" if refused else f"--host {self._host} ended with {status}: {said[:200]}"


def _hosts(stage: Stage) -> list[str]:
    """Addresses that others can reach: those that mean all, and this machine's own."""
    groups = psutil.net_if_addrs().values()
    own = {each.address for group in groups for each in group if each.family == socket.AF_INET}
    found = ["0.0.0.0", "::", *sorted(address for address in own if not address.startswith("127."))]
    return found[:1] if stage.form == "seconds" else found


CASE = Case(
    id="E4",
    title="Nothing is open by itself",
    criterion="all ports on 127.0.0.1, management off; start refused beyond loopback without keys or an explicit flag; "
    "requests for another host (DNS rebinding) or from another site refused",
    source="CVE-2024-35199 (TorchServe), CVE-2025-62593 (Ray)",
    run=run,
)
