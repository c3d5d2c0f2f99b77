"""Does it come true? What settings do, as `what-if` foretells it, beside what mlserve bench measures.

    .venv/bin/python benchmarks/what_if.py [--store STORE] [--model NAME ...] [--seconds 4] [--quick] [--json FILE]

Every setting is foretold at two shares of the highest rate that it is foretold to bear, and then measured at these
rates on a real server, with the same schedule: a tiny MLP, and each of --model. Runs at low rates are longer, up to
three times, so that more of them have a p99. The table has both and their ratio; the last lines say which share of the
points is within 20% at p50 and p99, of each protocol, over all of them and over those whose run is VALID.

The machine must be quiet: times of parts that were measured while something else ran are wrong for every setting. What
others used of the server's and generators' cores during each run stands beside it. With one --model it takes about
seven minutes on a quiet machine of 2 cores.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from subjects import write_tiny

from mlserve.runs.load import Plan
from mlserve.runs.percentiles import too_few
from mlserve.runs.samples import read_samples
from mlserve.stats import minimum_samples, quantile
from mlserve.tuning.evidence import parse_slo
from mlserve.tuning.measuring import measure_run
from mlserve.tuning.opening import Contender, Source, opener
from mlserve.tuning.prediction.predict import Budget, open_predictor
from mlserve.tuning.prediction.prediction import Predicts
from mlserve.tuning.serving import ServerOptions
from mlserve.tuning.setting import Setting
from mlserve.units import format_duration, format_rate

CLOSE = 0.2
WARM_UP_S = 1.0
SHARES = (0.3, 0.7)
LONGEST = 3
# Beyond this the generator, which has one core, is what is measured.
MOST_PER_S = 4000.0
SLO = parse_slo("p99=100ms")


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One setting at one rate: seconds, foretold and measured."""

    setting: Setting
    rate_per_s: float
    requests: int
    foretold: dict[str, float]
    measured: dict[str, float]
    valid: bool
    others_cpu: float | None

    def ratio(self, name: str) -> float:
        return self.foretold[name] / self.measured[name]

    def is_close(self, name: str) -> bool:
        return 1 - CLOSE <= self.ratio(name) <= 1 + CLOSE


def main() -> None:
    asked, began_s = _arguments(), time.monotonic()
    console = Console(width=150)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        mlp = write_tiny(folder / "mlp.onnx")
        settings = list(_settings([str(mlp), *asked.model], quick=asked.quick))
        source = Source(store=asked.store)
        plan = Plan(rate_per_s=1.0, duration_s=asked.seconds, warm_up_s=WARM_UP_S)
        budget = Budget(engine_s=2.0, protocol_s=4.0) if asked.quick else Budget()
        predicts = open_predictor(settings, source, plan, folder / "times.json", console.print, budget)
        points: list[Point] = []
        table = _table()
        for setting in settings:
            points += _measured(setting, predicts, source, plan, folder)
            console.print(f"{len(points)} points in {time.monotonic() - began_s:.0f} s", style="dim")
    for point in points:
        table.add_row(*_row(point))
    console.print(table)
    _summarize(console, points)
    if asked.json:
        asked.json.write_text(json.dumps(msgspec.to_builtins(points), indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--model", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _settings(models: Sequence[str], *, quick: bool) -> Iterator[Setting]:
    every = [
        ServerOptions(threads=1, max_batch_rows=rows, max_delay_ms=delay_ms)
        for rows, delay_ms in ((32, 0.0),) + (() if quick else ((8, 2.0),))
    ]
    every += [] if quick else [ServerOptions(threads=1, workers=2, max_batch_rows=8)]
    for model in models:
        for options in every:
            for protocol in ("rest", "grpc"):
                yield Setting(model=model, variant=Path(model).stem, options=options, protocol=protocol)


def _measured(setting: Setting, predicts: Predicts, source: Source, plan: Plan, folder: Path) -> Iterator[Point]:
    highest = predicts([setting], SLO, None)[0].max_rate_per_s
    with opener(source)(Contender(setting.model, setting.model), setting.options) as subject_of:
        for share in SHARES:
            rate = min(share * highest, share * MOST_PER_S)
            if not rate:
                continue
            foretold = predicts([setting], SLO, rate)[0]
            asked = msgspec.structs.replace(
                plan, rate_per_s=rate, protocol=setting.protocol, duration_s=_duration_s(rate, plan.duration_s)
            )
            run_folder = Path(tempfile.mkdtemp(dir=folder))
            run = measure_run(subject_of, asked, run_folder, "what-if", lambda _: None, None)
            latency_s = read_samples(run_folder, run.window).latency_s
            names = ("p50",) if too_few("p99", 0.99, len(latency_s)) else ("p50", "p99")
            yield Point(
                setting=setting,
                rate_per_s=rate,
                requests=len(latency_s),
                foretold={"p50": foretold.p50_s, "p99": foretold.p99_s},
                measured={name: quantile(latency_s, int(name[1:]) / 100) for name in names},
                valid=run.certificate.valid,
                others_cpu=run.resources.others_cpu,
            )


def _duration_s(rate_per_s: float, least_s: float) -> float:
    """Long enough for a p99, if that is not too long."""
    return min(max(least_s, 1.1 * minimum_samples(0.99) / rate_per_s), LONGEST * least_s)


def _table() -> Table:
    table = Table(box=SIMPLE_HEAD)
    for heading in ("model", "protocol", "workers", "rows", "delay"):
        table.add_column(heading)
    for heading in ("rate", "requests", "p50 foretold", "measured", "ratio", "p99 foretold", "measured", "ratio"):
        table.add_column(heading, justify="right")
    table.add_column("")
    return table


def _row(point: Point) -> list[str]:
    options = point.setting.options
    row = [point.setting.variant, point.setting.protocol, str(options.workers), str(options.max_batch_rows)]
    row += [f"{options.max_delay_ms:g} ms", format_rate(point.rate_per_s), f"{point.requests:,}"]
    for name in ("p50", "p99"):
        known = name in point.measured
        row += [format_duration(point.foretold[name]), format_duration(point.measured[name]) if known else "-"]
        row.append(f"{point.ratio(name):.2f}" if known else "-")
    others = "" if point.others_cpu is None else f"others {point.others_cpu:.2f} cores"
    return [*row, f"{'VALID' if point.valid else 'INVALID'} {others}"]


def _summarize(console: Console, points: Sequence[Point]) -> None:
    protocols = dict.fromkeys(point.setting.protocol for point in points)
    groups = {"all": points} | {
        name: [point for point in points if point.setting.protocol == name] for name in protocols
    }
    valid = {f"{words}, VALID": [point for point in some if point.valid] for words, some in groups.items()}
    for words, some in (groups | valid).items():
        for name in ("p50", "p99"):
            judged = [point for point in some if name in point.measured]
            close = sum(point.is_close(name) for point in judged)
            if judged:
                middle = sorted(point.ratio(name) for point in judged)[len(judged) // 2]
                console.print(
                    f"{words} {name}: {close} of {len(judged)} within {CLOSE:.0%} ({close / len(judged):.0%}), "
                    f"ratio {middle:.2f} in the middle"
                )


if __name__ == "__main__":
    main()
