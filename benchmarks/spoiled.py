"""Ten ways to spoil a run, and twenty runs that nothing is wrong with: is each called what it is?

    python benchmarks/spoiled.py --json spoiled.json

Real servers, real load, real verdicts. A spoiled run must be INVALID for the right reason: the check that is meant for
it fails, whatever else fails with it. A clean run must be VALID. About four minutes, on two cores or more.

The clock of the machine is left alone: a step of it is injected where the watch over the run reads the clocks.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import typer
from closed_loop import err, fail, wide_console
from rich.table import Table
from spoiled_server import Behaviour, serving_badly
from subjects import write_tiny

from mlserve.bench.clients.client import Request
from mlserve.bench.cores import split_cores
from mlserve.bench.dialects.find import find_dialect
from mlserve.bench.driver import Subject, run_bench, url_subject
from mlserve.bench.generator.job import Address
from mlserve.bench.null_server.opening import open_null_server
from mlserve.bench.payload.payload import PayloadWish
from mlserve.bench.probe import ask_once
from mlserve.bench.target import parse_target
from mlserve.bench.watching.clock import ClockReading, read_clocks
from mlserve.bench.watching.watch import THIS_MACHINE, Sources
from mlserve.model.synthesis import synthesize
from mlserve.runs.load import Plan, Protocol
from mlserve.runs.run import Run
from mlserve.tuning.serving import Served, ServerOptions, file_subject, serving

_CLEAN: tuple[tuple[Protocol, float], ...] = (("rest", 300), ("grpc", 300), ("rest-binary", 600), ("rest", 1000))
_STEP_NS = 250_000_000


class Way(msgspec.Struct, frozen=True):
    """One way to spoil a run: the checks that are meant for it, one of which must fail, and how it is done."""

    name: str
    reasons: tuple[str, ...]
    spoil: Callable[["Rig"], Run]


class Outcome(msgspec.Struct, frozen=True):
    """What a run was called. `right`: what it should have been called, and for the reason it should."""

    name: str
    reasons: tuple[str, ...]
    valid: bool
    faults: dict[str, str]
    right: bool


class Rig:
    """A server of a tiny model, the cores it leaves, and a folder for runs."""

    def __init__(self, served: Served, model: Path, folder: Path) -> None:
        self.served, self.model, self._folder = served, model, folder
        self._runs = 0

    def subject(self, protocol: Protocol = "rest") -> Subject:
        """The tiny model behind the server."""
        return file_subject(self.served, self.model, protocol, PayloadWish())

    def run(self, subject: Subject, sources: Sources = THIS_MACHINE, **plan: Any) -> Run:
        """A load test of a second or two, with what `plan` says instead."""
        asked = {"rate_per_s": 400, "duration_s": 2.0, "warm_up_s": 0.5, "protocol": subject.target.protocol} | plan
        self._runs += 1
        directory = self._folder / f"run-{self._runs}"
        directory.mkdir()
        return run_bench(subject, Plan(**asked), directory, directory.name, lambda _: None, sources=sources)

    @contextmanager
    def known(self, behaviour: Behaviour) -> Iterator[Subject]:
        """A server of known behaviour, in the place of ours."""
        with serving_badly(behaviour, self.served.settings.cpus) as (url, pid):
            subject = url_subject(parse_target(url))
            yield msgspec.structs.replace(subject, cpus=self.served.spare_cpus, pids=(pid,))


def overload_generator(rig: Rig) -> Run:
    """40,000 requests/s, to a server that does nothing but answer: it is not the one that is slow."""
    subject = rig.subject()
    answer = ask_once(subject.target, _one_row(subject))
    address = Address("http", subject.target.host, subject.target.port, subject.target.infer_path)
    with open_null_server(address, answer, rig.served.settings.cpus) as null_server:
        target = msgspec.structs.replace(subject.target, port=null_server.port)
        return rig.run(
            msgspec.structs.replace(subject, target=target, metrics_url=""), rate_per_s=40_000, duration_s=1.5
        )


def share_core(rig: Rig) -> Run:
    return rig.run(msgspec.structs.replace(rig.subject(), cpus=rig.served.settings.cpus))


def include_cold_start(rig: Rig) -> Run:
    """The first 150 of 800 requests take 6 ms more, and nothing is cut."""
    with rig.known(Behaviour(service_s=0.0005, cold_extra_s=0.006, cold_requests=150)) as subject:
        return rig.run(subject, rate_per_s=100, duration_s=8.0, warm_up_s=0.0)


def take_too_few(rig: Rig) -> Run:
    return rig.run(rig.subject(), rate_per_s=100)


def use_wrong_provider(rig: Rig) -> Run:
    """The server says that it runs on the CPU; the run was meant for a GPU."""
    meant = msgspec.structs.replace(rig.served.settings, device="cuda")
    return rig.run(msgspec.structs.replace(rig.subject(), server=meant))


def step_clock(rig: Rig) -> Run:
    """From its third reading on, the wall clock is a quarter of a second ahead."""
    readings: list[ClockReading] = []

    def clocks() -> ClockReading:
        now = read_clocks()
        readings.append(now)
        return msgspec.structs.replace(now, wall_ns=now.wall_ns + (_STEP_NS if len(readings) > 3 else 0))

    return rig.run(rig.subject(), Sources(clocks=clocks))


def refuse_some(rig: Rig) -> Run:
    """One request in twenty."""
    with rig.known(Behaviour(service_s=0.0005, fails_each=20)) as subject:
        return rig.run(subject)


def ask_meanwhile(rig: Rig) -> Run:
    """Somebody else sends the server fifty requests."""
    subject = rig.subject()
    ended = threading.Event()
    thread = threading.Thread(target=_ask_until, args=(subject, _one_row(subject), ended))
    thread.start()
    try:
        return rig.run(subject)
    finally:
        ended.set()
        thread.join()


def ask_too_much(rig: Rig) -> Run:
    """400 requests/s of a server that answers 250."""
    with rig.known(Behaviour(service_s=0.004)) as subject:
        return rig.run(subject)


def hog_core(rig: Rig) -> Run:
    """Another process spins on the server's core. It is no child of this one: those count as the bench's own."""
    spin = f"import os\nos.sched_setaffinity(0, {rig.served.settings.cpus})\nwhile True: pass"
    orphaned = ["sh", "-c", '"$@" >/dev/null & echo $!', "sh", sys.executable, "-c", spin]
    hog = int(subprocess.run(orphaned, stdout=subprocess.PIPE, check=True).stdout)
    try:
        return rig.run(rig.subject())
    finally:
        os.kill(hog, signal.SIGKILL)


WAYS = (
    Way("overloaded generator", ("generator CPU", "generator on time", "calibration rate"), overload_generator),
    Way("shared core", ("own cores",), share_core),
    Way("cold start included", ("warm-up",), include_cold_start),
    Way("too few samples", ("enough samples",), take_too_few),
    Way("wrong provider", ("execution provider",), use_wrong_provider),
    Way("clock step", ("clock",), step_clock),
    Way("server errors", ("answered",), refuse_some),
    Way("counter mismatch", ("server counters",), ask_meanwhile),
    Way("rate not reached", ("rate reached",), ask_too_much),
    Way("another process", ("other work",), hog_core),
)


def main(
    clean: Annotated[int, typer.Option(help="How many runs that nothing is wrong with.")] = 20,
    only: Annotated[str, typer.Option(help="One way alone, by its name.")] = "",
    json: Annotated[Path | None, typer.Option(help="Also write every verdict and its faults here.")] = None,
) -> None:
    """Spoils runs in ten ways, leaves others alone, and compares what each is called with what it is."""
    if not split_cores(sorted(os.sched_getaffinity(0)))[1]:
        fail("server and generator need a core each; this machine has one")
    if only and only not in {way.name for way in WAYS}:
        fail(f"--only {only!r} is no way to spoil a run; use one of: {', '.join(way.name for way in WAYS)}")
    if os.getloadavg()[0] > 0.5:
        err.print(f"other work runs on this machine (load {os.getloadavg()[0]:.1f}): clean runs may rightly be INVALID")
    ways = [way for way in WAYS if only in ("", way.name)]
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, _rig(Path(scratch)) as rig:
        outcomes = [_called(way, rig) for way in ways]
        outcomes += [_called(_clean_way(number), rig) for number in range(0 if only else clean)]
    took_s = time.monotonic() - began_s
    _print_outcomes(outcomes, took_s)
    if json is not None:
        document = {"took_s": took_s, "outcomes": outcomes, "clock_step": "injected reading"}
        json.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    sys.exit(0 if all(outcome.right for outcome in outcomes) else 1)


@contextmanager
def _rig(folder: Path) -> Iterator[Rig]:
    model = write_tiny(folder / "tiny.onnx")
    with serving(str(model), folder / "store", ServerOptions()) as served:
        yield Rig(served, model, folder)


def _clean_way(number: int) -> Way:
    protocol, rate_per_s = _CLEAN[number % len(_CLEAN)]
    run = partial(_run_clean, protocol=protocol, rate_per_s=rate_per_s, seed=number)
    return Way(f"clean: {protocol} at {rate_per_s:g}/s", (), run)


def _run_clean(rig: Rig, protocol: Protocol, rate_per_s: float, seed: int) -> Run:
    return rig.run(rig.subject(protocol), rate_per_s=rate_per_s, seed=seed)


def _called(way: Way, rig: Rig) -> Outcome:
    err.print(f"{way.name} ...", highlight=False)
    certificate = way.spoil(rig).certificate
    faults = {check.name: f"{check.found} (limit: {check.limit})" for check in certificate.faults}
    right = bool(faults.keys() & set(way.reasons)) if way.reasons else certificate.valid
    return Outcome(way.name, way.reasons, certificate.valid, faults, right)


def _print_outcomes(outcomes: Sequence[Outcome], took_s: float) -> None:
    table = Table("run", "must fail", "called", "checks that failed", "right")
    for outcome in outcomes:
        faults = "\n".join(f"{name}: {found}" for name, found in outcome.faults.items())
        called = "VALID" if outcome.valid else "INVALID"
        table.add_row(outcome.name, " or ".join(outcome.reasons), called, faults, "yes" if outcome.right else "NO")
    console = wide_console()
    console.print(table)
    for title, chosen in (
        ("spoiled", [one for one in outcomes if one.reasons]),
        ("clean", [one for one in outcomes if not one.reasons]),
    ):
        console.print(f"{title}: {sum(one.right for one in chosen)} of {len(chosen)} called what they are")
    console.print(f"{took_s:.0f} s")


def _one_row(subject: Subject) -> Request:
    row = synthesize(subject.inputs, 1, np.random.default_rng(0), {})
    return find_dialect(subject.target.protocol).encode(subject.target, row, subject.inputs)


def _ask_until(subject: Subject, request: Request, ended: threading.Event) -> None:
    for _ in range(50):
        if ended.wait(0.1):
            return
        ask_once(subject.target, request)


if __name__ == "__main__":
    typer.run(main)
