"""B2: a server that is told to stop ends, whatever goes on in it, and leaves nothing behind."""

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import grpc
import psutil
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.known import MODEL, write_known
from scorecard.lifecycle.slow_model import ENDLESS, slow_body, slow_message, write_slow
from scorecard.server import Server, serving

__all__ = ["CASE"]

_Found = TypeVar("_Found")

_GRACE_S = 2.0
_TOLERANCE_S = 1.0
_LATE = "it ended"
_INFER = "/inference.GRPCInferenceService/ModelInfer"
# With a delay, runs are on a thread of the engine's own from the first, however short the warm-up's were.
_FLAGS = ("--drain", f"{_GRACE_S:g}s", "--max-delay-ms", "1")
_ROUNDS = {"seconds": 1, "short": 1, "long": 20}
_WAITING = 8
# Who speaks for a worker that was killed needs so long.
_LAST_WORDS_S = 3.0

# At the end of its grace it goes on waiting for what still runs.
_PATIENT = """
import mlserve.serve.life.leaving as leaving

async def patient(service, *_, **__):
    import asyncio
    service.leaving = service.draining = True
    while not service.idle:
        await asyncio.sleep(0.01)
    return True

leaving.leave = patient
"""
# A load that takes its time.
_SLOW_LOAD = """
import time
import mlserve.engines.opening as opening

right = opening.open_onnx_file

def slow(*given):
    time.sleep(30)
    return right(*given)

opening.open_onnx_file = slow
"""


class _Ended(NamedTuple):
    """How a server ended: after how many seconds since the signal, with which status, and what it left."""

    after_s: float
    status: int | None
    left: tuple[str, ...]
    log: str

    @property
    def faults(self) -> list[str]:
        """What is wrong with any end."""
        return [
            f"exit status {self.status}" if self.status != 0 else "",
            f"left {', '.join(self.left)}" if self.left else "",
            "a traceback" if "Traceback" in self.log else "",
        ]


def run(stage: Stage) -> Outcome:
    faults, longest_s = list[str](), 0.0
    kinds = (_forced,) if stage.form == "seconds" else (_forced, _twice, _while_loading)
    for number in range(_ROUNDS[stage.form]):
        for kind in kinds:  # one after the other: what computes without end leaves no core to another
            found, after_s = kind(_made(stage.folder, f"{kind.__name__}-{number}"))
            if len(found) == 1 and found[0].startswith(_LATE):  # as other work on the machine makes it, too
                found, after_s = kind(_made(stage.folder, f"{kind.__name__}-{number}-again"))
            longest_s = max(longest_s, after_s)
            faults += [f"{kind.__name__.strip('_').replace('_', ' ')}: {one}" for one in found]
    spoilt, _ = _forced(_made(stage.folder, "control"), _PATIENT)
    return Outcome(
        passed=not faults,
        found="; ".join(faults[:4])
        or "forced at the end of the grace with 503 and UNAVAILABLE"
        + ("" if len(kinds) == 1 else ", ended at once when told twice and while a model loads")
        + "; exit status 0, no process, folder or shared memory left",
        figures=(
            Figure("rounds", _ROUNDS[stage.form]),
            Figure("grace", _GRACE_S, "s"),
            Figure("longest end", longest_s, "s", f"at most {_GRACE_S + _TOLERANCE_S:g}"),
        ),
        control=f"a server that waits for what runs however long: {'; '.join(spoilt) or 'nothing'}",
        control_failed=bool(spoilt),
    )


def _made(folder: Path, name: str) -> Path:
    made = folder / name
    (made / "tmp").mkdir(parents=True)
    return made


def _forced(folder: Path, plant: str = "") -> tuple[list[str], float]:
    """A request over HTTP and one over gRPC that outlast the grace, and a full queue behind them."""
    with _serving(folder, write_slow(folder / "slow.onnx"), "--max-batch-rows", "1", plant=plant) as server:
        processes, answers = server.processes, list[str]()
        asking = [
            threading.Thread(target=_ask, args=(server, answers, by)) for by in ("http", "grpc", *["http"] * _WAITING)
        ]
        for thread in asking:
            thread.start()
        _until(lambda: _busy(server) and len(_connected(server)) >= len(asking))
        time.sleep(0.5)
        ended = _end(server, folder, processes, [signal.SIGTERM])
        for thread in asking:
            thread.join()
    faults = ended.faults
    explicit = [each for each in answers if each in ("503", "UNAVAILABLE")]
    if len(explicit) < len(asking):
        faults.append(f"of {len(asking)} requests {len(explicit)} were told, the others {set(answers) - set(explicit)}")
    if abs(ended.after_s - _GRACE_S) > _TOLERANCE_S:
        faults.append(f"{_LATE} {ended.after_s:.2f} s after the signal, with a grace of {_GRACE_S:g} s")
    return [fault for fault in faults if fault], ended.after_s


def _twice(folder: Path) -> tuple[list[str], float]:
    """A second signal ends it at once, whatever runs."""
    with _serving(folder, write_slow(folder / "slow.onnx")) as server:
        processes = server.processes
        asking = threading.Thread(target=_ask, args=(server, [], "http"))
        asking.start()
        _until(lambda: _busy(server))
        ended = _end(server, folder, processes, [signal.SIGTERM, signal.SIGTERM])
        asking.join()
    faults = ended.faults + ([f"it took {ended.after_s:.2f} s"] if ended.after_s > _TOLERANCE_S else [])
    return [fault for fault in faults if fault], ended.after_s


def _while_loading(folder: Path) -> tuple[list[str], float]:
    """A model that takes half a minute to load keeps nobody from ending."""
    path = write_known(folder / f"{MODEL}.onnx")
    planted = folder / "planted"
    planted.mkdir()
    (planted / "sitecustomize.py").write_text(_SLOW_LOAD)
    log_path = folder / "log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlserve", "serve", str(path), "--http-port", "0", "--grpc-port", "0"],
            stdout=log,
            stderr=log,
            env={**os.environ, "TMPDIR": str(folder / "tmp"), "PYTHONPATH": os.pathsep.join(_paths(planted))},
        )
    processes = _until(lambda: len(found := _family(process.pid)) > 1 and found)
    time.sleep(0.5)
    started_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    status: int | None = None
    with suppress(subprocess.TimeoutExpired):
        status = process.wait(20)
    after_s = time.monotonic() - started_s
    if status is None:
        process.kill()
    ended = _Ended(after_s, status, _left(folder, processes), log_path.read_text())
    faults = ended.faults + ([f"it took {after_s:.2f} s"] if after_s > _GRACE_S + _TOLERANCE_S else [])
    return [fault for fault in faults if fault], after_s


def _ask(server: Server, answers: list[str], by: str) -> None:
    """One endless request; the status of its end, or what happened instead."""
    try:
        if by == "http":
            answers.append(str(server.request("POST", "/v2/models/slow/infer", slow_body(ENDLESS)).status))
            return
        with grpc.insecure_channel(server.endpoints.grpc) as channel:
            channel.unary_unary(_INFER)(slow_message(ENDLESS), timeout=60)
            answers.append("OK")
    except grpc.RpcError as error:
        told = any(word in (error.details() or "") for word in ("server", "GOAWAY"))
        answers.append(error.code().name if told else f"cut ({error.code().name}: {error.details()})")
    except (OSError, http.client.HTTPException) as error:
        answers.append(f"cut ({type(error).__name__})")


def _end(server: Server, folder: Path, processes: list[psutil.Process], signals: list[int]) -> _Ended:
    started_s = time.monotonic()
    for number in signals:
        server.process.send_signal(number)
        time.sleep(0.1)
    status: int | None = None
    with suppress(subprocess.TimeoutExpired):
        status = server.process.wait(_GRACE_S + 12.0)
    after_s = time.monotonic() - started_s
    return _Ended(after_s, status, _left(folder, processes), server.log)


def _left(folder: Path, processes: list[psutil.Process]) -> tuple[str, ...]:
    """What is still there: processes, and what they keep among temporary files."""
    deadline_s = time.monotonic() + _LAST_WORDS_S
    while (alive := [each for each in processes if _lives(each)]) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    kept = [path.name for path in (folder / "tmp").glob("mlserve*")]  # engines leave files of their own there
    shared = [path.name for path in Path("/dev/shm").glob("*mlserve*")]
    return (*(f"process {each.pid}" for each in alive), *kept, *shared)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _busy(server: Server) -> bool:
    """Whether an endless run has begun: its worker computes."""
    return any(worker.cpu_percent(0.1) > 30 for worker in server.workers)


def _connected(server: Server) -> list[object]:
    """The connections that its workers have with clients."""
    ports = {int(address.rpartition(":")[2]) for address in (server.endpoints.http, server.endpoints.grpc)}
    return [
        one
        for worker in server.workers
        for one in worker.net_connections()
        if one.status == "ESTABLISHED" and one.laddr.port in ports
    ]


def _until(condition: Callable[[], _Found]) -> _Found:
    deadline_s = time.monotonic() + 60.0
    while not (found := condition()):
        if time.monotonic() > deadline_s:
            raise TimeoutError("it did not come about")
        time.sleep(0.02)
    return found


def _serving(folder: Path, *arguments: str | Path, plant: str = "") -> AbstractContextManager[Server]:
    environment = {"TMPDIR": str(folder / "tmp")}
    return serving(folder, *arguments, *_FLAGS, plant=plant, environment=environment)


def _paths(first: Path) -> list[str]:
    return [str(first), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


def _family(process_id: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        parent = psutil.Process(process_id)
        return [parent, *parent.children(recursive=True)]
    return []


CASE = Case(
    id="B2",
    title="SIGTERM in the worst moments",
    criterion="a request longer than the grace is told so (503, UNAVAILABLE) at its end, +-1 s, with a full queue "
    "behind it; told twice, or while a model loads, the server ends at once; exit 0, no traceback, no process, "
    "folder or shared memory left",
    source="gRPC's graceful stop, Triton's test_shutdown_while_loading",
    run=run,
)
