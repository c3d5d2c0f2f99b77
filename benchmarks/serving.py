"""What serving costs: `mlserve serve` on one core, the load on another, beside onnxruntime in process on the first.

    python benchmarks/serving.py [--minilm STORE_REF_OR_ONNX] [--json OUT] [--seconds N] [--repeats N]

Two models: a tiny MLP (30 -> 64 -> 32 -> 2), of which nearly all is the server's own cost, and MiniLM (1 x 32 tokens),
of which nearly all is the model. Each is asked over REST (JSON tensors, by wrk) and gRPC (raw tensors, by h2load with
one stream a connection) with 1, 8 and 32 requests in flight, one row each; onnxruntime, one thread, runs 1, 8 and 32
rows at once. All of these take turns, several times over, and the table shows medians. Everything is switched on that a
server has: validation, limits, metrics, and an API key (`--without-keys` leaves the key out). Before anything is timed,
the answers are compared with onnxruntime's; afterwards the server's own counters must show no failed request.
"""

import argparse
import json
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec
from closed_loop import WARM_UP_S, Timing, err, fail, require_tools, run_h2load, run_wrk, wide_console, wrk_script
from goals import Goal, check_goals
from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Table
from served import (
    INFER,
    Server,
    check_answers,
    check_counters,
    choose_cores,
    make_key,
    read_failures,
    read_total,
    serving,
)
from subjects import Subject, choose_subjects, open_session, run_in_process

from mlserve.runs.machine import Machine, read_machine
from mlserve.units import format_duration, format_rate

AT_ONCE = (1, 8, 32)
# So many answers show what the server's own batches were; in process, onnxruntime then runs as many rows.
SATURATED = 32
# Above this, something else runs on the machine.
QUIET_LOAD = 0.5
SENTENCE = "The quick brown fox jumps over the lazy dog while the farmer looks on and wonders what it may mean."


class Way(NamedTuple):
    """One way of asking one model: with so many requests in flight, or in process with so many rows a run."""

    model: str
    name: str
    at_once: int
    take_turn: Callable[[float], Timing]


class Cell(msgspec.Struct, frozen=True):
    """Every turn of one way."""

    model: str
    way: str
    at_once: int
    turns: list[Timing]

    def typical(self, field: str) -> float:
        """The median of `field` over the turns."""
        return median(getattr(turn, field) for turn in self.turns)


class Result(msgspec.Struct, frozen=True):
    """What `--json` writes; `load_average` is the machine's before the benchmark began, `start_s` of every start."""

    machine: Machine
    seconds: float
    load_average: float
    cells: list[Cell]
    start_s: list[float]
    batch_rows: float
    goals: list[Goal]


def main() -> None:
    options = parse_options()
    server_core, machine, load_average = begin()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        key = "" if options.without_keys else make_key(folder)
        subjects = choose_subjects(folder, "" if options.without_minilm else options.minilm, options.store)
        start_s = start_up_s(subjects[0], server_core, options, folder, key)
        with serving(subjects, (server_core,), options.store, folder, key) as server:
            for subject in subjects:
                check_answers(subject, server)
            ways = [way for subject in subjects for way in ways_to_ask(subject, server, server_core, folder)]
            failed = read_failures(server)
            cells = measure(ways, options.seconds, options.repeats)
            batch_rows = 0.0
            if len(subjects) > 1:
                batch_rows, fair = measure_fairly(subjects[1], server, server_core, ways, options)
                cells += fair
            check_counters(server, failed)
    goals = check_goals({(cell.model, cell.way, cell.at_once): cell.typical for cell in cells}, start_s)
    show(cells)
    show_goals(goals)
    if options.json:
        result = Result(machine, options.seconds, load_average, cells, start_s, batch_rows, goals)
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minilm", default="minilm", help="MiniLM: a model of the store, or an .onnx file")
    parser.add_argument("--without-minilm", action="store_true", help="measure the tiny MLP alone")
    parser.add_argument("--without-keys", action="store_true", help="serve without authorization")
    parser.add_argument("--store", type=Path, default=Path("store"), help="folder that holds the models")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one turn")
    parser.add_argument("--repeats", type=int, default=3, help="turns of every way")
    parser.add_argument("--starts", type=int, default=5, help="starts of the server that are timed")
    parser.add_argument("--json", type=Path, help="file to write every turn to")
    options = parser.parse_args()
    if options.seconds < 1 or options.repeats < 1 or options.starts < 1:
        fail("--seconds, --repeats and --starts must be at least 1")
    if options.json and not options.json.parent.is_dir():
        fail(f"--json {options.json}: there is no folder {options.json.parent}")
    return options


def begin() -> tuple[int, Machine, float]:
    """Holds this process, and so the load, to one core. Returns the server's, the machine, and its load average."""
    server_core, load_core = choose_cores()
    require_tools()
    machine, load_average = read_machine(), os.getloadavg()[0]
    if load_average > QUIET_LOAD:
        err.print(f"[yellow]warning:[/] the load average is {load_average:.1f}: other work blurs these figures")
    os.sched_setaffinity(0, {load_core})
    return server_core, machine, load_average


# What is measured


def start_up_s(subject: Subject, core: int, options: argparse.Namespace, folder: Path, key: str) -> list[float]:
    """From the command to the first answer of the tiny model, over and over."""
    found: list[float] = []
    for _ in track(range(options.starts), "starting", console=err):
        with serving([subject], (core,), options.store, folder, key) as server:
            found.append(server.start_s)
    return found


def ways_to_ask(subject: Subject, server: Server, core: int, folder: Path) -> Iterator[Way]:
    session = open_session(subject.path)
    rest_url = f"{server.http}/v2/models/{subject.name}/infer"
    grpc_url = f"http://{server.grpc}{INFER}"
    script, message = folder / f"{subject.name}.lua", folder / f"{subject.name}.message"
    script.write_text(wrk_script(subject.rest_body, server.headers))
    payload = subject.grpc_message
    message.write_bytes(b"\0" + len(payload).to_bytes(4, "big") + payload)  # gRPC's frame: not compressed, so long
    texts = text_script(subject, server, folder)
    for at_once in AT_ONCE:
        yield Way(subject.name, "in process", at_once, partial(run_in_process, session, subject, at_once, core))
        yield Way(subject.name, "REST", at_once, partial(run_wrk, script, rest_url, at_once, server.worker))
        yield Way(
            subject.name,
            "gRPC",
            at_once,
            lambda seconds, at_once=at_once: run_h2load(
                message, grpc_url, at_once, server.worker, seconds, server.headers
            ),
        )
        if texts is not None:
            url = f"{server.http}/v1/predict"
            yield Way(subject.name, "text", at_once, partial(run_wrk, texts, url, at_once, server.worker))


def text_script(subject: Subject, server: Server, folder: Path) -> Path | None:
    """What asks the model with a text, where it takes one."""
    body = json.dumps({"model": subject.name, "text": SENTENCE}).encode()
    headers = {**server.headers, "content-type": "application/json"}
    try:
        urllib.request.urlopen(urllib.request.Request(f"{server.http}/v1/predict", body, headers)).close()
    except urllib.error.HTTPError as error:
        error.close()
        return None
    script = folder / f"{subject.name}.text.lua"
    script.write_text(wrk_script(body, server.headers))
    return script


def measure(ways: list[Way], seconds: float, repeats: int) -> list[Cell]:
    """Every way in its turn, `repeats` times over, after one short turn of each that is not counted."""
    cells = [Cell(way.model, way.name, way.at_once, []) for way in ways]
    for number in track(range(-1, repeats), "taking turns", console=err):
        for way, cell in zip(ways, cells, strict=True):
            timing = way.take_turn(seconds if number >= 0 else WARM_UP_S)
            if number >= 0:
                cell.turns.append(timing)
    return cells


def measure_fairly(
    subject: Subject, server: Server, core: int, ways: list[Way], options: argparse.Namespace
) -> tuple[float, list[Cell]]:
    """`(rows, cells)`: the rows of a batch the server really ran at saturation, and both sides at just that many.

    With as many requests in flight the server's batches are smaller: some wait to be read while others are computed.
    """
    ask = [way for way in ways if way.model == subject.name and way.at_once == SATURATED]
    (grpc,) = [way for way in ask if way.name == "gRPC"]
    before = _rows_and_runs(server, subject)
    grpc.take_turn(options.seconds)
    after = _rows_and_runs(server, subject)
    rows = (after[0] - before[0]) / (after[1] - before[1])
    alone = partial(run_in_process, open_session(subject.path), subject, round(rows), core)
    fair = [way._replace(name=f"{way.name} saturated") for way in ask if way.name in ("REST", "gRPC")]
    fair.append(Way(subject.name, "in process, same batch", SATURATED, alone))
    return rows, measure(fair, options.seconds, options.repeats)


def _rows_and_runs(server: Server, subject: Subject) -> tuple[float, float]:
    return (
        read_total(server, "mlserve_batch_rows_sum", model=subject.name),
        read_total(server, "mlserve_batch_rows_count", model=subject.name),
    )


# Showing


def show(cells: list[Cell]) -> None:
    """One table a model, each way beside onnxruntime in process with as many rows a run."""
    console = wide_console()
    for model in dict.fromkeys(cell.model for cell in cells):
        of_model = [cell for cell in cells if cell.model == model]
        alone = {cell.at_once: cell.typical("rows_per_s") for cell in of_model if cell.way == "in process"}
        table = Table(title=model, title_justify="left", box=SIMPLE_HEAD)
        for heading in ("way", "at\nonce", "rows/s", "p50", "p99", "of in\nprocess", "server\ncore"):
            table.add_column(heading, justify="left" if heading == "way" else "right", no_wrap=True)
        for cell in sorted(of_model, key=lambda cell: (cell.way != "in process", cell.way, cell.at_once)):
            rate = cell.typical("rows_per_s")
            table.add_row(
                cell.way,
                str(cell.at_once),
                format_rate(rate),
                format_duration(cell.typical("p50_s")),
                format_duration(cell.typical("p99_s")),
                f"{rate / alone[cell.at_once]:.1%}",
                f"{cell.typical('busy'):.0%}",
            )
        console.print(table)
    console.print("One core for the server, one for the load; medians over the turns.")


def show_goals(goals: list[Goal]) -> None:
    """Every goal with what was found, one a line."""
    console = wide_console()
    for goal in goals:
        verdict = "[green]pass[/]" if goal.met else "[red]miss[/]"
        wanted = f"{'at least' if goal.at_least else 'at most'} {goal.text(goal.wanted)}"
        console.print(f"{verdict}  {goal.name}: {goal.text(goal.found)}, wanted {wanted}", highlight=False)


if __name__ == "__main__":
    main()
