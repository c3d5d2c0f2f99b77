"""F1: everything at once, for long: load, swaps, bad input and clients that crash; nothing grows."""

import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
from scipy.stats import theilslopes
from scorecard.capacity import find_capacity_for
from scorecard.case import Case, Figure, Form, Outcome, Stage
from scorecard.drift import Drift, Judged, judge_twice, quarters
from scorecard.driver import Driven, Load, drive, driving
from scorecard.http_way import write_request
from scorecard.judging import Question
from scorecard.known import MODEL
from scorecard.server import Endpoints, Server, serving_both

from mlserve.model.store import Store

__all__ = ["CASE"]

_SHARE = 0.6
_SECONDS = {"seconds": 2.0, "short": 300.0, "long": 7 * 3600.0}
_STEP_S = {"seconds": 0.2, "short": 1.0, "long": 10.0}
_EVERY_S = {"seconds": 0.05, "short": 0.25, "long": 10.0}
# How long between two mischiefs, at most.
_MISCHIEF_S = 0.15
_MOST_MIB_PER_H = 1.0
# What memory may grow by whatever its slope: less is the noise of pages, and a short soak shows no MiB an hour.
_NOISE_MIB = 2.0
_MOST_DRIFT = 1.2
_SPARE = 4
_CONTROL_PER_S = 400.0
_SETTLED_S = 0.7
_WARM_UP_S = 10.0

_LEAKS = """
import os
import mlserve.engines.onnx_engine as engine

right, kept = engine.OnnxEngine.run, []

def leaking(self, inputs):
    kept.append(bytearray(os.urandom(1024)) * 32 * len(inputs["x"]))
    return right(self, inputs)

engine.OnnxEngine.run = leaking
"""


class Holding(msgspec.Struct, frozen=True):
    """What a server holds at one moment; `files` are temporary ones and shared memory."""

    at_s: float
    rss_mib: float
    fds: int
    threads: int
    files: int


def run(stage: Stage) -> Outcome:
    mixed = Load(per_s=1, seconds=1, ways=("http", "http", "http-new", "grpc"), versions=("", "production"))
    temporary = stage.folder / "tmp"
    temporary.mkdir()
    flags = {"TMPDIR": str(temporary)}
    with serving_both(stage.folder, plant=_LEAKS, versions=2, environment=flags) as (sound, broken):
        store = Store(stage.folder / "store")
        capacity = find_capacity_for(_SHARE, stage.form, sound.endpoints, mixed, _STEP_S[stage.form], first_per_s=800.0)
        per_s = capacity.share(_SHARE, stage.form)
        load = msgspec.structs.replace(mixed, per_s=per_s, seconds=_SECONDS[stage.form])
        for version, server in product((2, 1), (broken, sound)):
            _warm_up(server, store, version, load)
        outcome = judge_twice(lambda: _play(sound, store, load, stage.form, temporary))
        short = msgspec.structs.replace(load, per_s=_CONTROL_PER_S, seconds=3.0)
        spoilt = _play(broken, store, short, "seconds", temporary).outcome
    return Outcome(
        passed=outcome.passed,
        found=outcome.found,
        figures=(Figure("capacity", capacity.per_s, "requests/s"), *outcome.figures),
        control=f"a server that keeps 32 KiB of every request: {spoilt.found}",
        control_failed=not spoilt.passed,
    )


def _play(server: Server, store: Store, load: Load, form: Form, temporary: Path) -> Judged:
    time.sleep(_SETTLED_S)
    before = _hold(server, temporary, 0.0)
    during: list[Holding] = []
    with driving(server.endpoints, load) as running, _Mischief(server.endpoints, store) as mischief:
        while running.now_s < load.seconds:
            time.sleep(_EVERY_S[form])
            during.append(_hold(server, temporary, running.now_s))
    time.sleep(_SETTLED_S)
    after = _hold(server, temporary, running.now_s)
    return _judge(running.driven, mischief.done, before, during, after, server.traceback, form)


def _warm_up(server: Server, store: Store, version: int, load: Load) -> None:
    """Lets the version answer, so that pools, caches and what is noted of each version are there beforehand."""
    store.promote(MODEL, version)
    brief = msgspec.structs.replace(load, seconds=0.3)
    until_s = time.monotonic() + _WARM_UP_S
    while str(version) not in drive(server.endpoints, brief).versions() and time.monotonic() < until_s:
        pass


def _hold(server: Server, temporary: Path, at_s: float) -> Holding:
    shared = 0
    for process in server.processes:
        with suppress(OSError):
            shared += Path(f"/proc/{process.pid}/maps").read_text().count("/dev/shm")
    # As `Path.rglob` does not, it takes folders in its stride that go while it looks.
    files = sum(len(folders) + len(names) for _, folders, names in os.walk(temporary)) + shared
    return Holding(at_s, server.rss_bytes() / 2**20, server.fds(), server.threads(), files)


class _Mischief:
    """A thread that swaps versions, sends nonsense and breaks off, in a random order."""

    def __init__(self, endpoints: Endpoints, store: Store) -> None:
        self.done = 0
        self._endpoints, self._store = endpoints, store
        self._chooser, self._ending = random.Random(1), threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _work(self) -> None:
        ways: tuple[Callable[[], None], ...] = (self._swap, self._nonsense, self._break_off, self._bad_request)
        while not self._ending.wait(self._chooser.uniform(0.0, _MISCHIEF_S)):
            with suppress(OSError):  # a server may hang up on any of these
                self._chooser.choice(ways)()
            self.done += 1

    def _swap(self) -> None:
        self._store.promote(MODEL, self._chooser.choice((1, 2)))

    def _nonsense(self) -> None:
        address = self._chooser.choice((self._endpoints.http, self._endpoints.grpc))
        self._send(address, self._chooser.randbytes(300) + b"\r\n\r\n")

    def _break_off(self) -> None:
        request = write_request(Question(1), MODEL, self._endpoints.http)
        part = request[: self._chooser.randrange(1, len(request) + 1)]
        self._send(self._endpoints.http, part, reset=True)

    def _bad_request(self) -> None:
        body = self._chooser.choice((b"{", b"[]", b'{"inputs":[]}', b'{"inputs":[{"name":"x","shape":[-1,2]}]}'))
        head = f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        self._send(self._endpoints.http, head.encode() + body)

    def _send(self, address: str, data: bytes, *, reset: bool = False) -> None:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=2) as connection:
            connection.sendall(data)
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                connection.recv(4096)


def _judge(
    driven: Driven, mischief: int, before: Holding, during: list[Holding], after: Holding, traceback: str, form: Form
) -> Judged:
    slope, low = _slope_mib_per_h(during)
    half = during[len(during) // 2 :]
    grown_mib = float(np.median([one.rss_mib for one in half[-5:]]) - np.median([one.rss_mib for one in half[:5]]))
    leaks = low > _MOST_MIB_PER_H and grown_mib > _NOISE_MIB
    drift = quarters(driven)
    faults = [
        driven.not_ok,
        f"memory grew by {grown_mib:.1f} MiB in the second half, {slope:.0f} MiB/h" if leaks else "",
        *_growth(before, after),
        traceback,
    ]
    worse = "; ".join(filter(None, faults))
    slow = f"the p99 drifted to {drift}" if drift.exceeds(_MOST_DRIFT, form) else ""
    fault = "; ".join(filter(None, (worse, slow)))
    answers = f"{driven.count('ok')} answers, all right, beside {mischief} mischiefs"
    good = f"{answers}; nothing grew; p99 of the last quarter {drift} that of the first"
    outcome = Outcome(
        passed=not fault,
        found=fault or good,
        figures=_figures(driven, mischief, slope, grown_mib, after, before, drift),
    )
    return Judged(outcome, only_slow=bool(slow) and not worse)


def _slope_mib_per_h(during: list[Holding]) -> tuple[float, float]:
    """Of the second half: the median of all slopes between two moments, and the lower end of its 95% interval."""
    half = during[len(during) // 2 :]
    found = theilslopes([one.rss_mib for one in half], [one.at_s / 3600 for one in half])
    return float(found.slope), float(found.low_slope)


def _growth(before: Holding, after: Holding) -> list[str]:
    found = []
    for name in ("fds", "threads", "files"):
        more = getattr(after, name) - getattr(before, name)
        if more > _SPARE:
            found.append(f"{more} {name} more than before")
    return found


def _figures(
    driven: Driven, mischief: int, slope: float, grown_mib: float, after: Holding, before: Holding, drift: Drift
) -> tuple[Figure, ...]:
    return (
        Figure("requests", driven.count()),
        Figure("offered", driven.count() / driven.took_s, "requests/s"),
        Figure("driver's core", 100 * driven.cpu_share, "%"),
        Figure("not ok", driven.count() - driven.count("ok"), limit="0"),
        Figure("mischiefs", mischief),
        Figure("memory slope", slope, "MiB/h", "shown below 1, or less than 2 MiB in all"),
        Figure("grown in the second half", grown_mib, "MiB"),
        Figure("descriptors more", after.fds - before.fds, limit=f"at most {_SPARE}"),
        Figure("threads more", after.threads - before.threads, limit=f"at most {_SPARE}"),
        Figure("temporary files and shared memory more", after.files - before.files, limit=f"at most {_SPARE}"),
        Figure("p99 drift", drift.ratio, "times", "below 1.2"),
    )


CASE = Case(
    id="F1",
    title="Soak: mixed load, swaps, bad input and crashing clients",
    criterion="at 0.6 of the capacity, and 3,000/s at most, which the driver can ask for minutes: "
    "lost = wrong = shed = 0; memory is not shown to grow by more than 1 MiB/h in the second half "
    "(Theil-Sen, 95%; below 2 MiB in all is noise); descriptors, threads, shared memory and temporary files stay; the "
    "p99 drifts by at most 1.2 times (in the form of seconds: is not shown to drift by more)",
    source="Triton's L0_memory_growth and its 7-hour stress test",
    run=run,
)
