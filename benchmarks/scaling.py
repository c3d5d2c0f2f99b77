"""Whether more workers serve more: MiniLM with one worker and with two, the server on two cores.

    python benchmarks/scaling.py [--minilm STORE_REF_OR_ONNX] [--json OUT] [--seconds N] [--repeats N]

The model is heavy and one row a request, so that the load generator, which shares the two cores, takes next to nothing;
its share is what the cores are not used by the workers. One worker has one core of the two to itself, since its model
runs on one thread. Both servers take turns.

Two figures: by the clock, which needs a machine with nothing else to do; and by the workers' own processor time, rows
for a second of it, twice over for two workers, which other work on the machine hardly changes. It tells what the
workers cost each other. Two workers should answer at least 1.8 times as much as one.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import msgspec
import psutil
from closed_loop import WARM_UP_S, Timing, err, fail, require_tools, run_wrk, wide_console, wrk_script
from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Table
from served import Server, check_answers, check_counters, choose_cores, make_key, serving
from subjects import describe

from mlserve.errors import MlserveError
from mlserve.units import format_duration, format_rate

WORKERS = (1, 2)
IN_FLIGHT = 32
GOAL = 1.8


class Turn(msgspec.Struct, frozen=True):
    """One turn: what wrk saw, the cores that the workers used, and of them the busiest worker's."""

    timing: Timing
    cores: float
    busiest: float

    @property
    def per_core_s(self) -> float:
        """Requests for a second of processor time."""
        return self.timing.rows_per_s / self.cores


class Result(msgspec.Struct, frozen=True):
    """What `--json` writes: every turn by the number of workers, and what two did beside one."""

    turns: dict[int, list[Turn]]
    by_clock: float
    by_processor_time: float
    goal: float = GOAL


def main() -> None:
    options = parse_options()
    cores = choose_cores()
    require_tools()
    try:
        subject = describe(options.minilm, options.store)
    except MlserveError as error:
        fail(str(error))
    turns: dict[int, list[Turn]] = {count: [] for count in WORKERS}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        key = make_key(folder)
        script = folder / "wrk.lua"
        servers = {
            count: stack.enter_context(serving([subject], cores, options.store, folder, key, "--workers", str(count)))
            for count in WORKERS
        }
        for server in servers.values():
            check_answers(subject, server)
            script.write_text(wrk_script(subject.rest_body, server.headers))
        for number in track(range(-1, options.repeats), "taking turns", console=err):
            for count, server in servers.items():
                url = f"{server.http}/v2/models/{subject.name}/infer"
                turn = take_turn(server, partial(run_wrk, script, url), options.seconds if number >= 0 else WARM_UP_S)
                if number >= 0:
                    turns[count].append(turn)
        for server in servers.values():
            check_counters(server)
    by_clock = typical(turns[2]) / typical(turns[1])
    one, two = (median(turn.per_core_s for turn in turns[count]) for count in WORKERS)
    result = Result(turns, by_clock, 2 * two / one)
    show(result)
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minilm", default="minilm", help="MiniLM: a model of the store, or an .onnx file")
    parser.add_argument("--store", type=Path, default=Path("store"), help="folder that holds the models")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each server")
    parser.add_argument("--json", type=Path, help="file to write every turn to")
    return parser.parse_args()


def take_turn(server: Server, run: "partial[Timing]", seconds: float) -> Turn:
    """One turn of one server, and what each of its workers used meanwhile."""
    before_s = [_used_s(worker) for worker in server.workers]
    began_s = os.times().elapsed
    timing = run(IN_FLIGHT, server.worker, seconds)
    elapsed_s = os.times().elapsed - began_s
    used = [(_used_s(worker) - before) / elapsed_s for worker, before in zip(server.workers, before_s, strict=True)]
    return Turn(timing, sum(used), max(used))


def _used_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def typical(turns: Sequence[Turn]) -> float:
    """The median rate."""
    return median(turn.timing.rows_per_s for turn in turns)


def show(result: Result) -> None:
    """One row for each number of workers, and the verdicts."""
    console = wide_console()
    table = Table(title="MiniLM over REST", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("workers", "rows/s", "p50", "p99", "cores\nused", "busiest\nworker", "rows for a\ncore second"):
        table.add_column(heading, justify="right", no_wrap=True)
    for count, of_count in result.turns.items():
        table.add_row(
            str(count),
            format_rate(typical(of_count)),
            format_duration(median(turn.timing.p50_s for turn in of_count)),
            format_duration(median(turn.timing.p99_s for turn in of_count)),
            f"{median(turn.cores for turn in of_count):.2f}",
            f"{median(turn.busiest for turn in of_count):.2f}",
            format_rate(median(turn.per_core_s for turn in of_count)),
        )
    console.print(table)
    for found, how in ((result.by_clock, "by the clock"), (result.by_processor_time, "by the workers' processor time")):
        verdict = "[green]pass[/]" if found >= GOAL else "[red]miss[/]"
        console.print(f"{verdict}  two workers answer {found:.2f} times as much as one {how}; wanted: {GOAL}")


if __name__ == "__main__":
    main()
