"""mlserve beside other Python servers: the same models, the same load, the same core, in turns.

    python benchmarks/peers/compare.py [--json OUT] [--seconds N] [--repeats N] [--without PEER]...

MLServer, LitServe and a FastAPI application written by hand are installed from PyPI, each in an environment of its own,
all with the CPU wheel of onnxruntime and one thread for the model. Each peer is tried with and without batching, and
FastAPI on its event loop and on threads; the table shows the better one at each point, and says which. mlserve runs as
it is, with everything switched on, an API key too. wrk asks over REST and h2load over gRPC, with 1, 8 and 32 requests
in flight, one row each. Nothing is timed before its answer equals onnxruntime's own.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import msgspec
from closed_loop import WARM_UP_S, Timing, err, fail, require_tools, run_h2load, run_wrk, wide_console, wrk_script
from environments import Environment, prepare
from peer_servers import PeerServer, Setting, paused, serving_peer, settings_of
from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Table
from served import INFER, Server, check_answers, check_counters, choose_cores, make_key, serving
from subjects import Subject, choose_subjects

from mlserve import __version__
from mlserve.runs.machine import Machine, read_machine
from mlserve.units import format_rate

__all__ = ["main"]

AT_ONCE = (1, 8, 32)
PEERS = {"mlserver": "MLServer", "litserve": "LitServe", "fastapi": "FastAPI by hand"}
OURS = "mlserve"
_ENDING = (signal.SIGINT, signal.SIGTERM)


class Cell(msgspec.Struct, frozen=True):
    """Every turn of one server in one setting, asked over one protocol with so many requests in flight."""

    model: str
    server: str
    setting: str
    protocol: str
    at_once: int
    turns: list[Timing]

    @property
    def rate(self) -> float:
        """The median of the requests for a second."""
        return median(turn.rows_per_s for turn in self.turns)


class Result(msgspec.Struct, frozen=True):
    """What `--json` writes."""

    machine: Machine
    seconds: float
    load_average: float
    mlserve: str
    packages: dict[str, dict[str, str]]
    cells: list[Cell]


class Way(NamedTuple):
    """One cell to be, and what takes its turn."""

    cell: Cell
    take_turn: Callable[[float], Timing]


def main() -> None:
    for number in _ENDING:
        signal.signal(number, _leave)
    options = parse_options()
    server_core, load_core = choose_cores()
    require_tools()
    machine, load_average = read_machine(), os.getloadavg()[0]
    environments = {name: prepare(name) for name in PEERS if name not in options.without}
    os.sched_setaffinity(0, {load_core})
    cells: list[Cell] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        key = make_key(folder)
        for subject in choose_subjects(folder, "" if options.without_minilm else options.minilm, options.store):
            cells += compare(subject, environments, server_core, folder, key, options)
            if options.json:  # what is measured is kept, whatever happens to the next
                packages = {each.name: each.packages for each in environments.values()}
                result = Result(machine, options.seconds, load_average, __version__, packages, cells)
                options.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    show(cells)
    show_versions(environments, load_average)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minilm", default="minilm", help="MiniLM: a model of the store, or an .onnx file")
    parser.add_argument("--without-minilm", action="store_true", help="measure the tiny MLP alone")
    parser.add_argument("--without", action="append", default=[], choices=list(PEERS), help="leave a peer out")
    parser.add_argument("--store", type=Path, default=Path("store"), help="folder that holds the models")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one turn")
    parser.add_argument("--repeats", type=int, default=3, help="turns of every way")
    parser.add_argument("--json", type=Path, help="file to write every turn to")
    options = parser.parse_args()
    if options.seconds < 1 or options.repeats < 1:
        fail("--seconds and --repeats must be at least 1")
    if options.json and not options.json.parent.is_dir():
        fail(f"--json {options.json}: there is no folder {options.json.parent}")
    return options


def compare(
    subject: Subject,
    environments: dict[str, Environment],
    core: int,
    folder: Path,
    key: str,
    options: argparse.Namespace,
) -> list[Cell]:
    """Every server and setting with `subject`, in turns."""
    with ExitStack() as stack:
        ours = stack.enter_context(serving([subject], (core,), options.store, folder, key))
        check_answers(subject, ours)
        peers = [
            stack.enter_context(serving_peer(setting, environments[setting.peer], subject, core, folder))
            for setting in track(settings_of(list(environments)), f"starting peers with {subject.name}", console=err)
        ]
        turn_of = stack.enter_context(paused(peers))
        ways = [
            *our_ways(subject, ours, folder),
            *(way for peer in peers for way in their_ways(subject, peer, turn_of)),
        ]
        for number in track(range(-1, options.repeats), f"taking turns with {subject.name}", console=err):
            for way in ways:
                timing = way.take_turn(options.seconds if number >= 0 else WARM_UP_S)
                if number >= 0:
                    way.cell.turns.append(timing)
        check_counters(ours)
        return [way.cell for way in ways]


def our_ways(subject: Subject, server: Server, folder: Path) -> Iterator[Way]:
    script, message = folder / f"{subject.name}.lua", folder / f"{subject.name}.message"
    script.write_text(wrk_script(subject.rest_body, server.headers))
    payload = subject.grpc_message
    message.write_bytes(b"\0" + len(payload).to_bytes(4, "big") + payload)
    rest, grpc = f"{server.http}/v2/models/{subject.name}/infer", f"http://{server.grpc}{INFER}"

    def ask_rest(at_once: int, seconds: float) -> Timing:
        return run_wrk(script, rest, at_once, server.worker, seconds)

    def ask_grpc(at_once: int, seconds: float) -> Timing:
        return run_h2load(message, grpc, at_once, server.worker, seconds, server.headers)

    yield from _ways(subject, OURS, "", {"REST": ask_rest, "gRPC": ask_grpc})


def their_ways(subject: Subject, peer: PeerServer, turn_of: Callable[[PeerServer], Any]) -> Iterator[Way]:
    def in_turn(ask: Callable[[int, float], Timing]) -> Callable[[int, float], Timing]:
        def take(at_once: int, seconds: float) -> Timing:
            with turn_of(peer):
                return ask(at_once, seconds)

        return take

    setting: Setting = peer.setting
    asked = {protocol: in_turn(ask) for protocol, ask in peer.ways.items()}
    yield from _ways(subject, PEERS[setting.peer], setting.name, asked)


def _ways(
    subject: Subject, server: str, setting: str, asked: dict[str, Callable[[int, float], Timing]]
) -> Iterator[Way]:
    for protocol, ask in asked.items():
        for at_once in AT_ONCE:
            cell = Cell(subject.name, server, setting, protocol, at_once, [])
            yield Way(cell, lambda seconds, ask=ask, at_once=at_once: ask(at_once, seconds))


def show(cells: Sequence[Cell]) -> None:
    """One table: what each server did at its best setting, and how many times as much mlserve did in the same run."""
    console = wide_console()
    table = Table(title="requests/s", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("model")
    table.add_column("server", no_wrap=True)
    for at_once in AT_ONCE:
        table.add_column(f"{at_once} in flight", justify="right", no_wrap=True)
        table.add_column("mlserve\ndoes", justify="right", no_wrap=True)
    rows = dict.fromkeys((cell.model, cell.server, cell.protocol) for cell in cells)
    for model, server, protocol in rows:
        figures: list[str] = []
        for at_once in AT_ONCE:
            of_point = [
                cell for cell in cells if (cell.model, cell.protocol, cell.at_once) == (model, protocol, at_once)
            ]
            best = max((cell for cell in of_point if cell.server == server), key=lambda cell: cell.rate)
            ours = next(cell for cell in of_point if cell.server == OURS)
            note = f" [dim]{best.setting}[/]" if best.setting else ""
            # A slow peer may answer nothing in a short turn; then no ratio says how much slower it is.
            ratio = f"{ours.rate / best.rate:.1f}x" if best.rate else "-"
            figures += [f"{format_rate(best.rate)}{note}", ratio if server != OURS else ""]
        table.add_row(model, f"{server}, {protocol}", *figures)
    console.print(table)


def show_versions(environments: dict[str, Environment], load_average: float) -> None:
    """What pip really installed of what matters."""
    for each in environments.values():
        named = {each.name, "onnxruntime", "uvicorn", "fastapi"} & each.packages.keys()
        listed = ", ".join(f"{package} {each.packages[package]}" for package in sorted(named))
        err.print(f"{PEERS[each.name]}: {listed}", highlight=False)
    err.print(
        "One core for the servers, one for the load; medians over the turns, the best setting of each peer at each "
        f"point. The load average was {load_average:.1f} before the run.",
        highlight=False,
    )


def _leave(number: int, _: FrameType | None) -> NoReturn:
    """Ends by way of every `finally`, which ends every server; asked again, it goes on doing so."""
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)
