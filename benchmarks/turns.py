"""What taking turns is worth: how much pairs of runs of one server against itself differ, by either way of taking them.

    .venv/bin/python benchmarks/turns.py [--pairs 16] [--model FILE.onnx] [--rps 100] [--duration 1.5] [--json FILE]

Pairs are taken in alternation: one run after the other, and both at once in turns of a tenth of a second, as the gate
does. Servers are started anew for each pair. A gate takes as many pairs as the variance of their ratios says: the last
column is how many of them one way takes for one of the other, of the same figure in the same time on the same machine.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from gating_real import write_chain
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mlserve.bench.payload.payload import PayloadWish
from mlserve.bench.subject import Subject
from mlserve.runs.load import Plan, Protocol
from mlserve.runs.machine import read_machine
from mlserve.runs.samples import read_samples
from mlserve.stats import quantile
from mlserve.tuning.calibrated import CalibratedRuns, SideLoad
from mlserve.tuning.measuring import read_recorded
from mlserve.tuning.serving import ServerOptions, file_subject, serving
from mlserve.tuning.slots import shared_plan, slot_of

LAYERS = 600
PERCENTILES = (0.5, 0.9)
WAYS = ("one after the other", "in turns")

console = Console()


def main() -> None:
    asked = _arguments()
    with tempfile.TemporaryDirectory(prefix="turns-") as scratch:
        folder = Path(scratch)
        model = asked.model or write_chain(folder / "chain.onnx", LAYERS)
        runs = CalibratedRuns()
        found: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
        took_s = dict.fromkeys(WAYS, 0.0)
        for number in range(asked.pairs):
            for way in WAYS if number % 2 else WAYS[::-1]:
                began_s = time.monotonic()
                places = _pair(runs, model, _plan(asked, number), folder / f"{number:02}-{way[:3]}", way)
                took_s[way] += time.monotonic() - began_s
                found[way].append(tuple(_log_ratio(places, q) for q in PERCENTILES))
            console.print(f"pair {number + 1} of {asked.pairs}", style="dim")
    spread = {way: np.std(np.array(ratios), axis=0, ddof=1) for way, ratios in found.items()}
    _print(spread, took_s, asked.pairs)
    if asked.json:
        document = {
            "machine": str(read_machine()),
            "log_ratios": found,
            "percentiles": PERCENTILES,
            "took_s": took_s,
            "rps": asked.rps,
            "duration_s": asked.duration,
        }
        asked.json.write_text(json.dumps(document, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rps", type=float, default=100.0)
    parser.add_argument("--duration", type=float, default=1.5)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _plan(asked: argparse.Namespace, seed: int) -> Plan:
    return Plan(rate_per_s=asked.rps, duration_s=asked.duration, warm_up_s=0.3, percentile=0.5, seed=seed)


def _pair(runs: CalibratedRuns, model: Path, plan: Plan, folder: Path, way: str) -> list[Path]:
    """Two runs of the same model, each by a server of its own."""
    slot_s = slot_of(plan)
    shared = shared_plan(plan, slot_s) if way == "in turns" else plan
    places = [folder / side for side in ("base", "candidate")]
    with ExitStack() as stack:
        loads = []
        for place in places:
            place.mkdir(parents=True)
            served = stack.enter_context(serving(str(model), folder, ServerOptions()))
            subject_of = partial(_always, file_subject(served, model, "rest", PayloadWish()))
            loads.append(SideLoad(subject_of=subject_of, plan=shared, folder=place, label=place.name))
        if way == "in turns":
            for fault in runs.at_once(loads, slot_s, lambda _: None):
                if fault is not None:
                    raise fault
        else:
            for one in loads:
                runs.one(one.subject_of, one.plan, one.folder, one.label, lambda _: None, None)
    return places


def _always(subject: Subject, _: Protocol) -> Subject:
    return subject


def _log_ratio(places: Sequence[Path], q: float) -> float:
    base_s, candidate_s = (
        quantile(read_samples(place, read_recorded(place).run.window).latency_s, q) for place in places
    )
    return float(np.log(candidate_s / base_s))


def _print(spread: dict[str, np.ndarray], took_s: dict[str, float], pairs: int) -> None:
    table = Table(box=SIMPLE_HEAD)
    for heading in ("pairs", "ratio of p50", "ratio of p90", "a pair", "pairs for one in turns"):
        table.add_column(heading, justify="left" if heading == "pairs" else "right")
    for way in WAYS:
        more = (spread[way] / spread["in turns"]) ** 2
        table.add_row(
            way,
            *(f"+-{one:.1%}" for one in spread[way]),
            f"{took_s[way] / pairs:.1f} s",
            ", ".join(f"{one:.1f} (p{100 * q:g})" for one, q in zip(more, PERCENTILES, strict=True)),
        )
    console.print(table)


if __name__ == "__main__":
    main()
