"""`tune` against exhaustive search: how near its pick comes to the best, and in what share of the measuring time.

    python benchmarks/tuning.py --simulate                      # rules of choice against each other, truth known
    python benchmarks/tuning.py --simulate --seeds 1000 --only-ours --run-to-run 0.08 --duration 5 --overhead 2.5
    python benchmarks/tuning.py --tiny --out /tmp/tiny          # real servers: a tiny MLP, fp32 and int8
    python benchmarks/tuning.py minilm --store store --out /tmp/minilm

Real servers: every setting is measured once (`--duration`), then `tune` searches with a tenth of that time, once for
each of 5 seeds; what foretelling took is told apart. As `tune` may go over its budget by one long run, its budget is
that much less than a tenth. The winner of one run each is the luckiest one too: so the five
best of the exhaustive search, and every seed's pick, are measured again, all at once in turns of a tenth of a second,
in several rounds of new servers; a pick's loss is the ratio of the means of these runs. The same command with the same
--out goes on where it stopped. On a quiet machine of 2 cores, 60 settings take about 20 minutes.

Measuring time is what runs take with everything: servers that start, calibration, warm-up. Simulated systems have 60
settings (see mlserve/tuning/choosing/simulated.py); Optuna searches the same space by the same short runs.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
from scipy.special import stdtrit
from subjects import write_tiny

from mlserve.model.store import Store
from mlserve.optimize.flags import recipe_of
from mlserve.optimize.importing import Source as ModelSource
from mlserve.optimize.variants import Wish, optimize
from mlserve.report.choice import Verdict
from mlserve.runs.load import Plan, Protocol
from mlserve.stats import quantile
from mlserve.tuning.calibrated import CalibratedRuns, SideLoad
from mlserve.tuning.campaign import is_finished, make_room
from mlserve.tuning.choosing.aim import Aim
from mlserve.tuning.choosing.attempt import Attempt, Trial
from mlserve.tuning.choosing.choose import Pace, choose
from mlserve.tuning.choosing.contest import label_of
from mlserve.tuning.choosing.record import Search
from mlserve.tuning.choosing.simulated import SimulatedSystem
from mlserve.tuning.choosing.space import Space, settings_of, this_machine, versions_for
from mlserve.tuning.choosing.tune import Tuning
from mlserve.tuning.evidence import Objective, parse_slo
from mlserve.tuning.measuring import read_recorded
from mlserve.tuning.opening import Contender, Source, opener
from mlserve.tuning.prediction.predict import open_predictor
from mlserve.tuning.setting import Setting
from mlserve.tuning.slots import shared_plan, slot_of

OBJECTIVE = Objective(percentile=0.99, limit_s=0.02, max_errors=0.001)
RATE_PER_S = 200.0
SHARE = 0.10
NEAR = 0.05
MEASURED_AGAIN = 5
WITHOUT_END_S = 1e9
PROTOCOLS: tuple[Protocol, ...] = ("rest", "grpc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a model of the store, or an .onnx file")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a tiny MLP; by default at 500/s with p50 within 20 ms")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rps", type=float, help="20")
    parser.add_argument(
        "--slo",
        help="p90=200ms: at 20/s, a p99 is that of too few requests; p50=20ms of a tiny MLP, its p99 is the machine's",
    )
    parser.add_argument("--duration", type=float, help="seconds of a long run: 8, simulated 20")
    parser.add_argument("--run-to-run", type=float, default=0.03, help="simulated: by what share runs differ")
    parser.add_argument("--overhead", type=float, default=4.0, help="simulated: seconds of a run beside its load")
    parser.add_argument("--only-ours", action="store_true", help="simulated: no other rules, no other errors")
    parser.add_argument("--most", type=int, default=60, help="settings, at most")
    parser.add_argument("--rounds", type=int, default=3, help="of measuring the best again")
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", type=Path)
    said = parser.parse_args()
    said.duration = said.duration or (8.0 if said.tiny or said.model else 20.0)
    if said.tiny or said.model:
        said.rps = said.rps or (500.0 if said.tiny else 20.0)
        said.slo = said.slo or ("p50=20ms" if said.tiny else "p90=200ms")
        measure(said, said.out or Path(tempfile.mkdtemp(prefix="tuning-")))
    else:
        simulate(said)


def simulate(said: argparse.Namespace) -> None:
    """Every rule of choice with the same time, a tenth of what measuring all settings takes; latency at a rate."""
    seeds = said.seeds
    pace = Pace(budget_s=math.inf, short_s=said.duration / 5, long_s=said.duration, overhead_s=said.overhead)
    exhaustive_s = 60 * (pace.warm_up_s + pace.long_s + pace.overhead_s)
    budgeted = msgspec.structs.replace(pace, budget_s=SHARE * exhaustive_s)
    rules: dict[str, Callable[[SimulatedSystem, Pace, int], int | None]] = {
        "what is believed (mlserve)": by_belief,
        "Optuna, TPE": by_optuna,
        "predictions, best first": in_foretold_order,
    }
    if said.only_ours:
        rules = dict(islice(rules.items(), 1))
    print(f"{'rule':28} {'error':>5} {'within 5%':>10} {'mean loss':>10} {'worst':>7} {'time used':>10}")
    for error in (1.0,) if said.only_ours else (0.5, 1.0, 2.0):
        for name, rule in rules.items():
            losses, used = [], []
            for seed in range(seeds):
                aim = Aim(objective=OBJECTIVE, goal="latency", rate_per_s=RATE_PER_S)
                system = SimulatedSystem(seed, aim, budgeted, error, said.run_to_run)
                truth = [system.latency_s(number, RATE_PER_S) for number in range(60)]
                pick = rule(system, budgeted, seed)
                losses.append(math.inf if pick is None else truth[pick] / min(truth) - 1)
                used.append(system.spent_s / exhaustive_s)
            near = f"{sum(loss <= NEAR for loss in losses)} / {seeds}"
            lost = f"{np.mean(losses):>9.1%} {max(losses):>7.0%}"
            print(f"{name:28} {error:5g} {near:>10} {lost} {np.mean(used):>10.1%}", flush=True)


def by_belief(system: SimulatedSystem, pace: Pace, _: int) -> int | None:
    """What `mlserve tune` does."""
    end = list(choose(system.contest(), pace, system.attempt))[-1][1]
    return end.number if end else None


def by_optuna(system: SimulatedSystem, pace: Pace, seed: int) -> int | None:
    """Ask and tell, begun with the five best predictions; settings that it asks for again are answered again."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    contest = system.contest()
    knobs = contest.knobs()
    columns = list(zip(*knobs.values(), strict=True))
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    order = np.argsort(contest.log_latency_s())
    for number in order[:5]:
        study.enqueue_trial(dict(zip(knobs, columns[number], strict=True)))
    seen: dict[int, float] = {}
    for _ in range(200):
        if not fits(system, pace):
            break
        trial = study.ask()
        values = tuple(trial.suggest_categorical(name, sorted(set(column))) for name, column in knobs.items())
        if values not in columns:  # a delay without a batch to wait for
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        number = columns.index(values)
        if number not in seen:
            seen[number] = run_short(system, number)
        study.tell(trial, math.log(min(seen[number], 10.0)))
    return min(seen, key=lambda number: seen[number])


def in_foretold_order(system: SimulatedSystem, pace: Pace, _: int) -> int | None:
    """One setting after the other, as foretold, while there is time."""
    seen = {}
    for number in np.argsort(system.contest().log_latency_s()):
        if not fits(system, pace):
            break
        seen[int(number)] = run_short(system, int(number))
    return min(seen, key=lambda number: seen[number])


def fits(system: SimulatedSystem, pace: Pace) -> bool:
    """Whether there is time for one more short run and the long one that confirms."""
    overhead_s = 2 * (pace.overhead_s + pace.warm_up_s)
    return system.spent_s + pace.short_s + pace.long_s + overhead_s <= pace.budget_s


def run_short(system: SimulatedSystem, number: int) -> float:
    attempt = system.attempt(Trial(number=number, rate_per_s=RATE_PER_S, fidelity="short"), 0)
    return attempt.percentile_s if attempt.percentile_s is not None else math.inf


class Quiet:
    """Tells one line a run."""

    def begins(self, trial: Trial, label: str, spent_s: float) -> None:
        print(f"  {spent_s:6.0f} s  {trial.why}: {label}", flush=True)

    def moves(self, progress: object) -> None: ...

    def ends(self, attempt: Attempt, label: str, best: str) -> None: ...


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Of one seed's search: its pick's loss against the best of those that were measured again (0.05: its percentile is
    5% higher; `loss_high` is the upper end of its interval of 95%), and its time as a share of the exhaustive search's,
    without foretelling and with it.
    """

    seed: int
    pick: str
    loss: float
    loss_high: float
    share: float
    share_with_foretelling: float
    near: int
    compared: int


class Again(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that were measured again, and of each round the percentile of each (seconds)."""

    numbers: tuple[int, ...]
    figures: tuple[dict[int, float], ...]

    def mean_s(self, number: int) -> float:
        """Geometric, over the rounds."""
        return math.exp(statistics.fmean(math.log(one[number]) for one in self.figures))

    def loss(self, number: int) -> float:
        """How much it lies above the best."""
        return self.mean_s(number) / min(map(self.mean_s, self.numbers)) - 1

    def loss_high(self, number: int) -> float:
        """The upper end of the interval of 95% of that, by Student's t over the rounds; that of the best is 0."""
        best = min(self.numbers, key=self.mean_s)
        ratios = [math.log(one[number] / one[best]) for one in self.figures]
        if number == best or len(ratios) < 2:
            return self.loss(number)
        reach = float(stdtrit(len(ratios) - 1, 0.975)) * statistics.stdev(ratios) / math.sqrt(len(ratios))
        return math.exp(statistics.fmean(ratios) + reach) - 1


class Bench:
    """What is compared, and in which folder."""

    def __init__(self, said: argparse.Namespace, out: Path) -> None:
        self.out, self.long_s = out, said.duration
        self.aim = Aim(objective=parse_slo(said.slo), goal="latency", rate_per_s=said.rps, max_accuracy_loss=1.0)
        out.mkdir(parents=True, exist_ok=True)
        store, name = model_of(said, out)
        machinery = this_machine()
        self.versions, _ = versions_for(Store(store), [name], self.aim, ())
        every = settings_of(self.versions, PROTOCOLS, self.aim, machinery).settings
        self.space, self.cores = Space(settings=thinned(every, said.most)), machinery.cores
        self.source = Source(store=store)

    def tuning(self, name: str, seed: int, budget_s: float = WITHOUT_END_S) -> Tuning:
        """A search in a folder of its own. All of them share the times that predictions rest on."""
        pace = Pace(budget_s=budget_s, short_s=self.long_s / 5, long_s=self.long_s)
        plan = Plan(rate_per_s=1.0, duration_s=1.0, warm_up_s=1.0, seed=seed)
        search = Search(
            models=tuple(one.ref for one in self.versions),
            protocols=PROTOCOLS,
            aim=self.aim,
            plan=plan,
            short_s=pace.short_s,
            long_s=pace.long_s,
        )
        made = Tuning(search, pace, self.out / name, opener(self.source))
        predictor = partial(
            open_predictor,
            source=self.source,
            plan=msgspec.structs.replace(plan, seed=0),
            file=self.out / "service-times.json",
            on_step=lambda step: print(f"  {step}", flush=True),
            since_s=0.0,  # every search rests on the same times
        )
        made.foretell(self.space, predictor, self.cores, lambda _: None)
        return made


def measure(said: argparse.Namespace, out: Path) -> None:
    """Real servers: a long run of each setting, then searches with a tenth of the time that took."""
    bench = Bench(said, out)
    began_s = time.monotonic()
    exhaustive = bench.tuning("exhaustive", 0)
    foretelling_s = kept(out / "foretelling.json", time.monotonic() - began_s)
    count = len(bench.space.settings)
    found = exhaustive.make([trial(number, bench, "exhaustive") for number in range(count)], Quiet())
    whole_s = exhaustive.spent_s
    print(f"exhaustive: {count} settings in {whole_s:.0f} s, of which {sum(one.valid for one in found)} VALID")
    print(f"foretelling all of them: {foretelling_s:.0f} s")
    verdicts, spent = [], []
    for seed in range(said.seeds):
        searched = bench.tuning(f"seed-{seed}", 1000 * (seed + 1), (SHARE - 1 / count) * whole_s)
        verdicts.append(searched.run(Quiet()))
        spent.append(searched.spent_s)
    best = sorted(range(count), key=lambda number: found[number].percentile_s or math.inf)[:MEASURED_AGAIN]
    picks = [one.pick.number for one in verdicts if one.pick is not None]
    again = measured_again(bench, list(dict.fromkeys([*best, *picks])), said.rounds)
    outcomes = [
        outcome(seed, verdict, again, (spent_s, foretelling_s, whole_s))
        for seed, (verdict, spent_s) in enumerate(zip(verdicts, spent, strict=True))
    ]
    tell(outcomes, again, bench.space.settings)
    if said.json:
        write(said.json, outcomes, again, bench.space.settings, (whole_s, foretelling_s))


def measured_again(bench: Bench, numbers: Sequence[int], rounds: int) -> Again:
    """All of them at once, in turns of a tenth of a second: what the machine does, it does to all."""
    runs, figures = CalibratedRuns(), []
    for turn in range(rounds):
        folder = bench.out / "again" / f"{len(numbers)}-round-{turn + 1}"
        order = numbers if turn % 2 == 0 else numbers[::-1]
        print(f"  again, all at once: round {turn + 1} of {rounds}", flush=True)
        figures.append(together(bench, order, folder, runs, seed=200_000 + turn))
    return Again(numbers=tuple(numbers), figures=tuple(figures))


def together(bench: Bench, numbers: Sequence[int], folder: Path, runs: CalibratedRuns, seed: int) -> dict[int, float]:
    """By setting, its percentile (seconds) in one run; read where it was made before."""
    places = {number: folder / f"{number:02}" for number in numbers}
    if not all(map(is_finished, places.values())):
        assert bench.aim.rate_per_s is not None
        alone = Plan(rate_per_s=bench.aim.rate_per_s, duration_s=2 * bench.long_s, warm_up_s=1.0, seed=seed)
        slot_s = slot_of(alone)
        shared = shared_plan(alone, slot_s, len(numbers))
        with ExitStack() as stack:
            loads = []
            for number, place in places.items():
                setting = bench.space.settings[number]
                opened = opener(bench.source)(Contender(setting.model, setting.model), setting.options)
                make_room(place)
                loads.append(
                    SideLoad(
                        subject_of=stack.enter_context(opened),
                        plan=msgspec.structs.replace(shared, protocol=setting.protocol),
                        folder=place,
                        label=label_of(setting, bench.space.settings),
                    )
                )
            faults = [fault for fault in runs.at_once(loads, slot_s, lambda _: None) if fault is not None]
        if faults:
            raise faults[0]
    found = {number: read_recorded(place) for number, place in places.items()}
    return {number: quantile(one.samples.latency_s, bench.aim.objective.percentile) for number, one in found.items()}


def outcome(seed: int, verdict: Verdict, again: Again, times_s: tuple[float, float, float]) -> Outcome:
    spent_s, foretelling_s, whole_s = times_s
    pick = verdict.pick
    return Outcome(
        seed=seed,
        pick=verdict.why if pick is None else pick.label,
        loss=math.inf if pick is None else again.loss(pick.number),
        loss_high=math.inf if pick is None else again.loss_high(pick.number),
        share=spent_s / whole_s,
        share_with_foretelling=(spent_s + foretelling_s) / whole_s,
        near=verdict.near,
        compared=verdict.compared,
    )


def tell(outcomes: Sequence[Outcome], again: Again, settings: Sequence[Setting]) -> None:
    print("measured again, all at once; means, and how much above the best:")
    for number in sorted(again.numbers, key=again.mean_s):
        loss = f"{again.loss(number):6.1%} (at most {again.loss_high(number):.1%})"
        print(f"  {1000 * again.mean_s(number):8.2f} ms  {loss}  {label_of(settings[number], settings)}")
    for one in outcomes:
        print(
            f"seed {one.seed}: {one.pick}: {one.loss:.1%} above the best (at most {one.loss_high:.1%}), in "
            f"{one.share:.1%} of the time ({one.share_with_foretelling:.1%} with foretelling); "
            f"{one.near} of {one.compared} predictions within 20%"
        )
    near = sum(one.loss <= NEAR for one in outcomes)
    print(f"within {NEAR:.0%} of the best: {near} of {len(outcomes)} seeds", flush=True)


def write(
    file: Path,
    outcomes: Sequence[Outcome],
    again: Again,
    settings: Sequence[Setting],
    times_s: tuple[float, float],
) -> None:
    """All that was found as JSON; what is without end is null."""
    document = {
        "settings": len(settings),
        "exhaustive_s": times_s[0],
        "foretelling_s": times_s[1],
        "again_s": {
            label_of(settings[number], settings): [one[number] for one in again.figures] for number in again.numbers
        },
        "seeds": outcomes,
    }
    file.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def trial(number: int, bench: Bench, why: str) -> Trial:
    assert bench.aim.rate_per_s is not None
    return Trial(number=number, rate_per_s=bench.aim.rate_per_s, fidelity="long", why=why)


def model_of(said: argparse.Namespace, out: Path) -> tuple[Path, str]:
    """The store, and the name of the model in it; of a file, fp32 and int8 are made first, once."""
    path = write_tiny(out / "tiny.onnx") if said.tiny else Path(said.model)
    if path.suffix != ".onnx":
        return said.store, said.model
    store = out / "store"
    if not (store / path.stem).is_dir():
        optimize(ModelSource(path=path), Wish(recipe=recipe_of(["int8"])), Store(store), path.stem, print)
    return store, path.stem


def kept(file: Path, seconds: float) -> float:
    """What `file` says, which is written where it is not there: a search that goes on foretells nothing anew."""
    if not file.is_file():
        file.write_text(json.dumps(seconds) + "\n")
    return float(json.loads(file.read_text()))


def thinned(every: Sequence[Setting], most: int) -> tuple[Setting, ...]:
    """At most so many, from all of them."""
    count = min(most, len(every))
    return tuple(every[number * len(every) // count] for number in range(count))


if __name__ == "__main__":
    main()
