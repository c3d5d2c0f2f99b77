"""Did serving get slower? The working tree's server beside that of an earlier revision, asked in turns.

    python benchmarks/serving_before.py --base REVISION [--turns N] [--json OUT]

Both serve the tiny MLP of `serving.py`, of which nearly all is the server's own cost, with keys, on the same core; the
load has another. REST (wrk) and gRPC (h2load, one stream a connection) with 1, 8 and 32 requests in flight: the two
servers are asked for a second each, A B B A, and each pair gives a ratio, so that what the machine does over seconds
is in both. Shown is the median of the ratios, and its 95% interval (order statistics: David and Nagaraja 2003, 7.1).
"""

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from closed_loop import WARM_UP_S, fail, wide_console
from revisions import ROOT, interpreter, take_out
from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Table
from scipy.stats import binom
from served import check_answers, check_counters, make_key, read_failures, serving
from serving import Way, begin, err, ways_to_ask
from subjects import describe, write_tiny

from mlserve.runs.machine import Machine
from mlserve.units import format_rate

SECONDS = 1.0
# The issue that this was written for allows so much.
MOST = 0.05


__all__ = ["Compared", "Ratios", "compare", "show"]


class Ratios(NamedTuple):
    """After/before, a ratio for each pair of turns: median and 95% interval."""

    median: float
    low: float
    high: float


class Compared(msgspec.Struct, frozen=True):
    """One way of asking: requests a second of both, processor time a request, and ratios of pairs of turns."""

    way: str
    at_once: int
    before_per_s: float
    after_per_s: float
    before_cpu_s: float
    after_cpu_s: float
    rate: Ratios
    p50: Ratios


class Result(msgspec.Struct, frozen=True):
    """What `--json` writes; `base` is the revision that was before."""

    machine: Machine
    base: str
    turns: int
    load_average: float
    compared: list[Compared]


def main() -> None:
    options = _options()
    server_core, machine, load_average = begin()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        code = take_out(options.base, folder)
        subject = describe(str(write_tiny(folder / "tiny.onnx")), folder)
        key, sides, servers = make_key(folder), [], []
        for side, place in (("before", code), ("after", ROOT)):
            (folder / side).mkdir()
            python = interpreter(folder / f"{side}.sh", place)
            server = stack.enter_context(serving([subject], (server_core,), folder, folder, key, python=python))
            check_answers(subject, server)
            ways = ways_to_ask(subject, server, server_core, folder / side)
            sides.append([way for way in ways if way.name in ("REST", "gRPC")])
            servers.append((server, read_failures(server)))
        compared = [
            compare(before, after, options.turns)
            for before, after in track(list(zip(*sides, strict=True)), console=err)
        ]
        for server, failed in servers:
            check_counters(server, failed)
    show(compared, f"the working tree's server against {code.name}'s")
    _say_what_is_slower(compared)
    if options.json:
        result = Result(machine, code.name.removeprefix("base-"), options.turns, load_average, compared)
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="revision that was before")
    parser.add_argument("--turns", type=int, default=12, help="pairs of turns of every way")
    parser.add_argument("--json", type=Path, help="file to write what was found to")
    options = parser.parse_args()
    if options.turns < 6:
        fail(f"--turns {options.turns}: an interval takes at least 6 pairs")
    return options


def compare(before: Way, after: Way, turns: int) -> Compared:
    """Asks both in turns, A B B A."""
    for way in (before, after):
        way.take_turn(WARM_UP_S)
    rates, p50s_s, cpus_s = (np.zeros((turns, 2)) for _ in range(3))
    for turn in range(turns):
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            timing = (before, after)[side].take_turn(SECONDS)
            rates[turn, side], p50s_s[turn, side] = timing.rows_per_s, timing.p50_s
            cpus_s[turn, side] = timing.busy / timing.rows_per_s
    return Compared(
        way=before.name,
        at_once=before.at_once,
        before_per_s=float(np.median(rates[:, 0])),
        after_per_s=float(np.median(rates[:, 1])),
        before_cpu_s=float(np.median(cpus_s[:, 0])),
        after_cpu_s=float(np.median(cpus_s[:, 1])),
        rate=_ratios(rates[:, 1] / rates[:, 0]),
        p50=_ratios(p50s_s[:, 1] / p50s_s[:, 0]),
    )


def _ratios(values: np.ndarray) -> Ratios:
    ordered = np.sort(values)
    # So many of them lie below the median with a probability of 2.5% at most.
    below = int(binom.ppf(0.025, len(ordered), 0.5))
    return Ratios(float(np.median(ordered)), float(ordered[below - 1]), float(ordered[-below]))


def show(compared: list[Compared], title: str, before: str = "before", after: str = "after") -> None:
    """A row for each way of asking."""
    table = Table(box=SIMPLE_HEAD, title=title)
    ratio, cpu = f"{after}/{before}", "processor time a request"
    for heading in ("way", "in flight", before, after, f"requests/s, {ratio}", f"p50, {ratio}", cpu):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for one in compared:
        rates = [format_rate(each) for each in (one.before_per_s, one.after_per_s)]
        ratios = [f"{each.median:.3f} ({each.low:.3f} to {each.high:.3f})" for each in (one.rate, one.p50)]
        cpus = f"{1e6 * one.before_cpu_s:.0f}, {1e6 * one.after_cpu_s:.0f} us"
        table.add_row(one.way, str(one.at_once), *rates, *ratios, cpus)
    wide_console().print(table)


def _say_what_is_slower(compared: list[Compared]) -> None:
    slower = [f"{one.way} {one.at_once}" for one in compared if one.rate.high < 1 - MOST]
    wide_console().print(f"slower by more than {MOST:.0%}, surely: {', '.join(slower) or 'none'}")


if __name__ == "__main__":
    main()
