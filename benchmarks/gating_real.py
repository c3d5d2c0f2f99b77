"""Does the gate say the truth of real servers? A server against itself, and against one that is slower by 10%.

    .venv/bin/python benchmarks/gating_real.py [--gates 20] [--only same|slow] [--budget 5m] [--json FILE]

Both models are chains of equal layers behind `mlserve serve`, deep enough that the model is most of the latency; the
slow one has layers for 10% more of the fast one's latency, as a first run of both shows. A gate (p50=2%) runs until it
is decided or out of budget. Of the gates of the model against itself none may fail; of those against the slow one all
must. Beside the verdicts stand the pairs and the time that each took, and what a server costs that nobody asks.

Exit status 1 when a verdict is wrong.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mlserve.bench.driver import run_bench
from mlserve.bench.payload.payload import PayloadWish
from mlserve.bench.progress import Progress
from mlserve.cli.gate_live import opens_side
from mlserve.report.gating.limits import parse_gate_limits
from mlserve.report.gating.result import GateResult
from mlserve.report.measurement import Recorded
from mlserve.runs.load import Plan
from mlserve.runs.machine import read_machine
from mlserve.runs.samples import read_samples
from mlserve.tuning.gating.live import Course, LiveGate, run_gate
from mlserve.tuning.gating.side import Side, side_of
from mlserve.tuning.gating.turn import Turn
from mlserve.tuning.opening import Source
from mlserve.tuning.serving import ServerOptions, file_subject, serving
from mlserve.units import format_duration, parse_duration_s

LAYERS, WIDTH = 60, 256
SLOWER = 0.10
LIMIT = "p50=2%"
RATE_PER_S = 60.0
IDLE_S = 5.0
_SEEDS_A_GATE = 10_000_000

console = Console()


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One gate: what it said, and what it took. `change` is the ratio of p50, None where it was not known."""

    kind: str
    verdict: str
    change: float | None
    low: float | None
    high: float | None
    pairs: int
    took_s: float
    reasons: tuple[str, ...]


def main() -> int:
    wish = _arguments()
    with tempfile.TemporaryDirectory(prefix="gating-") as made:
        folder = Path(made)
        fast = write_chain(folder / "fast.onnx", LAYERS)
        slow = write_chain(folder / "slow.onnx", _layers_slower(fast, folder))
        idle_cores = _idle_cores(fast, folder)
        kinds = [(kind, other) for kind, other in (("same", fast), ("slow", slow)) if wish.only in ("", kind)]
        outcomes = []
        for number in range(1, wish.gates + 1):
            for kind, other in kinds:
                outcomes.append(_gate(kind, fast, other, folder / f"{kind}-{number}", number, wish.budget_s))
                console.print(_line(number, outcomes[-1]), highlight=False)
    wrong = [one for one in outcomes if (one.verdict == "fail") != (one.kind == "slow")]
    _print(outcomes, idle_cores)
    if wish.json:
        document: dict[str, Any] = {
            "machine": msgspec.to_builtins(read_machine()),
            "limit": LIMIT,
            "slower": SLOWER,
            "idle_cores": idle_cores,
            "gates": msgspec.to_builtins(outcomes),
        }
        wish.json.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if wrong else 0


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
    once_s, twice_s = (_p50_s(path, folder / f"probe-{path.stem}") for path in (fast, double))
    each_s = (twice_s - once_s) / LAYERS
    return LAYERS + max(1, round(SLOWER * once_s / each_s))


def _p50_s(path: Path, folder: Path) -> float:
    folder.mkdir()
    with serving(str(path), folder, ServerOptions()) as served:
        subject = file_subject(served, path, "rest", PayloadWish())
        run = run_bench(subject, _plan(0), folder, path.stem, lambda _: None)
    return float(np.median(read_samples(folder, run.window).latency_s))


def _idle_cores(path: Path, folder: Path) -> float:
    """What a server uses that nobody asks, in cores."""
    with serving(str(path), folder, ServerOptions()) as served:
        processes = [psutil.Process(pid) for pid in served.pids]
        before_s = sum(sum(process.cpu_times()[:2]) for process in processes)
        time.sleep(IDLE_S)
        return float(sum(sum(process.cpu_times()[:2]) for process in processes) - before_s) / IDLE_S


def _gate(kind: str, fast: Path, other: Path, folder: Path, number: int, budget_s: float) -> Outcome:
    base, candidate = (side_of(str(path), folder, ServerOptions()) for path in (fast, other))
    asked = LiveGate(
        base=base,
        candidate=candidate,
        plan=_plan(number * _SEEDS_A_GATE),
        limits=parse_gate_limits([LIMIT]),
    )
    listener, began_s = _Listener(), time.monotonic()
    result = run_gate(asked, folder, opens_side(Source(store=folder)), listener, budget_s)
    found = next((one.difference for one in result.metrics if one.metric == "p50"), None)
    return Outcome(
        kind=kind,
        verdict=result.verdict,
        change=found.change if found else None,
        low=found.low if found else None,
        high=found.high if found else None,
        pairs=listener.pairs,
        took_s=time.monotonic() - began_s,
        reasons=result.reasons,
    )


def _plan(seed: int) -> Plan:
    return Plan(rate_per_s=RATE_PER_S, duration_s=5.0, warm_up_s=1.0, percentile=0.5, seed=seed)


class _Listener:
    """Counts the pairs."""

    def __init__(self) -> None:
        self.pairs = 0

    def begins(self, side: Side, turn: Turn, course: Course) -> None: ...

    def moves(self, progress: Progress) -> None: ...

    def ends(self, side: Side, turn: Turn, recorded: Recorded) -> None: ...

    def judged(self, result: GateResult, course: Course) -> None:
        self.pairs = course.pairs + course.fresh_pairs


def _line(number: int, one: Outcome) -> str:
    change = "-" if one.change is None else f"{one.change:.3f} ({one.low:.3f} to {one.high:.3f})"
    return f"{number:3} {one.kind}: {one.verdict}, p50 x {change}, {one.pairs} pairs in {format_duration(one.took_s)}"


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
    parser.add_argument("--json", type=Path, help="file for the figures")
    wish = parser.parse_args()
    wish.budget_s = parse_duration_s(wish.budget)
    return wish


if __name__ == "__main__":
    sys.exit(main())
