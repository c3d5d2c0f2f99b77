"""Does the gate say the truth of real servers? A server against itself, and against one that is slower by 10%.

    .venv/bin/python benchmarks/gating_real.py [--gates 20] [--only same|slow] [--budget 5m] [--out DIR] [--json FILE]

Both models are chains of equal layers behind `mlserve serve`, deep enough that the model is most of the latency; the
slow one has layers for 10% more of the fast one's latency, as a first run of both shows. A gate allows 5%, so that both
truths lie five points from its limit, and runs until it is decided or out of budget. Of the gates of the model against
itself none may fail; of those against the slow one all must. Beside the verdicts stand the pairs and the time that each
took, and what a server costs that nobody asks.

With `--out` every run is kept there, and the same command goes on where it was stopped.

Exit status 1 when a verdict is wrong.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mlserve.bench.payload.payload import PayloadWish
from mlserve.bench.progress import Progress
from mlserve.bench.subject import Subject
from mlserve.cli.gate_live import opens_side
from mlserve.report.gating.limits import parse_gate_limits
from mlserve.report.gating.result import GateResult
from mlserve.report.measurement import Recorded
from mlserve.runs.load import Plan, Protocol
from mlserve.runs.machine import read_machine
from mlserve.runs.samples import read_samples
from mlserve.tuning.calibrated import CalibratedRuns, SideLoad
from mlserve.tuning.gating.asked import LiveGate
from mlserve.tuning.gating.live import run_gate
from mlserve.tuning.gating.pairs import Course
from mlserve.tuning.gating.side import Side, side_of
from mlserve.tuning.gating.turn import Turn
from mlserve.tuning.measuring import read_recorded
from mlserve.tuning.opening import Source
from mlserve.tuning.serving import ServerOptions, file_subject, serving
from mlserve.tuning.slots import shared_plan, slot_of
from mlserve.units import format_duration, parse_duration_s

LAYERS, WIDTH = 600, 256
SLOWER = 0.10
LIMIT = "p50=5%"
# Evenly spaced, and far enough apart that none waits for another: what a run shows is the model, and not a queue.
RATE_PER_S = 100.0
WARM_UP_S, RUN_S, PROBE_S = 0.3, 4.0, 10.0
IDLE_S = 5.0
_SEEDS_A_GATE = 10_000_000

console = Console()


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One gate: what it said, and what it took. `change` is the ratio of p50, None where it was not known."""

    kind: str
    number: int
    verdict: str
    change: float | None
    low: float | None
    high: float | None
    pairs: int
    took_s: float
    reasons: tuple[str, ...]


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What a first look found: how many layers are slower by SLOWER, and what a server uses that nobody asks."""

    slow_layers: int
    idle_cores: float


def main() -> int:
    wish = _arguments()
    with ExitStack() as stack:
        folder = wish.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gating-")))
        folder.mkdir(parents=True, exist_ok=True)
        machine = _machine(folder)
        outcomes = _gates(wish, folder, write_chain(folder / "slow.onnx", machine.slow_layers))
    _print(outcomes, machine.idle_cores)
    if wish.json:
        document: dict[str, Any] = {
            "machine": msgspec.to_builtins(read_machine()),
            "limit": LIMIT,
            "slower": SLOWER,
            "idle_cores": machine.idle_cores,
            "gates": msgspec.to_builtins(outcomes),
        }
        wish.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0 if _holds(outcomes) else 1


def _machine(folder: Path) -> Machine:
    """What is found out once: kept in the folder, for whoever goes on."""
    fast, kept = write_chain(folder / "fast.onnx", LAYERS), folder / "machine.json"
    if kept.exists():
        return msgspec.json.decode(kept.read_bytes(), type=Machine)
    with tempfile.TemporaryDirectory(dir=folder) as probes:
        machine = Machine(slow_layers=_layers_slower(fast, Path(probes)), idle_cores=_idle_cores(fast, Path(probes)))
    kept.write_bytes(msgspec.json.encode(machine))
    return machine


def _gates(wish: argparse.Namespace, folder: Path, slow: Path) -> list[Outcome]:
    """The gates in turn, the one kind and the other; those that ended before are read."""
    kept = folder / "outcomes.jsonl"
    lines = kept.read_bytes().splitlines() if kept.exists() else []
    outcomes = [one for line in lines if (one := msgspec.json.decode(line, type=Outcome)).verdict != "inconclusive"]
    ended = {(one.kind, one.number) for one in outcomes}
    fast, runs = folder / "fast.onnx", CalibratedRuns()
    for number in range(1, wish.gates + 1):
        for kind, other in (("same", fast), ("slow", slow)):
            if (kind, number) in ended or wish.only not in ("", kind):
                continue  # one that was cut short or disturbed goes on in its folder
            outcomes.append(_gate(kind, fast, other, folder / f"{kind}-{number:02}", number, wish.budget_s, runs))
            if outcomes[-1].verdict != "inconclusive":
                with kept.open("ab") as file:
                    file.write(msgspec.json.encode(outcomes[-1]) + b"\n")
            console.print(_line(outcomes[-1]), highlight=False)
            console.print(_totals(outcomes), highlight=False, style="dim")
    return outcomes


def write_chain(path: Path, layers: int) -> Path:
    """`layers` times the same product of WIDTH x WIDTH, and a ReLU."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((WIDTH, WIDTH), np.float32) * np.float32(np.sqrt(2 / WIDTH))
    nodes, current = [], "x"
    for number in range(layers):
        nodes.append(helper.make_node("MatMul", [current, "w"], [f"product{number}"]))
        nodes.append(helper.make_node("Relu", [f"product{number}"], [f"out{number}"]))
        current = f"out{number}"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])
    y = helper.make_tensor_value_info(current, TensorProto.FLOAT, ["batch", WIDTH])
    graph = helper.make_graph(nodes, "chain", [x], [y], [numpy_helper.from_array(weight, "w")])
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _layers_slower(fast: Path, folder: Path) -> int:
    """How many layers make p50 SLOWER: from p50 of LAYERS and of twice as many, which lie on a line."""
    double = write_chain(folder / "double.onnx", 2 * LAYERS)
    once_s, twice_s = _p50_s((fast, double), folder)
    each_s = (twice_s - once_s) / LAYERS
    if each_s <= 0:
        sys.exit("twice as many layers were no slower: something else works on this machine; stop it and try again")
    return LAYERS + max(1, round(SLOWER * once_s / each_s))


def _p50_s(paths: Sequence[Path], folder: Path) -> list[float]:
    """Of each, measured in turns, as the gates are."""
    slot_s = slot_of(_plan(0, PROBE_S))
    plan = shared_plan(_plan(0, PROBE_S), slot_s)
    loads = []
    with ExitStack() as stack:
        for path in paths:
            served = stack.enter_context(serving(str(path), folder, ServerOptions()))
            subject = file_subject(served, path, "rest", PayloadWish())
            place = folder / f"probe-{path.stem}"
            place.mkdir()
            loads.append(SideLoad(subject_of=partial(_always, subject), plan=plan, folder=place, label=path.stem))
        faults = [fault for fault in CalibratedRuns().at_once(loads, slot_s, lambda _: None) if fault is not None]
    if faults:
        raise faults[0]
    return [_run_p50_s(load.folder) for load in loads]


def _always(subject: Subject, _: Protocol) -> Subject:
    return subject


def _run_p50_s(folder: Path) -> float:
    recorded = read_recorded(folder)
    return float(np.median(read_samples(folder, recorded.run.window).latency_s))


def _idle_cores(path: Path, folder: Path) -> float:
    """What a server uses that nobody asks, in cores."""
    with serving(str(path), folder, ServerOptions()) as served:
        processes = [psutil.Process(pid) for pid in served.pids]
        before_s = sum(sum(process.cpu_times()[:2]) for process in processes)
        time.sleep(IDLE_S)
        return float(sum(sum(process.cpu_times()[:2]) for process in processes) - before_s) / IDLE_S


def _gate(
    kind: str, fast: Path, other: Path, folder: Path, number: int, budget_s: float, runs: CalibratedRuns
) -> Outcome:
    base, candidate = (side_of(str(path), folder.parent, ServerOptions()) for path in (fast, other))
    asked = LiveGate(
        base=base,
        candidate=candidate,
        plan=_plan(number * _SEEDS_A_GATE),
        limits=parse_gate_limits([LIMIT]),
        slot_s=slot_of(_plan(0)),
    )
    listener, began_s = _Listener(), time.monotonic()
    opens = opens_side(Source(store=folder.parent))
    result = run_gate(asked, folder, opens, listener, budget_s, runs=runs)
    found = next((one.difference for one in result.metrics if one.metric == "p50"), None)
    return Outcome(
        kind=kind,
        number=number,
        verdict=result.verdict,
        change=found.change if found else None,
        low=found.low if found else None,
        high=found.high if found else None,
        pairs=listener.pairs,
        took_s=time.monotonic() - began_s,
        reasons=result.reasons,
    )


def _plan(seed: int, duration_s: float = RUN_S) -> Plan:
    return Plan(
        rate_per_s=RATE_PER_S,
        arrivals="constant",
        duration_s=duration_s,
        warm_up_s=WARM_UP_S,
        percentile=0.5,
        seed=seed,
    )


class _Listener:
    """Counts the pairs."""

    def __init__(self) -> None:
        self.pairs = 0

    def begins(self, sides: Sequence[Side], turn: Turn, course: Course) -> None: ...

    def moves(self, progress: Progress) -> None: ...

    def ends(self, side: Side, turn: Turn, recorded: Recorded) -> None: ...

    def judged(self, result: GateResult, course: Course) -> None:
        self.pairs = course.pairs + course.fresh_pairs


def _is_right(one: Outcome) -> bool:
    """Whether it was decided rightly; one that is inconclusive was not decided, which is counted apart."""
    return one.verdict == ("fail" if one.kind == "slow" else "pass")


def _holds(outcomes: Sequence[Outcome]) -> bool:
    """Whether no gate of a server against itself failed, and each of the slower one did."""
    return all((one.verdict == "fail") == (one.kind == "slow") for one in outcomes)


def _totals(outcomes: Sequence[Outcome]) -> str:
    counts = [
        f"{kind} {sum(_is_right(one) for one in of_kind)} of {len(of_kind)} right, "
        f"{sum(one.verdict == 'inconclusive' for one in of_kind)} undecided"
        for kind in ("same", "slow")
        if (of_kind := [one for one in outcomes if one.kind == kind])
    ]
    return f"    {', '.join(counts)}, {format_duration(sum(one.took_s for one in outcomes))} in all"


def _line(one: Outcome) -> str:
    change = "-" if one.change is None else f"{one.change:.3f} ({one.low:.3f} to {one.high:.3f})"
    why = f"; {one.reasons[0]}" if one.verdict == "inconclusive" and one.reasons else ""
    took = f"{one.pairs} pairs in {format_duration(one.took_s)}"
    return f"{one.number:3} {one.kind}: {one.verdict}, p50 x {change}, {took}{why}"


def _print(outcomes: Sequence[Outcome], idle_cores: float) -> None:
    table = Table(box=SIMPLE_HEAD)
    for heading in ("candidate", "gates", "pass", "fail", "inconclusive", "pairs, median", "time, median"):
        table.add_column(heading)
    for kind in dict.fromkeys(one.kind for one in outcomes):
        of_kind = [one for one in outcomes if one.kind == kind]
        verdicts = [one.verdict for one in of_kind]
        table.add_row(
            kind,
            str(len(of_kind)),
            *(str(verdicts.count(verdict)) for verdict in ("pass", "fail", "inconclusive")),
            f"{np.median([one.pairs for one in of_kind]):.0f}",
            format_duration(float(np.median([one.took_s for one in of_kind]))),
        )
    console.print(table)
    console.print(f"an idle server uses {idle_cores:.4f} cores", highlight=False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="real servers, which is all that is measured here")
    parser.add_argument("--gates", type=int, default=20, help="of each kind")
    parser.add_argument("--only", choices=("same", "slow"), default="", help="gates of one kind")
    parser.add_argument("--budget", default="5m", help="of each gate")
    parser.add_argument(
        "--out",
        type=lambda text: Path(text).absolute(),
        help="folder that keeps every run, so that this can be gone on with",
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    wish = parser.parse_args()
    wish.budget_s = parse_duration_s(wish.budget)
    return wish


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
