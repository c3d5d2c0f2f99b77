"""Other people's servers and mlserve under one and the same load: arrivals, rows and core are the same for all.

    python benchmarks/field.py [--json OUT] [--rps N] [--duration S] [--repeats N] [--without PEER]...

`mlserve bench` measures mlserve, MLServer, LitServe and a FastAPI application written by hand (each in an environment
of its own, below `benchmarks/.work/`), each over the protocols it speaks: V2 over REST, with raw tensors and over gRPC,
and plain JSON by a template. The load is open loop at a rate that all of them can keep, so that the latencies are those
of serving and not of queues: the tiny MLP, one row a request, every server on the same one core and the generator on
another. Servers take turns and stand still in between. Before a server is loaded, its answer equals onnxruntime's, read
by the same dialect that the load is sent by. Every line has the certificates of its runs.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import msgspec
from closed_loop import err, fail, wide_console
from environments import Environment, prepare
from peer_servers import PeerServer, paused, serving_peer, settings_of
from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Table
from served import choose_cores, serving
from subjects import Subject as Model
from subjects import describe, differing_output, write_tiny

from mlserve import __version__
from mlserve.bench.dialects.find import find_dialect
from mlserve.bench.driver import Subject, run_bench
from mlserve.bench.probe import ask_once
from mlserve.bench.target import parse_target
from mlserve.errors import MlserveError
from mlserve.runs.load import Plan, Protocol
from mlserve.runs.machine import Machine, read_machine
from mlserve.runs.run import Run, ServedModel
from mlserve.runs.samples import read_samples
from mlserve.stats import minimum_samples, quantile
from mlserve.units import format_duration

__all__ = ["main"]

PEERS = {"mlserver": "MLServer", "litserve": "LitServe", "fastapi": "FastAPI by hand"}
OURS = "mlserve"
# How the two applications of `apps/` are asked, and where in their answers the outputs lie.
TEMPLATE, ANSWER = '{"inputs": {{columns}}}', "outputs"
_ENDING = (signal.SIGINT, signal.SIGTERM)


class Figures(msgspec.Struct, frozen=True):
    """One run, in seconds; `p99_s` is None where there are too few answers to claim it."""

    p50_s: float
    p99_s: float | None
    requests: int
    failed: int
    dropped: int
    valid: bool
    faults: tuple[str, ...]
    run: Run


class Line(msgspec.Struct, frozen=True):
    """Every run of one server over one protocol."""

    server: str
    protocol: Protocol
    figures: list[Figures]


class Result(msgspec.Struct, frozen=True):
    """What `--json` writes."""

    machine: Machine
    load_average: float
    mlserve: str
    packages: dict[str, dict[str, str]]
    plan: Plan
    lines: list[Line]


class Way(NamedTuple):
    """One line to be: what is loaded, and the block in which it may run."""

    line: Line
    subject: Subject
    in_turn: Callable[[], AbstractContextManager[Any]]


def main() -> None:
    for number in _ENDING:
        signal.signal(number, _leave)
    options = parse_options()
    server_core, load_core = choose_cores()
    machine, load_average = read_machine(), os.getloadavg()[0]
    environments = {name: prepare(name) for name in PEERS if name not in options.without}
    plan = Plan(rate_per_s=options.rps, duration_s=options.duration, warm_up_s=2.0, seed=options.seed)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        model = describe(str(write_tiny(folder / "tiny.onnx")), folder / "store")
        ways = open_ways(model, environments, (server_core, load_core), folder, stack)
        try:
            for way in ways:
                with way.in_turn():
                    check_answer(model, way.subject)
            take_turns(ways, plan, options.repeats, folder)
        except MlserveError as error:
            fail(str(error))
    lines = [way.line for way in ways]
    if options.json:
        packages = {each.name: each.packages for each in environments.values()}
        result = Result(machine, load_average, __version__, packages, plan, lines)
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    show(lines, plan, load_average)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", action="append", default=[], choices=list(PEERS), help="leave a peer out")
    parser.add_argument("--rps", type=float, default=150.0, help="requests a second, for every server")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds of one run")
    parser.add_argument("--repeats", type=int, default=3, help="runs of every line")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals and the rows")
    parser.add_argument("--json", type=Path, help="file to write every run to")
    options = parser.parse_args()
    if options.rps <= 0 or options.duration <= 0 or options.repeats < 1:
        fail("--rps and --duration must be above 0, --repeats at least 1")
    if options.json and not options.json.parent.is_dir():
        fail(f"--json {options.json}: there is no folder {options.json.parent}")
    return options


def open_ways(
    model: Model, environments: dict[str, Environment], cores: tuple[int, int], folder: Path, stack: ExitStack
) -> list[Way]:
    """Every server, started, and the protocols it is loaded by; all of them end with `stack`."""
    server_core, load_core = cores
    ours = stack.enter_context(serving([model], (server_core,), folder / "store", folder))
    settings = [each for each in settings_of(list(environments)) if each.rows == 1 and not each.threads]
    peers = [
        stack.enter_context(serving_peer(each, environments[each.peer], model, server_core, folder))
        for each in track(settings, "starting peers", console=err)
    ]
    turn_of = stack.enter_context(paused(peers))
    path = f"/v2/models/{model.name}"
    our_urls = (
        f"rest+{ours.http}{path}",
        f"rest-binary+{ours.http}{path}",
        f"grpc+grpc://{ours.grpc}/{model.name}",
        f"json+{ours.http}/v1/predict",
    )
    return [
        *(_way(model, load_core, OURS, url, ours.http, nullcontext) for url in our_urls),
        *(
            _way(model, load_core, PEERS[peer.setting.peer], url, peer.metrics, partial(turn_of, peer))
            for peer in peers
            for url in _urls(peer, model.name)
        ),
    ]


def _urls(peer: PeerServer, model: str) -> Iterator[str]:
    if peer.grpc:
        yield f"rest+{peer.http}/v2/models/{model}"
        yield f"grpc+{peer.grpc}/{model}"
    else:
        yield f"json+{peer.http}/predict"


def _way(
    model: Model, core: int, server: str, url: str, metrics_url: str, in_turn: Callable[[], AbstractContextManager[Any]]
) -> Way:
    template, answer = (TEMPLATE, ANSWER) if url.startswith("json+") else ("", "")
    name, target = server.replace(" ", "-"), parse_target(url, template=template, answer=answer)
    subject = Subject(
        target=target,
        model=ServedModel(url=target.url, name=model.name, variant=name),
        inputs=model.inputs,
        outputs=model.outputs,
        metrics_url=metrics_url,
        cpus=(core,),
    )
    return Way(Line(server, target.protocol, []), subject, in_turn)


def check_answer(model: Model, subject: Subject) -> None:
    """The server must answer what onnxruntime answers, in the dialect that it is loaded by."""
    target = subject.target
    dialect = find_dialect(target.protocol, target.answer)
    content = ask_once(target, dialect.encode(target, model.row, model.inputs))
    name = differing_output(model, dialect.decode(content, {spec.name: spec for spec in model.outputs}))
    if name:
        fail(f"{subject.model.variant} over {target.protocol}: output {name!r} differs from onnxruntime's own")


def take_turns(ways: Sequence[Way], plan: Plan, repeats: int, folder: Path) -> None:
    for number in track(range(repeats), "taking turns", console=err):
        for way in ways:
            directory = folder / f"run-{number}-{way.subject.model.variant}-{way.line.protocol}"
            directory.mkdir()
            wanted = msgspec.structs.replace(plan, protocol=way.line.protocol)
            with way.in_turn():
                run = run_bench(way.subject, wanted, directory, way.subject.model.variant, lambda _: None)
            way.line.figures.append(_figures(run, directory))


def _figures(run: Run, directory: Path) -> Figures:
    samples = read_samples(directory, run.window)
    latency_s = samples.latency_s
    return Figures(
        p50_s=quantile(latency_s, 0.5),
        p99_s=quantile(latency_s, 0.99) if len(latency_s) >= minimum_samples(0.99) else None,
        requests=run.counts.scheduled,
        failed=run.counts.failed,
        dropped=run.counts.dropped,
        valid=run.certificate.valid,
        faults=tuple(check.name for check in run.certificate.faults),
        run=run,
    )


def show(lines: Sequence[Line], plan: Plan, load_average: float) -> None:
    """One table: medians over the runs, and what their certificates say."""
    table = Table(title=f"latency at {plan.rate_per_s:g} requests/s", title_justify="left", box=SIMPLE_HEAD)
    for name in ("server", "protocol"):
        table.add_column(name, no_wrap=True)
    for name in ("requests", "p50", "p99", "failed", "dropped"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("certificates")
    for line in lines:
        figures = line.figures
        p99_s = [each.p99_s for each in figures if each.p99_s is not None]
        faults = sorted({fault for each in figures for fault in each.faults})
        valid = sum(each.valid for each in figures)
        table.add_row(
            line.server,
            line.protocol,
            str(sum(each.requests for each in figures)),
            format_duration(median(each.p50_s for each in figures)),
            format_duration(median(p99_s)) if len(p99_s) == len(figures) else "too few",
            str(sum(each.failed for each in figures)),
            str(sum(each.dropped for each in figures)),
            f"{valid} of {len(figures)} VALID" + (f" (failed: {', '.join(faults)})" if faults else ""),
        )
    wide_console().print(table)
    err.print(
        "The same seeded arrivals and rows for every server, one core for the servers, one for the generator; medians "
        f"over the runs. The load average was {load_average:.1f} before.",
        highlight=False,
    )


def _leave(number: int, _: FrameType | None) -> NoReturn:
    """Ends by way of every `finally`, which ends every server."""
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)
