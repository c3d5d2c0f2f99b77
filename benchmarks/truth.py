"""Is it true? Response times that are known beforehand, as mlserve measures them, and as stock Locust does.

    .venv/bin/python benchmarks/truth.py [--seconds 36] [--only NAME] [--json FILE]

A server with a known behaviour (known_server.py: fixed time, a stall, a ramp, two kinds of requests, errors) runs on
one core, the load generator on the other, at 150 requests per second. What each request of mlserve's schedule must take
follows from the schedule by computation. Beside it stands what a stock Locust says of the same server at the same rate:
20 FastHttpUsers with `constant_throughput`, its own percentiles. They wait for an answer before they ask again, so
that a stall of a second is seen by 20 requests and not by 150, and they come at even distances.

Exit status 1 when mlserve is more than 2% from the truth at p50, p90, p99 or p99.9, or its share of errors is wrong.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
from known_server import BEHAVIOURS, INFER, true_latencies
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mlserve.bench.driver import run_bench, url_subject
from mlserve.bench.leash import leashed
from mlserve.bench.load.schedule import schedule
from mlserve.bench.target import parse_target
from mlserve.runs.load import Plan
from mlserve.runs.machine import read_machine
from mlserve.runs.percentiles import PERCENTILES, too_few
from mlserve.runs.samples import Samples, read_samples
from mlserve.runs.window import Window
from mlserve.stats import quantile
from mlserve.units import format_duration

RATE_PER_S = 150.0
USERS = 20
WARM_UP_S = 1.0
SHOWN = ("p50", "p90", "p99", "p99.9")
MOST_OFF = 0.02

LOCUSTFILE = """
from locust import FastHttpUser, constant_throughput, task

class Stock(FastHttpUser):
    wait_time = constant_throughput({each_per_s})

    @task
    def infer(self):
        self.client.post("{path}", json={{"inputs": [{{"name": "x", "shape": [1, 4], "datatype": "FP32",
                                                       "data": [0.0, 0.0, 0.0, 0.0]}}]}})
"""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Percentiles in seconds by name. `locust` is what Locust says in its own report; `faults` are the checks of
    mlserve's certificate that fail: a stall and a ramp are not steady, and a busy machine makes every figure wrong.
    """

    behaviour: str
    requests: int
    truth: dict[str, float]
    mlserve: dict[str, float]
    locust: dict[str, float]
    true_errors: float
    errors: float
    faults: tuple[str, ...]

    @property
    def holds(self) -> bool:
        close = all(abs(self.mlserve[name] / self.truth[name] - 1) <= MOST_OFF for name in self.truth)
        return close and self.errors == self.true_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=36.0, help="how long each load takes")
    parser.add_argument("--only", choices=BEHAVIOURS, help="one behaviour instead of all")
    parser.add_argument("--json", type=Path, help="where the figures go too")
    arguments = parser.parse_args()
    outcomes = []
    for behaviour in [arguments.only] if arguments.only else BEHAVIOURS:
        outcomes.append(measure(behaviour, arguments.seconds))
        show(outcomes[-1:])
        if arguments.json:
            content = {"machine": msgspec.to_builtins(read_machine()), "outcomes": msgspec.to_builtins(outcomes)}
            arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    sys.exit(not all(outcome.holds for outcome in outcomes))


def measure(behaviour: str, seconds: float) -> Outcome:
    """One behaviour, by mlserve and then by Locust, each against a server of its own."""
    plan = Plan(rate_per_s=RATE_PER_S, duration_s=seconds, warm_up_s=WARM_UP_S, seed=7)
    with tempfile.TemporaryDirectory() as scratch:
        with serving(behaviour, seconds + WARM_UP_S) as url:
            samples, window, faults = by_mlserve(url, plan, Path(scratch) / "run")
        with serving(behaviour, seconds + WARM_UP_S) as url:
            locust = by_locust(url, seconds + WARM_UP_S, Path(scratch))
    latency_s, ok = truth(behaviour, plan, window)
    return Outcome(
        behaviour=behaviour,
        requests=len(samples),
        truth=figures(latency_s[ok]),
        mlserve=figures(samples.latency_s),
        locust=locust,
        true_errors=float(1 - ok.mean()),
        errors=float(1 - samples.ok.mean()),
        faults=faults,
    )


def truth(behaviour: str, plan: Plan, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """(response times [n], which were answered well [n]) of the requests that `plan` schedules in `window`."""
    due_s = schedule(plan) / 1e9
    latency_s, ok = true_latencies(behaviour, plan.duration_s + plan.warm_up_s, due_s)
    inside = (due_s >= window.start_s) & (due_s < window.end_s)
    return latency_s[inside], ok[inside]


def figures(latency_s: np.ndarray) -> dict[str, float]:
    """The percentiles that there are samples enough for."""
    enough = [name for name in SHOWN if not too_few(name, PERCENTILES[name], len(latency_s))]
    return {name: quantile(latency_s, PERCENTILES[name]) for name in enough}


def by_mlserve(url: str, plan: Plan, directory: Path) -> tuple[Samples, Window, tuple[str, ...]]:
    directory.mkdir()
    subject = msgspec.structs.replace(url_subject(parse_target(url)), cpus=generator_cpus())
    run = run_bench(subject, plan, directory, "truth", lambda _: None)
    return read_samples(directory, run.window), run.window, tuple(check.name for check in run.certificate.faults)


def by_locust(url: str, seconds: float, scratch: Path) -> dict[str, float]:
    """What stock Locust reports: the row of all requests in its own table, in seconds."""
    locustfile, table = scratch / "stock.py", scratch / "stock"
    locustfile.write_text(LOCUSTFILE.format(each_per_s=RATE_PER_S / USERS, path=INFER))
    command = [sys.executable, "-m", "locust", "--locustfile", str(locustfile), "--headless", "--host", url]
    command += ["--users", str(USERS), "--spawn-rate", str(USERS), "--run-time", f"{seconds:.0f}s"]
    command += ["--csv", str(table), "--only-summary", "--exit-code-on-error", "0"]
    subprocess.run(leashed(command, generator_cpus()), check=True, cwd=scratch, capture_output=True)
    with (scratch / "stock_stats.csv").open() as file:
        total = next(row for row in csv.DictReader(file) if row["Name"] == "Aggregated")
    return {name: float(total[f"{PERCENTILES[name]:.1%}".replace(".0%", "%")]) / 1e3 for name in SHOWN}


@contextmanager
def serving(behaviour: str, seconds: float) -> Iterator[str]:
    """The URL of a known server in a process of its own, on the first core where there are two."""
    server = Path(__file__).with_name("known_server.py")
    command = [sys.executable, str(server), behaviour, "--seconds", str(seconds)]
    process = subprocess.Popen(leashed(command, cores()[:1]), stdout=subprocess.PIPE)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def cores() -> tuple[int, ...]:
    """The cores to share out; none where there is but one."""
    free = tuple(sorted(os.sched_getaffinity(0)))
    return free if len(free) > 1 else ()


def generator_cpus() -> tuple[int, ...]:
    return cores()[1:2]


def show(outcomes: Sequence[Outcome]) -> None:
    table = Table(box=SIMPLE_HEAD)
    for heading in ("behaviour", "", *SHOWN, "errors", "verdict"):
        table.add_column(heading, justify="left" if heading in ("behaviour", "") else "right", no_wrap=True)
    for each in outcomes:
        rows = [("truth", each.truth, f"{each.true_errors:.2%}", "")]
        rows += [("mlserve", each.mlserve, f"{each.errors:.2%}", "holds" if each.holds else "OFF")]
        rows += [("Locust, as it comes", each.locust, "", "")]
        for number, (who, figures_s, errors, verdict) in enumerate(rows):
            shown = [cell(figures_s, each.truth, name, first=not number) for name in SHOWN]
            table.add_row("" if number else each.behaviour, who, *shown, errors, verdict)
    console = Console(width=140)
    console.print(table)
    for each in outcomes:
        console.print(f"{each.behaviour}: certificate {', '.join(each.faults) or 'VALID'}", markup=False)


def cell(figures_s: dict[str, float], truth_s: dict[str, float], name: str, *, first: bool) -> str:
    if name not in figures_s or name not in truth_s:
        return "-"
    off = "" if first else f" {figures_s[name] / truth_s[name] - 1:+.1%}"
    return f"{format_duration(figures_s[name])}{off}"


if __name__ == "__main__":
    main()
