"""C5: no descriptor is left for another connection, and hardly any memory."""

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.driver import Load, drive, driving
from scorecard.server import Server, serving_known

__all__ = ["CASE"]

_MOST_FILES, _CONNECTIONS = 256, 500
_HELD_S = {"seconds": 1.0, "short": 3.0, "long": 30.0}
_PER_S = 100.0
_RECOVERY_S, _MOST_REFUSED = 5.0, 3
# A worker that has nothing to do but to wait for descriptors; a busy loop takes all of a core.
_MOST_CPU = 0.5
_ROOM_BYTES = 256 << 20
_GROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))

_FEW_FILES = f"import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, ({_MOST_FILES}, {_MOST_FILES}))\n"
# Lets in more than it has descriptors for, and takes it for the end that files cannot be opened.
_FRAGILE = """
import asyncio
import mlserve.serve.transports.connections as connections
connections.affordable = lambda limits, *_: limits
import mlserve.serve.recording.recorder as recorder

async def follow(self):
    while True:
        await asyncio.sleep(0.2)
        self.folder.now()
        for file in [open("/dev/null") for _ in range(4)]:  # a connection takes three: one or two may be left
            file.close()

recorder.Recorder.follow = follow
"""
# Joins the group, and takes so many bytes beside its own, until it is killed.
_OWN_BYTES = 8 << 20
_BALLAST = """
import os, sys
with open(sys.argv[1], "w") as group:
    group.write(str(os.getpid()))
held = bytearray(int(sys.argv[2]))
held[::4096] = b"x" * len(held[::4096])
print(flush=True)
sys.stdin.read()
"""


def run(stage: Stage) -> Outcome:
    held_s = _HELD_S[stage.form]
    files = _files(_made(stage, "files"), held_s, _FEW_FILES)
    fragile = _files(_made(stage, "fragile"), 1.0, _FEW_FILES + _FRAGILE)
    memory = _memory(_made(stage, "memory"), held_s)
    careless = _memory(_made(stage, "careless"), 1.0, "--memory-guard", "off")
    return Outcome(
        passed=files.passed and memory.passed,
        found=f"{files.found}; {memory.found}",
        figures=(*files.figures, *memory.figures),
        control=f"a worker that lets in all and needs four files to live: {fragile.found}; "
        f"a server without a guard: {careless.found}",
        control_failed=not fragile.passed and not careless.passed,
    )


def _made(stage: Stage, name: str) -> Path:
    folder = stage.folder / name
    folder.mkdir()
    return folder


def _files(folder: Path, held_s: float, plant: str) -> Outcome:
    """As many idle connections, over HTTP and gRPC, as there are descriptors and more."""
    with serving_known(folder, plant=plant) as server:
        before = {worker.pid for worker in server.workers}
        with ExitStack() as held:
            for address in (server.endpoints.http, server.endpoints.grpc):
                _connect(held, address, _CONNECTIONS // 2)
            time.sleep(1.0)
            used_s, began_s = _cpu_s(server), time.monotonic()
            time.sleep(held_s)
            busy = (_cpu_s(server) - used_s) / (time.monotonic() - began_s)
        recovered_s = _recovered_s(server)
        after = {worker.pid for worker in server.workers}
        faults = [
            "a worker ended" if after != before else "",
            f"{busy:.0%} of a core were spent on waiting" if busy > _MOST_CPU else "",
            f"it did not answer {_RECOVERY_S:g} s after" if recovered_s > _RECOVERY_S else "",
            server.traceback,
        ]
    fault = "; ".join(filter(None, faults))
    return Outcome(
        passed=not fault,
        found=fault
        or f"{_CONNECTIONS} connections with {_MOST_FILES} descriptors: it serves {recovered_s:.2f} s after",
        figures=(
            Figure("descriptors", _MOST_FILES),
            Figure("connections", _CONNECTIONS),
            Figure("processor time meanwhile", 100 * busy, "% of a core", f"at most {100 * _MOST_CPU:.0f}"),
            Figure("recovery from no descriptors", recovered_s, "s", f"at most {_RECOVERY_S:g}"),
        ),
    )


def _memory(folder: Path, held_s: float, *flags: str) -> Outcome:
    """Somebody else in the same control group takes what is left; where there is none, the limit comes down."""
    with serving_known(folder, *flags) as server:
        before = {worker.pid for worker in server.workers}
        load = Load(per_s=_PER_S, seconds=3600.0, ways=("http", "grpc"), timeout_s=5.0)
        with _group(server) as group, driving(server.endpoints, load) as running:
            time.sleep(0.3)
            with _shortage(server, group):
                time.sleep(0.6)
                began_s = running.now_s
                live = [server.request("GET", path).status for path in ("/v2/health/live", "/metrics")]
                time.sleep(held_s)
                ended_s = running.now_s
            recovered_s = _recovered_s(server)
            running.stop()
        driven = running.driven
        meanwhile = [one for one in driven.answers if began_s < one.due_s < ended_s]
        shed = sum(one.kind == "shed" for one in meanwhile)
        faults = [
            f"of {len(meanwhile)} requests {shed} were shed" if shed < len(meanwhile) or not meanwhile else "",
            driven.fault,
            f"health and metrics answered {live}" if live != [200, 200] else "",
            "a worker ended" if {worker.pid for worker in server.workers} != before else "",
            f"it did not answer {_RECOVERY_S:g} s after" if recovered_s > _RECOVERY_S else "",
            server.traceback,
        ]
    fault = "; ".join(filter(None, faults))
    whose = "a control group" if group else "an address space (no control group could be made)"
    return Outcome(
        passed=not fault,
        found=fault or f"memory of {whose} nearly gone: {shed} requests told so; it serves {recovered_s:.2f} s after",
        figures=(
            Figure("requests while memory is short", len(meanwhile)),
            Figure("of them shed", shed),
            Figure("recovery from short memory", recovered_s, "s", f"at most {_RECOVERY_S:g}"),
        ),
    )


def _connect(held: ExitStack, address: str, count: int) -> None:
    host, _, port = address.rpartition(":")
    refused = 0
    for _ in range(count):
        try:
            held.enter_context(socket.create_connection((host, int(port)), timeout=0.2))
        except OSError:  # there is no room in the queue of the system any more
            refused += 1
            if refused > _MOST_REFUSED:
                return


def _recovered_s(server: Server) -> float:
    """How long until twenty requests in a row are answered."""
    began_s = time.monotonic()
    load = Load(per_s=200, seconds=0.1, ways=("http-new",), timeout_s=1.0, seed=9)
    while time.monotonic() - began_s < 2 * _RECOVERY_S:
        if not drive(server.endpoints, load).not_ok:
            break
    return time.monotonic() - began_s


def _cpu_s(server: Server) -> float:
    used_s = 0.0
    for process in server.processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            used_s += times.user + times.system
    return used_s


@contextmanager
def _group(server: Server) -> Iterator[Path | None]:
    """A control group with the server in it and some room; None where this user may make none."""
    for root in _GROUPS:
        folder, v1 = root / f"scorecard-c5-{os.getpid()}", root.name == "memory"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            limit = folder / ("memory.limit_in_bytes" if v1 else "memory.max")
            if limit.exists():
                for process in server.processes:
                    (folder / "cgroup.procs").write_text(str(process.pid))
                limit.write_text(str(server.rss_bytes() + _ROOM_BYTES))
                yield folder
                limit.write_text("-1" if v1 else "max")
                for process in server.processes:
                    (root / "cgroup.procs").write_text(str(process.pid))
                return
        finally:
            with suppress(OSError):
                folder.rmdir()
    yield None


@contextmanager
def _shortage(server: Server, group: Path | None) -> Iterator[None]:
    """While it lasts, more than 95% of the memory that the server may have is in use."""
    if group is None:
        limits = {worker.pid: int(1.02 * worker.memory_info().vms) for worker in server.workers}
        for process_id, limit_bytes in limits.items():
            resource.prlimit(process_id, resource.RLIMIT_AS, (limit_bytes, resource.RLIM_INFINITY))
        yield
        for process_id in limits:
            resource.prlimit(process_id, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return
    v1 = (group / "memory.usage_in_bytes").exists()
    names = ("memory.usage_in_bytes", "memory.limit_in_bytes") if v1 else ("memory.current", "memory.max")
    used, limit = (int((group / name).read_text()) for name in names)
    told = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    pages = sum(int(told.get(f"{'total_' if v1 else ''}{name}", 0)) for name in ("inactive_file", "active_file"))
    wanted = int(0.975 * limit) - (used - pages)
    ballast = subprocess.Popen(
        [sys.executable, "-c", _BALLAST, str(group / "cgroup.procs"), str(max(wanted - _OWN_BYTES, 0))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert ballast.stdout is not None
        ballast.stdout.readline()
        yield
    finally:
        ballast.kill()
        ballast.communicate()


CASE = Case(
    id="C5",
    title="No descriptors, no memory",
    criterion="with 256 descriptors and 500 connections, and at more than 95% of its memory, the server does not end "
    "and does not spin; it sheds, health and metrics answer, and it recovers within 5 s",
    source="Envoy sheds at 92% and 95% of its heap",
    run=run,
)
