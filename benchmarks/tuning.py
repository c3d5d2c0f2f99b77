"""`tune` against exhaustive search: how near its pick comes to the best, and in what share of the measuring time.

    python benchmarks/tuning.py --simulate              # rules of choice against each other, in systems of known truth
    python benchmarks/tuning.py minilm --rps 20         # real servers: every setting once, then tune with 5 seeds

Measuring time is what runs take with everything: servers that start, calibration, warm-up. Simulated systems have 60
settings (see mlserve/tuning/choosing/simulated.py); Optuna searches the same space by the same short runs.
"""

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mlserve.model.store import Store
from mlserve.runs.load import Plan
from mlserve.tuning.choosing.aim import Aim
from mlserve.tuning.choosing.attempt import Attempt, Trial
from mlserve.tuning.choosing.choose import Pace, choose
from mlserve.tuning.choosing.record import Search
from mlserve.tuning.choosing.simulated import SimulatedSystem
from mlserve.tuning.choosing.space import Space, settings_of, this_machine, versions_for
from mlserve.tuning.choosing.tune import Tuning
from mlserve.tuning.evidence import Objective, parse_slo
from mlserve.tuning.opening import Source, opener
from mlserve.tuning.prediction.predict import open_predictor

OBJECTIVE = Objective(percentile=0.99, limit_s=0.02, max_errors=0.001)
RATE_PER_S = 200.0
SHARE = 0.10
NEAR = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a model of the store")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rps", type=float, default=20.0)
    parser.add_argument("--slo", default="p99=200ms")
    parser.add_argument("--duration", type=float, default=20.0, help="seconds of a long run")
    parser.add_argument("--most", type=int, default=60, help="settings, at most")
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--out", type=Path)
    said = parser.parse_args()
    if said.simulate or said.model is None:
        simulate(said.seeds)
    else:
        measure(said, said.out or Path(tempfile.mkdtemp(prefix="tuning-")))


def simulate(seeds: int) -> None:
    """Every rule of choice with the same time, a tenth of what measuring all settings takes; latency at a rate."""
    pace = Pace(budget_s=math.inf, overhead_s=4.0)
    exhaustive_s = 60 * (pace.warm_up_s + pace.long_s + pace.overhead_s)
    budgeted = Pace(budget_s=SHARE * exhaustive_s, overhead_s=4.0)
    rules: dict[str, Callable[[SimulatedSystem, Pace, int], int | None]] = {
        "what is believed (mlserve)": by_belief,
        "Optuna, TPE": by_optuna,
        "predictions, best first": in_foretold_order,
    }
    print(f"{'rule':28} {'error':>5} {'within 5%':>10} {'mean loss':>10} {'worst':>7} {'time used':>10}")
    for error in (0.5, 1.0, 2.0):
        for name, rule in rules.items():
            losses, used = [], []
            for seed in range(seeds):
                aim = Aim(objective=OBJECTIVE, goal="latency", rate_per_s=RATE_PER_S)
                system = SimulatedSystem(seed, aim, budgeted, error)
                truth = [system.latency_s(number, RATE_PER_S) for number in range(60)]
                pick = rule(system, budgeted, seed)
                losses.append(math.inf if pick is None else truth[pick] / min(truth) - 1)
                used.append(system.spent_s / exhaustive_s)
            near = f"{sum(loss <= NEAR for loss in losses)} / {seeds}"
            lost = f"{np.mean(losses):>9.1%} {max(losses):>7.0%}"
            print(f"{name:28} {error:5g} {near:>10} {lost} {np.mean(used):>10.1%}", flush=True)


def by_belief(system: SimulatedSystem, pace: Pace, _: int) -> int | None:
    """What `mlserve tune` does."""
    *_, (_, end) = choose(system.contest(), pace, system.attempt)
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


def measure(said: argparse.Namespace, out: Path) -> None:
    """Real servers: a long run of each setting, then searches with a tenth of the time that took."""
    aim = Aim(objective=parse_slo(said.slo), goal="latency", rate_per_s=said.rps)
    machinery = this_machine()
    versions, _ = versions_for(Store(said.store), said.model, aim, ())
    every = settings_of(versions, ("rest", "grpc"), aim, machinery).settings
    space = Space(settings=every[: said.most] if len(every) <= said.most else thinned(every, said.most))
    source = Source(store=said.store)
    plan = Plan(rate_per_s=1.0, duration_s=1.0, warm_up_s=1.0)
    predictor = partial(
        open_predictor,
        source=source,
        plan=plan,
        file=out / "service-times.json",
        on_step=lambda step: print(f"  {step}"),
    )
    out.mkdir(parents=True, exist_ok=True)

    def tuning(folder: Path, seed: int, pace: Pace) -> Tuning:
        search = Search(
            models=tuple(one.ref for one in versions),
            protocols=("rest", "grpc"),
            aim=aim,
            plan=Plan(rate_per_s=1.0, duration_s=1.0, warm_up_s=1.0, seed=seed),
            short_s=pace.short_s,
            long_s=pace.long_s,
        )
        made = Tuning(search, pace, folder, opener(source))
        made.foretell(space, predictor, machinery.cores, lambda _: None)
        return made

    whole = Pace(budget_s=math.inf, short_s=said.duration / 5, long_s=said.duration)
    exhaustive = tuning(out / "exhaustive", 0, whole)
    truth, spent_s = {}, 0.0
    for number in range(len(exhaustive.contest.settings)):
        trial = Trial(number=number, rate_per_s=said.rps, fidelity="long", why="exhaustive")
        attempt = exhaustive.make(trial, Quiet())
        spent_s += attempt.seconds
        truth[number] = attempt.percentile_s or math.inf
    print(f"exhaustive: {len(truth)} settings in {spent_s:.0f} s, best {1000 * min(truth.values()):.2f} ms")
    for seed in range(said.seeds):
        pace = Pace(budget_s=SHARE * spent_s, short_s=said.duration / 5, long_s=said.duration)
        made = tuning(out / f"seed-{seed}", 1000 * (seed + 1), pace)
        verdict = made.run(Quiet())
        loss = math.inf if verdict.pick is None else truth[verdict.pick.number] / min(truth.values()) - 1
        label = verdict.pick.label if verdict.pick else verdict.why
        print(
            f"seed {seed}: {label}; {loss:.1%} above the best, in {made.spent_s / spent_s:.1%} of the time; "
            f"{verdict.near} of {verdict.compared} predictions within 20%",
            flush=True,
        )


def thinned(every: Sequence[object], most: int) -> tuple:
    return tuple(every[number * len(every) // most] for number in range(most))


if __name__ == "__main__":
    main()
