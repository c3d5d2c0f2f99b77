"""What the load generator costs: how much load one of its processes offers from one core, and how punctually.

    python benchmarks/generator.py [--json OUT] [--seconds N] [--repeats N]

The null server answers every request at once with the same bytes, from one core; the generator has another. It is the
one that `mlserve bench` starts: Locust, the dispatcher and a client, which sends at the rate of a Poisson schedule
whether or not answers come (open loop), and writes a row for each request. The rates climb until a request in a hundred
leaves more than 1 ms late or the generator uses 80% of its core. Beside it, closed loop with 32 requests in flight at
full speed: mlserve's own closed loop, wrk, a stock Locust FastHttpUser, and h2load with one stream a connection. All
take turns, several times over, and the table shows medians.
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
from closed_loop import err, fail, on_core, wide_console, wrk_script
from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table
from served import choose_cores

from mlserve.bench.clients.client import Request
from mlserve.bench.dialects.find import find_dialect
from mlserve.bench.generator.job import Address, Job
from mlserve.bench.generator.process import drive
from mlserve.bench.null_server.opening import open_null_server
from mlserve.bench.target import Target
from mlserve.model.tensors import Tensors, TensorSpec
from mlserve.runs.load import Plan, Protocol
from mlserve.runs.machine import Machine, read_machine
from mlserve.runs.samples import read_samples
from mlserve.runs.window import Window
from mlserve.stats import quantile
from mlserve.units import format_duration, format_rate
from mlserve.wire import messages

# What the issue asks of one process on one core.
WANTED_PER_S = {"REST": 8_000.0, "gRPC": 3_000.0}
MOST_LAG_S, MOST_BUSY = 1e-3, 0.8
RUNGS = {"REST": (8e3, 12e3, 16e3, 20e3, 24e3, 28e3), "gRPC": (3e3, 6e3, 9e3, 12e3, 15e3, 18e3)}
PROTOCOLS: dict[str, Protocol] = {"REST": "rest", "gRPC": "grpc"}
IN_FLIGHT = 32
WARM_UP_S = 0.3
OURS_OPEN, OURS_CLOSED = "mlserve, open loop", "mlserve, closed loop"
# Above this, something else runs on the machine.
QUIET_LOAD = 0.5

ROW: Tensors = {"x": np.random.default_rng(0).standard_normal((1, 30), np.float32)}
SPECS = (TensorSpec("x", "float32", ("batch", 30)),)
ANSWER = (
    b'{"model_name":"null","model_version":"1",'
    b'"outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"data":[0.5,0.5]}]}'
)


class Turn(msgspec.Struct, frozen=True):
    """One turn: requests answered a second, and the share of its core that the generator used. `lag_p99_s` is of how
    late requests left; None in a closed loop, where nothing is due.
    """

    answered_per_s: float
    busy: float
    lag_p50_s: float | None = None
    lag_p99_s: float | None = None
    failed: int = 0


class Cell(msgspec.Struct, frozen=True):
    """Every turn of one way; `offered_per_s` is 0 in a closed loop."""

    way: str
    tool: str
    offered_per_s: float
    turns: list[Turn]

    def typical(self, field: str) -> float:
        """The median of `field` over the turns."""
        return float(median(getattr(turn, field) for turn in self.turns))

    @property
    def held(self) -> bool:
        """Whether the rate was offered as it should be."""
        return (
            self.typical("lag_p99_s") < MOST_LAG_S and self.typical("busy") < MOST_BUSY and self.typical("failed") == 0
        )


class Result(msgspec.Struct, frozen=True):
    """What `--json` writes. `highest_per_s` is the highest rate of each way that was held, 0 for none."""

    machine: Machine
    seconds: float
    load_average: float
    highest_per_s: dict[str, float]
    cells: list[Cell]


class Way(msgspec.Struct, frozen=True):
    """A null server, and what is sent to it."""

    name: str
    address: Address
    request: Request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address.port}{self.address.path}"


def main() -> None:
    options = parse_options()
    server_core, load_core = choose_cores()
    machine, load_average = read_machine(), os.getloadavg()[0]
    if load_average > QUIET_LOAD:
        err.print(f"[yellow]warning:[/] the load average is {load_average:.1f}: other work blurs these figures")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ways = [open_way(name, server_core, stack) for name in WANTED_PER_S]
        tools = list(installed(choose_tools(ways, folder, load_core)))
        cells = measure(ways, tools, load_core, options)
    highest_per_s = {way.name: highest(way.name, cells) for way in ways}
    show(cells, highest_per_s)
    if options.json:
        result = Result(machine, options.seconds, load_average, highest_per_s, cells)
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    if any(highest_per_s[name] < wanted for name, wanted in WANTED_PER_S.items()):
        sys.exit(1)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.5, help="length of one turn")
    parser.add_argument("--repeats", type=int, default=3, help="turns of every way")
    parser.add_argument("--json", type=Path, help="file to write every turn to")
    options = parser.parse_args()
    if options.seconds < 1 or options.repeats < 1:
        fail("--seconds and --repeats must be at least 1")
    if options.json and not options.json.parent.is_dir():
        fail(f"--json {options.json}: there is no folder {options.json.parent}")
    return options


def open_way(name: str, core: int, stack: ExitStack) -> Way:
    """The null server of one protocol, on `core`."""
    dialect = find_dialect(PROTOCOLS[name])
    target = Target(protocol=PROTOCOLS[name], host="127.0.0.1", port=1, model="null")
    answer = ANSWER if name == "REST" else grpc_answer()
    asked = Address(dialect.transport, target.host, target.port, dialect.path(target))
    address = stack.enter_context(open_null_server(asked, answer, (core,)))
    return Way(name, address, dialect.encode(target, ROW, SPECS))


def grpc_answer() -> bytes:
    outputs = [{"name": "y", "datatype": "FP32", "shape": [1, 2]}]
    answer = messages.ModelInferResponse(model_name="null", model_version="1", outputs=outputs)
    answer.raw_output_contents.append(np.float32([0.5, 0.5]).tobytes())
    return bytes(answer.SerializeToString())


# What is measured


class Tool(msgspec.Struct, frozen=True):
    """Something else that loads a server of one way, in a closed loop; `program` is what must be installed."""

    way: str
    name: str
    program: str
    package: str
    take_turn: Callable[[float], Turn]


def choose_tools(ways: Sequence[Way], folder: Path, core: int) -> list[Tool]:
    rest, grpc = ways
    return [
        Tool(rest.name, "wrk", "wrk", "wrk", lambda seconds: run_wrk(rest, folder, core, seconds)),
        Tool(rest.name, "stock Locust", "", "", lambda seconds: run_stock(rest, folder, core, seconds)),
        Tool(grpc.name, "h2load", "h2load", "nghttp2-client", lambda seconds: run_h2load(grpc, folder, core, seconds)),
    ]


def installed(tools: Sequence[Tool]) -> Iterator[Tool]:
    """Those of the tools that are; says which is not."""
    for tool in tools:
        if tool.program and shutil.which(tool.program) is None:
            err.print(f"[yellow]without {tool.name}:[/] it is not installed (apt-get install {tool.package})")
        else:
            yield tool


def measure(ways: Sequence[Way], tools: Sequence[Tool], core: int, options: argparse.Namespace) -> list[Cell]:
    """Everything in its turn, `repeats` times over. The rates of a turn climb until one is not held."""
    cells: dict[tuple[str, str, float], Cell] = {}

    def note(way: str, tool: str, offered_per_s: float, turn: Turn) -> None:
        cells.setdefault((way, tool, offered_per_s), Cell(way, tool, offered_per_s, [])).turns.append(turn)

    with Progress(console=err, transient=True) as progress:
        shown = progress.add_task("taking turns", total=options.repeats * (2 * len(ways) + len(tools)))
        for _ in range(options.repeats):
            for way in ways:
                for rate_per_s in RUNGS[way.name]:
                    turn = run_open(way, rate_per_s, core, options.seconds)
                    note(way.name, OURS_OPEN, rate_per_s, turn)
                    if not Cell(way.name, OURS_OPEN, rate_per_s, [turn]).held:
                        break
                progress.advance(shown)
                note(way.name, OURS_CLOSED, 0.0, run_closed(way, core, options.seconds))
                progress.advance(shown)
                for tool in tools:
                    if tool.way == way.name:
                        note(way.name, tool.name, 0.0, tool.take_turn(options.seconds))
                        progress.advance(shown)
    return sorted(cells.values(), key=lambda cell: (cell.way != "REST", cell.tool != OURS_OPEN, cell.offered_per_s))


def highest(way: str, cells: Sequence[Cell]) -> float:
    """The highest rate that was held, and every lower one with it."""
    found_per_s = 0.0
    for cell in cells:
        if cell.way == way and cell.tool == OURS_OPEN:
            if not cell.held:
                break
            found_per_s = cell.offered_per_s
    return found_per_s


def run_open(way: Way, rate_per_s: float, core: int, seconds: float) -> Turn:
    plan = Plan(rate_per_s=rate_per_s, duration_s=seconds, warm_up_s=WARM_UP_S, protocol=PROTOCOLS[way.name])
    return run_ours(way, plan, core)


def run_closed(way: Way, core: int, seconds: float) -> Turn:
    plan = Plan(
        rate_per_s=0,
        duration_s=seconds,
        warm_up_s=WARM_UP_S,
        arrivals="closed",
        users=IN_FLIGHT,
        protocol=PROTOCOLS[way.name],
    )
    return msgspec.structs.replace(run_ours(way, plan, core), lag_p50_s=None, lag_p99_s=None)


def run_ours(way: Way, plan: Plan, core: int) -> Turn:
    with tempfile.TemporaryDirectory() as directory:
        job = Job(plan=plan, name="null", address=way.address, requests=(way.request,), order=(0,), directory=directory)
        finished = drive(job, (core,), lambda *_: None)
        samples = read_samples(Path(directory), Window(plan.warm_up_s, finished.end_s))
    lag_s = samples.dispatch_lag_s
    good = int(samples.ok.sum())
    return Turn(
        answered_per_s=good / plan.duration_s,
        busy=finished.cpus[0],
        lag_p50_s=quantile(lag_s, 0.5),
        lag_p99_s=quantile(lag_s, 0.99),
        failed=len(samples) - good,
    )


def run_wrk(way: Way, folder: Path, core: int, seconds: float) -> Turn:
    script = folder / "wrk.lua"
    script.write_text(wrk_script(way.request.body))
    length = round(seconds + 0.5)
    said, busy = run_on(core, ["wrk", "-t1", f"-c{IN_FLIGHT}", f"-d{length}s", "-s", str(script), way.url])
    found = json.loads(said.rstrip().rpartition("\n")[2])
    return Turn(found["requests"] / found["took_us"] * 1e6, busy, failed=found["errors"])


def run_stock(way: Way, folder: Path, core: int, seconds: float) -> Turn:
    body = folder / "body"
    body.write_bytes(way.request.body)
    command = [sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("stock_locust.py")), "--headless"]
    command += ["--users", str(IN_FLIGHT), "--spawn-rate", "1000", "--host", f"http://127.0.0.1:{way.address.port}"]
    command += ["--only-summary", "--skip-log-setup", "--exit-code-on-error", "0"]
    command += ["--body-file", str(body), "--path", way.address.path, "--seconds", str(seconds)]
    said, _ = run_on(core, command)
    found = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    return Turn(found["answered"] / found["seconds"], found["busy"], failed=found["failed"])


def run_h2load(way: Way, folder: Path, core: int, seconds: float) -> Turn:
    message = folder / "message"
    payload = way.request.body
    message.write_bytes(b"\0" + len(payload).to_bytes(4, "big") + payload)  # gRPC's frame: not compressed, so long
    fields = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    length = round(seconds + 0.5)
    said, busy = run_on(
        core, ["h2load", "-t1", f"-c{IN_FLIGHT}", "-m1", f"-D{length}", "-d", str(message), *fields, way.url]
    )
    counts = re.search(r"requests: (\d+) total, .* (\d+) succeeded", said)
    if counts is None:
        fail(f"h2load said nothing of its requests:\n{said}")
    return Turn(int(counts[2]) / length, busy, failed=int(counts[1]) - int(counts[2]))


def run_on(core: int, command: Sequence[str]) -> tuple[str, float]:
    """What `command` says, and the share of `core` that it used from its start to its end."""
    before, started_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with on_core(core):
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    took_s, after = time.monotonic() - started_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        fail(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr.strip()[-500:]}")
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return ended.stdout, used_s / took_s


# Showing


def show(cells: Sequence[Cell], highest_per_s: dict[str, float]) -> None:
    console = wide_console()
    table = Table(title="one process on one core, against the null server", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("way", "tool", "offered", "answered", "lag\np50", "lag\np99", "its core", "us a\nrequest", "held"):
        table.add_column(heading, justify="left" if heading in {"way", "tool"} else "right", no_wrap=True)
    for cell in cells:
        ours = cell.tool == OURS_OPEN
        answered_per_s, busy = cell.typical("answered_per_s"), cell.typical("busy")
        table.add_row(
            cell.way,
            cell.tool,
            format_rate(cell.offered_per_s) if ours else "",
            format_rate(answered_per_s),
            format_duration(cell.typical("lag_p50_s")) if ours else "",
            format_duration(cell.typical("lag_p99_s")) if ours else "",
            f"{busy:.0%}",
            f"{busy / answered_per_s * 1e6:.0f}" if answered_per_s else "",
            ("yes" if cell.held else "no") if ours else "",
        )
    console.print(table)
    for way, wanted_per_s in WANTED_PER_S.items():
        verdict = "[green]pass[/]" if highest_per_s[way] >= wanted_per_s else "[red]miss[/]"
        found = format_rate(highest_per_s[way]) if highest_per_s[way] else "none"
        console.print(
            f"{verdict}  {way}: highest rate with p99 lag under {format_duration(MOST_LAG_S)} and under "
            f"{MOST_BUSY:.0%} of the core: {found}, wanted {format_rate(wanted_per_s)}",
            highlight=False,
        )


if __name__ == "__main__":
    main()
