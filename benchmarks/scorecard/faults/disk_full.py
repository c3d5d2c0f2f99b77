"""C4: the disk is full under everything that a server writes, while it answers."""

import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.driver import Driven, Load, drive, driving
from scorecard.faults.killed_worker import listens
from scorecard.known import MODEL, publish
from scorecard.server import Server, serving

__all__ = ["CASE"]

_FULL_S = {"seconds": 1.5, "short": 8.0, "long": 300.0}
_PER_S = {"seconds": 200.0, "short": 300.0, "long": 300.0}
_DISK_BYTES = 4 << 20
_MOST_WARNINGS = 12
_RECOVERY_S, _TIMEOUT_S = 5.0, 3.0
# What a server does that has failed already is not waited for, nor the requests that it lost.
_SPOILT_RECOVERY_S, _SPOILT_DRAIN = 0.5, "1s"

# Writes its log as part of answering, and takes a failure for its own.
_TRUSTING = """
import os
import mlserve.serve.watching.request_log as log

def at_once(self, fields):
    line = log.encode_line(fields)
    if os.write(self._open(), line) < len(line):
        raise OSError("not all of it was written")

log.LineWriter.write = at_once
"""


class _Disk(NamedTuple):
    """A folder on a disk of its own. `is_real`: a file system of a few MiB; else files are forbidden to grow."""

    path: Path
    is_real: bool

    def fill(self, server: Server) -> None:
        """Leaves no byte of room."""
        if not self.is_real:
            _limit(server, 0)
            return
        with (self.path / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while ballast.write(bytes(4096)):
                pass

    def empty(self, server: Server) -> None:
        """Gives the room back."""
        if self.is_real:
            (self.path / "ballast").unlink()
        else:
            _limit(server, resource.RLIM_INFINITY)


def run(stage: Stage) -> Outcome:
    outcome = _play(stage, "sound")
    spoilt = _play(stage, "trusting", _TRUSTING)
    return Outcome(
        passed=outcome.passed,
        found=outcome.found,
        figures=outcome.figures,
        control=f"a server that writes its log while it answers, and lets that fail: {spoilt.found}",
        control_failed=not spoilt.passed,
    )


def _play(stage: Stage, name: str, plant: str = "") -> Outcome:
    folder = stage.folder / name
    folder.mkdir()
    full_s = _FULL_S[stage.form] if not plant else 1.0
    with _small_disk(folder / "disk") as disk:
        log = disk.path / "requests.log"
        store, temporary = disk.path / "store", disk.path / "tmp"
        temporary.mkdir()
        publish(store)
        flags = ("--workers", "2", "--store", store, "--log-requests", "1", "--log-file", log)
        flags += ("--drain", _SPOILT_DRAIN) if plant else ()
        with serving(folder, MODEL, *flags, plant=plant, environment={"TMPDIR": str(temporary)}) as server:
            load = Load(
                per_s=_PER_S[stage.form], seconds=3600.0, ways=("http", "http-new", "grpc"), timeout_s=_TIMEOUT_S
            )
            with driving(server.endpoints, load) as running:
                time.sleep(0.5)
                disk.fill(server)
                recording = server.request("POST", "/recording", '{"for_s": 30}').status
                time.sleep(full_s)
                running.stop()
            replaced = _replace_one(server) if disk.is_real and not plant else True
            recovered_s = _recover(server, disk, log, 2 * _RECOVERY_S if not plant else _SPOILT_RECOVERY_S)
            return _judge(running.driven, server, recovered_s, recording, replaced=replaced, is_real=disk.is_real)


def _recover(server: Server, disk: _Disk, log: Path, patience_s: float) -> float:
    """How long after there is room again the log goes on, in seconds, or `patience_s`."""
    before_bytes = log.stat().st_size
    disk.empty(server)
    emptied_s = time.monotonic()
    while log.stat().st_size <= before_bytes and time.monotonic() - emptied_s < patience_s:
        drive(server.endpoints, Load(per_s=100, seconds=0.1))
    return time.monotonic() - emptied_s


def _replace_one(server: Server) -> bool:
    """Whether a worker that is killed can be replaced while the disk is full."""
    before = {worker.pid for worker in server.workers}
    server.workers[0].kill()
    deadline_s = time.monotonic() + 20.0
    while time.monotonic() < deadline_s:
        serving_now = {worker.pid for worker in server.workers if listens(worker)}
        if len(serving_now) >= len(before) and serving_now - before:
            return True
        time.sleep(0.05)
    return False


def _judge(
    driven: Driven, server: Server, recovered_s: float, recording: int, *, replaced: bool, is_real: bool
) -> Outcome:
    warnings = sum("WARNING" in line or "ERROR" in line for line in server.log.splitlines())
    faults = [
        driven.not_ok,
        server.traceback,
        f"{warnings} warnings in the log" if warnings > _MOST_WARNINGS else "",
        "a worker that ended had no successor" if not replaced else "",
        f"a recording was answered {recording}, not 507" if is_real and recording != 507 else "",
        f"the log was not written again within {_RECOVERY_S:g} s" if recovered_s > _RECOVERY_S else "",
    ]
    fault = "; ".join(filter(None, faults))
    disk = "a full file system" if is_real else "files that may not grow (no file system could be mounted)"
    return Outcome(
        passed=not fault,
        found=fault or f"{driven.count()} requests with {disk}, all answered; logged again {recovered_s:.2f} s after",
        figures=(
            Figure("requests", driven.count()),
            Figure("not answered", driven.count() - driven.count("ok"), limit="0"),
            Figure("answer to a recording asked for meanwhile", recording),
            Figure("warnings", warnings, limit=f"at most {_MOST_WARNINGS}"),
            Figure("until the log goes on", recovered_s, "s", f"at most {_RECOVERY_S:g}"),
        ),
    )


@contextmanager
def _small_disk(path: Path) -> Iterator[_Disk]:
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(path)], capture_output=True, check=False
    )
    try:
        yield _Disk(path, mounted.returncode == 0)
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", str(path)], check=False)


def _limit(server: Server, most_bytes: int) -> None:
    for process in server.processes:
        with suppress(OSError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))


CASE = Case(
    id="C4",
    title="The disk is full",
    criterion="log, metrics, control files, recordings and cache on a full disk: every request answered rightly, few "
    "words about it, a recording refused with 507, a worker that ends replaced; within 5 s of room the log goes on",
    source="nobody publishes such a test",
    run=run,
)
