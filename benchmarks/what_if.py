"""Does it come true? What settings do, as `what-if` foretells it, beside what mlserve bench measures.

    .venv/bin/python benchmarks/what_if.py [--store STORE] [--model NAME ...] [--seconds 4] [--runs 3]
        [--budget 8] [--quick] [--json FILE]

Every setting is foretold at two shares of the highest rate that it is foretold to bear, and then measured at these
rates on a real server, with the same schedule: a tiny MLP, and each of --model. Runs at low rates are longer, up to
three times, so that more of them have a p99. All of this is done --runs times, in rounds: in each, the parts are timed
anew, every point is foretold by them, and every point is measured, so that what happens to the machine meanwhile falls
on what is foretold and on what is measured alike. A point is judged by the middle of what was foretold and the middle
of what was measured. The table has both and their ratio; the last lines say which share of the points is within 20% at
p50 and p99, of each model and protocol, over all of them and over those most of whose runs are VALID; which share of
single runs is within 20% of what was foretold in their own round; and which is within 20% of the middle of the other
runs at the same point: no prediction can be better than a measurement made again. "Corrected" is what `tune` would have
believed just before each run: what was foretold, by the errors at the points that were measured before it in its round.

--json FILE is written after every run; the same command goes on where the file ends.

The machine must be quiet: times of parts that were measured while something else ran are wrong for every setting. What
others used of the server's and generators' cores during each run stands beside it. With one --model it takes about
twenty minutes on a quiet machine of 2 cores.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from math import inf, isinf
from pathlib import Path

import msgspec
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from subjects import write_tiny

from mlserve.runs.load import Plan
from mlserve.runs.percentiles import too_few
from mlserve.runs.samples import read_samples
from mlserve.stats import minimum_samples, quantile
from mlserve.tuning.choosing.belief import Seen, believe, resemblance
from mlserve.tuning.evidence import parse_slo
from mlserve.tuning.measuring import measure_run
from mlserve.tuning.opening import Contender, Source, SubjectOf, opener
from mlserve.tuning.prediction.predict import Budget, Predictor, open_predictor
from mlserve.tuning.prediction.prediction import Prediction
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
NAMES = ("p50", "p99")
# About how much a percentile of one run differs from another run's, as a logarithm.
SCATTER = {"p50": 0.05, "p99": 0.15}


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """One run: seconds foretold in its round, None where the queue grows without end; and seconds measured, of those
    percentiles that it has enough requests for.
    """

    foretold: dict[str, float | None]
    requests: int
    measured: dict[str, float]
    valid: bool
    others_cpu: float | None


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """The setting `number` at one rate, and the runs in the order in which they were made."""

    number: int
    setting: Setting
    rate_per_s: float
    duration_s: float
    runs: tuple[Ran, ...] = ()

    def each(self, name: str) -> list[float]:
        """What the runs measured."""
        return [run.measured[name] for run in self.runs if name in run.measured]

    def middle(self, name: str) -> float:
        return float(np.median(self.each(name)))

    def foretold(self, name: str) -> list[float]:
        """What was foretold in each round; infinite where the queue grows without end."""
        return [_seconds(run.foretold[name]) for run in self.runs]

    def foretold_middle(self, name: str) -> float:
        return float(np.median(self.foretold(name)))

    def ratio(self, name: str) -> float:
        return self.foretold_middle(name) / self.middle(name)

    def ratios(self, name: str) -> list[float]:
        """Of each run by itself."""
        return [_seconds(run.foretold[name]) / run.measured[name] for run in self.runs if name in run.measured]

    def repeats(self, name: str) -> list[bool]:
        """Of each run, whether it is near the middle of the others."""
        each = self.each(name)
        return [
            is_close(each[at] / float(np.median(each[:at] + each[at + 1 :])))
            for at in range(len(each))
            if len(each) > 1
        ]

    @property
    def valid(self) -> bool:
        return sum(run.valid for run in self.runs) > len(self.runs) / 2


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked (models, seconds), the largest share of the time in which others had the cores while parts were
    timed, and all points.
    """

    asked: tuple[tuple[str, ...], float, bool]
    disturbed: float
    points: tuple[Point, ...]


def main() -> None:
    asked = _arguments()
    console = Console(width=150)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        mlp = write_tiny(folder / "mlp.onnx")
        settings = list(_settings([str(mlp), *asked.model], quick=asked.quick))
        source = Source(store=asked.store)
        found = _read(asked, settings) or _chosen(asked, settings, source, folder, console)
        for number in range(1, asked.runs + 1):
            if any(len(point.runs) < number for point in found.points):
                found = _round(number, found, asked, source, folder, console)
    table = _table()
    for point in found.points:
        table.add_row(*_row(point))
    console.print(table)
    _summarize(console, found)


def is_close(ratio: float) -> bool:
    return 1 - CLOSE <= ratio <= 1 + CLOSE


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--model", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--budget", type=float, default=8.0, help="as of mlserve what-if (seconds)")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _read(asked: argparse.Namespace, settings: Sequence[Setting]) -> Found | None:
    """What an earlier command came to, if there was one."""
    if asked.json is None or not asked.json.is_file():
        return None
    try:
        found = msgspec.json.decode(asked.json.read_bytes(), type=Found)
    except msgspec.DecodeError as error:
        raise SystemExit(f"{asked.json} is no result of this benchmark: {error}; name another file") from error
    if found.asked != _what(asked):
        raise SystemExit(f"{asked.json} is of another command: {found.asked}; name another file")
    # The tiny model lies elsewhere each time.
    points = tuple(msgspec.structs.replace(point, setting=settings[point.number]) for point in found.points)
    return msgspec.structs.replace(found, points=points)


def _what(asked: argparse.Namespace) -> tuple[tuple[str, ...], float, bool]:
    return tuple(asked.model), asked.seconds, asked.quick


def _write(found: Found, path: Path | None) -> None:
    if path is not None:
        partial = path.with_name(f"{path.name}.partial")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
        partial.rename(path)


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


def _chosen(
    asked: argparse.Namespace, settings: Sequence[Setting], source: Source, folder: Path, console: Console
) -> Found:
    """The points, by what the first round's times foretell."""
    predictor = _predictor(1, asked, settings, source, folder, console, asked.seconds)
    points = []
    for number, setting in enumerate(settings):
        highest = predictor([setting], SLO, None)[0]
        if not highest.max_rate_per_s:
            lone = f"even where requests hardly meet, p99 is {format_duration(highest.p99_s)}"
            console.print(f"{_words(setting)}: no rate keeps {SLO.words}: {lone}", style="yellow")
            continue
        rates = [share * min(highest.max_rate_per_s, MOST_PER_S) for share in SHARES]
        points += [
            Point(number=number, setting=setting, rate_per_s=rate, duration_s=_duration_s(rate, asked.seconds))
            for rate in rates
        ]
    return Found(asked=_what(asked), disturbed=0.0, points=tuple(points))


def _predictor(
    number: int,
    asked: argparse.Namespace,
    settings: Sequence[Setting],
    source: Source,
    folder: Path,
    console: Console,
    duration_s: float,
) -> Predictor:
    """By what was timed in round `number`, at its beginning, for runs of `duration_s`."""
    plan = Plan(rate_per_s=1.0, duration_s=duration_s, warm_up_s=WARM_UP_S)
    budget = Budget(engine_s=asked.budget, protocol_s=asked.budget)
    return open_predictor(
        settings, source, plan, folder / f"times-{number}.json", console.print, budget, 0.0, highest=False
    )


def _round(
    number: int, found: Found, asked: argparse.Namespace, source: Source, folder: Path, console: Console
) -> Found:
    """What was not measured in round `number`: times anew, foretold by them, and measured."""
    points, began_s, made = list(found.points), time.monotonic(), 0
    left = [at for at, point in enumerate(points) if len(point.runs) < number]
    settings = list({points[at].number: points[at].setting for at in left}.values())
    foretold = {}
    for at in left:
        point = points[at]
        predictor = _predictor(number, asked, settings, source, folder, console, point.duration_s)
        foretold[at] = predictor([point.setting], SLO, point.rate_per_s)[0]
    disturbed = max(found.disturbed, *(each.disturbed for each in foretold.values()))
    for setting in settings:
        with opener(source)(Contender(setting.model, setting.model), setting.options) as subject_of:
            for at in left:
                if points[at].setting != setting:
                    continue
                ran = _run(points[at], foretold[at], subject_of, Path(tempfile.mkdtemp(dir=folder)))
                points[at] = msgspec.structs.replace(points[at], runs=(*points[at].runs, ran))
                found, made = Found(asked=found.asked, disturbed=disturbed, points=tuple(points)), made + 1
                _write(found, asked.json)
                spent_s = time.monotonic() - began_s
                told = f"{_words(setting)}, {format_rate(points[at].rate_per_s)}, {_times(ran)}"
                console.print(
                    f"round {number} of {asked.runs}, run {made} of {len(left)}, {spent_s:.0f} s: {told}", style="dim"
                )
    return found


def _run(point: Point, foretold: Prediction, subject_of: SubjectOf, folder: Path) -> Ran:
    plan = Plan(
        rate_per_s=point.rate_per_s,
        duration_s=point.duration_s,
        warm_up_s=WARM_UP_S,
        protocol=point.setting.protocol,
    )
    run = measure_run(subject_of, plan, folder, "what-if", lambda _: None, None)
    latency_s = read_samples(folder, run.window).latency_s
    names = [name for name in NAMES if not too_few(name, int(name[1:]) / 100, len(latency_s))]
    return Ran(
        foretold={"p50": _known(foretold.p50_s), "p99": _known(foretold.p99_s)},
        requests=len(latency_s),
        measured={name: quantile(latency_s, int(name[1:]) / 100) for name in names},
        valid=run.certificate.valid,
        others_cpu=run.resources.others_cpu,
    )


def _known(seconds: float) -> float | None:
    return None if isinf(seconds) else seconds


def _seconds(known: float | None) -> float:
    return inf if known is None else known


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


def _words(setting: Setting) -> str:
    options = setting.options
    return (
        f"{setting.variant} {setting.protocol} {options.workers} workers, {options.max_batch_rows} rows, "
        f"{options.max_delay_ms:g} ms"
    )


def _time(seconds: float) -> str:
    return "grows" if isinf(seconds) else format_duration(seconds)


def _times(ran: Ran) -> str:
    return ", ".join(
        f"{name} {format_duration(ran.measured[name])} ({_time(_seconds(ran.foretold[name]))} foretold)"
        for name in ran.measured
    )


def _row(point: Point) -> list[str]:
    options = point.setting.options
    row = [point.setting.variant, point.setting.protocol, str(options.workers), str(options.max_batch_rows)]
    requests = "/".join(str(run.requests) for run in point.runs[:1])
    row += [f"{options.max_delay_ms:g} ms", format_rate(point.rate_per_s), requests]
    for name in NAMES:
        each, foretold = sorted(point.each(name)), sorted(point.foretold(name))
        row.append(f"{_time(point.foretold_middle(name))}\n{_spread(foretold)}")
        row.append(f"{format_duration(point.middle(name))}\n{_spread(each)}" if each else "-")
        row.append(f"{point.ratio(name):.2f}" if each else "-")
    others = [run.others_cpu for run in point.runs if run.others_cpu is not None]
    busy = f" others {max(others):.2f} cores" if others else ""
    return [*row, f"{sum(run.valid for run in point.runs)} of {len(point.runs)} VALID{busy}"]


def _spread(each: Sequence[float]) -> str:
    return f"{_time(each[0])}..{_time(each[-1])}" if len(each) > 1 else ""


def _summarize(console: Console, found: Found) -> None:
    points = found.points
    if found.disturbed:
        console.print(f"others had the cores for {found.disturbed:.0%} of the time in which parts were timed")
    corrected = {name: _corrected(points, name) for name in NAMES}
    groups: dict[str, list[Point]] = {}
    for point in points:
        for words in ("all", point.setting.variant, point.setting.protocol, *(("VALID",) if point.valid else ())):
            groups.setdefault(words, []).append(point)
    for words, some in groups.items():
        for name in NAMES:
            judged = [point for point in some if point.each(name)]
            if not judged:
                continue
            ratios = [point.ratio(name) for point in judged]
            single = [is_close(ratio) for point in judged for ratio in point.ratios(name)]
            again = [near for point in judged for near in point.repeats(name)]
            better = [is_close(corrected[name][points.index(point)] / point.middle(name)) for point in judged]
            console.print(
                f"{words} {name}: {_share([is_close(ratio) for ratio in ratios])} of points foretold within "
                f"{CLOSE:.0%}, ratio {np.median(ratios):.2f} in the middle; corrected: {_share(better)}; "
                f"{_share(single)} of single runs by their own round; measured again: {_share(again)} of runs within "
                f"{CLOSE:.0%} of the middle of the others",
                soft_wrap=True,
            )


def _corrected(points: Sequence[Point], name: str) -> list[float]:
    """[points] the middle, over the rounds, of what was believed just before each point was measured (seconds)."""
    covariance = resemblance([point.setting for point in points])
    rounds = min(len(point.runs) for point in points)
    believed = np.full((rounds, len(points)), inf)
    for number in range(rounds):
        runs = [point.runs[number] for point in points]
        # Where the queue grows without end there is nothing to correct.
        known = np.array([run.foretold[name] or 1.0 for run in runs])
        seen: list[Seen] = []
        for at, run in enumerate(runs):
            if run.foretold[name] is None:
                continue
            believed[number, at] = np.exp(believe(np.log(known), covariance, seen).mean[at])
            if name in run.measured:
                seen.append(Seen(at, float(np.log(run.measured[name])), SCATTER[name]))
    return [float(middle) for middle in np.median(believed, axis=0)]


def _share(near: Sequence[bool]) -> str:
    return f"{sum(near)} of {len(near)} ({sum(near) / len(near):.0%})" if near else "none"


if __name__ == "__main__":
    main()
