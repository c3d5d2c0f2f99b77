"""The highest rate that meets an objective, run by run; what was interrupted goes on where it stopped."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from mlserve.bench.driver import Decide
from mlserve.bench.generator.job import Stop
from mlserve.bench.load.schedule import schedule
from mlserve.bench.progress import Progress
from mlserve.errors import UsageError
from mlserve.report.measurement import Recorded
from mlserve.runs.load import Flat, Plan
from mlserve.runs.run import Check, Run
from mlserve.runs.samples import OK, Samples
from mlserve.stats import minimum_samples
from mlserve.tuning.campaign import is_finished, make_room, open_campaign
from mlserve.tuning.evidence import LEAST_REQUESTS, Objective, Requests, Verdict, conclude, look, weigh
from mlserve.tuning.measuring import Measure, measure_run, read_recorded
from mlserve.tuning.opening import Contender, Opens, SubjectOf
from mlserve.tuning.search import End, Step, Try, bracket_of, is_confirmed, next_try
from mlserve.tuning.serving import ServerOptions

__all__ = [
    "MAX_FILE",
    "Found",
    "Judge",
    "Quest",
    "StepRun",
    "Watcher",
    "blame_of",
    "find_max",
    "judged",
    "settled_requests",
    "step_folders",
    "step_plan",
]

MAX_FILE = "max.json"
# 1: first format
FORMAT_VERSION = 1

_MOST_PER_S = 1e6
_ESTIMATE_USERS, _ESTIMATE_S, _ESTIMATE_WARM_UP_S = 64, 3.0, 1.0
# A closed loop finds the throughput; with a limit on latency less of it can be used.
_START_SHARE = 0.75
# Rows reach the disk ten times a second, and a moment later.
_ROWS_LATE_S = 0.5
_NEXT_LOOK = 1.25
_LEAST_SHARE = 0.1
# By how many standard deviations a run is to hold more requests than a percentile takes, for Poisson arrivals vary.
_MORE_REQUESTS = 3.0
# Of the rate found; and seeds that no step has.
_CURVE_PERCENTS, _CURVE_SEEDS = (10, 25, 50, 75, 90), 1000

# What of a certificate says that the run shows the generator, or the machine, and not the server.
_GENERATOR_CHECKS = ("generator on time", "generator CPU", "calibration rate", "calibration latency")
_MACHINE_CHECKS = ("steal", "other work", "clock", "server counters")


class Quest(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, as `max.json` keeps it. `start_per_s` 0.0: three quarters of what a closed loop of 64 users
    reaches. The plan's duration is the longest that a step takes; its rate is not used.
    """

    format_version: int = FORMAT_VERSION
    contender: Contender
    plan: Plan
    options: ServerOptions = ServerOptions()
    objective: Objective
    resolution: float = 0.05
    start_per_s: float = 0.0
    curve: bool = True


class StepRun(msgspec.Struct, frozen=True, kw_only=True):
    """One step's run, and what it says."""

    recorded: Recorded
    verdict: Verdict
    blame: str = ""

    @property
    def rate_per_s(self) -> float:
        """What was offered."""
        return self.recorded.run.plan.rate_per_s

    @property
    def step(self) -> Step:
        """As the search sees it."""
        return Step(rate_per_s=self.rate_per_s, met=self.verdict.met, sure=self.verdict.sure, blame=self.blame)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The highest rate that passed, 0.0 for none, and the lowest that failed, infinite for none.

    Both are `confirmed` where two runs said the same. `why` says how the search ended. `points` are the runs that the
    curve needs beside the steps.
    """

    end: End
    why: str
    passed_per_s: float
    failed_per_s: float
    confirmed: bool
    steps: tuple[StepRun, ...]
    points: tuple[StepRun, ...] = ()

    @property
    def best(self) -> tuple[Recorded, ...]:
        """The runs at the highest rate that passed."""
        return tuple(step.recorded for step in self.steps if step.rate_per_s == self.passed_per_s and step.verdict.met)


class Watcher(Protocol):
    """Told of every run of the search as it comes: the closed loop that looks for a start, steps, and the curve's."""

    def begins(self, purpose: str, plan: Plan) -> None: ...

    def moves(self, progress: Progress) -> None: ...

    def ends(self, step: StepRun) -> None: ...


def find_max(quest: Quest, directory: Path, opens: Opens, watcher: Watcher, measure: Measure = measure_run) -> Found:
    """Searches in `directory`, beginning with the runs that are there already, and then measures the rest of the curve.

    Raises UsageError where the plan or the folder cannot be used, EngineError and BenchError where the server does not
    start or a run breaks down; all finished runs are kept.
    """
    if quest.plan.closed or not isinstance(quest.plan.shape, Flat):
        raise UsageError("--find-max searches a steady rate of an open loop; leave out --users, --shape and --replay")
    open_campaign(directory, MAX_FILE, quest)
    steps = [judged(quest, read_recorded(folder)) for folder in step_folders(directory)]
    with ExitStack() as stack:
        runs = _Runs(directory, partial(_open, stack, quest, opens), watcher, measure)
        start_per_s = quest.start_per_s or _estimate_per_s(quest, runs)
        while isinstance(found := _next(quest, steps, start_per_s), Try):
            plan = step_plan(quest, found.rate_per_s, len(steps))
            name = f"step-{len(steps) + 1:02}-{found.rate_per_s:g}rps"
            purpose = "confirming" if found.confirming else "trying"
            steps.append(judged(quest, runs.take(purpose, plan, name, Judge(quest.objective, plan))))
            watcher.ends(steps[-1])
        bracket = bracket_of([one.step for one in steps])
        points = []
        for percent in _CURVE_PERCENTS if bracket.passed_per_s and quest.curve else ():
            rate_per_s = float(f"{bracket.passed_per_s * percent / 100:.4g}")
            plan = step_plan(quest, rate_per_s, _CURVE_SEEDS + percent)
            points.append(judged(quest, runs.take("curve", plan, f"curve-{percent}-{rate_per_s:g}rps", None)))
            watcher.ends(points[-1])
    return _found(quest, found, steps, points)


def _next(quest: Quest, steps: Sequence[StepRun], start_per_s: float) -> Try | End:
    return next_try(
        [one.step for one in steps],
        start_per_s,
        quest.resolution,
        most_per_s=_MOST_PER_S,
        least_per_s=_least_per_s(quest),
    )


def _least_per_s(quest: Quest) -> float:
    """The lowest rate of which nearly every run holds as many requests as the percentile takes."""
    needed = minimum_samples(quest.objective.percentile)
    return (needed + _MORE_REQUESTS * math.sqrt(needed)) / quest.plan.duration_s


class _Runs:
    """Runs into the folders of a search: those that are finished are read, the others made. The server is opened when
    the first run is to be made.
    """

    def __init__(self, directory: Path, opening: Callable[[], SubjectOf], watcher: Watcher, measure: Measure) -> None:
        self._directory, self._opening, self._watcher, self._measure = directory, opening, watcher, measure
        self._subject_of: SubjectOf | None = None

    def take(self, purpose: str, plan: Plan, name: str, decide: Decide | None) -> Recorded:
        """The run called `name`."""
        folder = self._directory / name
        if not is_finished(folder):
            if self._subject_of is None:
                self._subject_of = self._opening()
            self._watcher.begins(purpose, plan)
            make_room(folder)
            self._measure(self._subject_of, plan, folder, name, self._watcher.moves, decide)
        return read_recorded(folder)


def _open(stack: ExitStack, quest: Quest, opens: Opens) -> SubjectOf:
    return stack.enter_context(opens(quest.contender, None if quest.contender.running else quest.options))


def step_plan(quest: Quest, rate_per_s: float, number: int) -> Plan:
    """The plan of a run at `rate_per_s`. Each has a seed of its own: the same arrivals twice would confirm nothing."""
    return msgspec.structs.replace(
        quest.plan,
        rate_per_s=rate_per_s,
        seed=quest.plan.seed + number,
        percentile=quest.objective.percentile,
        max_errors=quest.objective.max_errors,
        find_warm_up=False,
        precision=0.0,
        max_duration_s=0.0,
    )


def step_folders(directory: Path) -> list[Path]:
    """The finished steps, in the order they were made."""
    return sorted(folder for folder in directory.glob("step-*") if is_finished(folder))


def judged(quest: Quest, recorded: Recorded) -> StepRun:
    """What a finished run says; one of too few requests is no evidence of its rate."""
    requests = settled_requests(recorded.samples, recorded.samples.scheduled_s)
    verdict = conclude(weigh(requests, quest.objective), quest.objective)
    return StepRun(
        recorded=recorded, verdict=verdict, blame=blame_of(recorded.run) or _too_few(quest, requests, verdict)
    )


def _too_few(quest: Quest, requests: Requests, verdict: Verdict) -> str:
    if verdict.enough:
        return ""
    needed = minimum_samples(quest.objective.percentile)
    return f"{len(requests.due_s)} requests were due, and {quest.objective.name} takes {needed:,}; raise --duration"


def blame_of(run: Run) -> str:
    """Why `run` shows the generator, or the machine, and not the server; "" where it is evidence."""
    faults = [check for check in run.certificate.faults if check.name in _GENERATOR_CHECKS + _MACHINE_CHECKS]
    return _blame(faults[0]) if faults else ""


class Judge:
    """Ends a step's run as soon as the evidence proves that the objective is met or missed."""

    def __init__(self, objective: Objective, plan: Plan) -> None:
        self._objective, self._plan = objective, plan
        due_s = schedule(plan) / 1e9
        self._due_s = due_s[due_s >= plan.warm_up_s]
        self._looks = 0
        self._next_requests = float(LEAST_REQUESTS)
        self.verdict: Verdict | None = None

    def __call__(self, samples: Samples, elapsed_s: float) -> Stop | None:
        """Looks at the requests that had time to be answered within the limit, each time at a quarter more of them."""
        plan = self._plan
        horizon_s = elapsed_s - self._objective.limit_s - _ROWS_LATE_S
        due_s = self._due_s[self._due_s < horizon_s]
        if horizon_s < plan.warm_up_s + _LEAST_SHARE * plan.duration_s or len(due_s) < self._next_requests:
            return None
        self._looks += 1
        self._next_requests = _NEXT_LOOK * len(due_s)
        evidence = weigh(settled_requests(samples, due_s), self._objective)
        self.verdict = look(evidence, self._objective, self._looks)
        return None if self.verdict is None else Stop(at_s=elapsed_s)


def settled_requests(samples: Samples, due_s: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> Requests:
    """The requests that were due at `due_s`, sorted; one of which there is no row is not answered yet."""
    inside = (samples.scheduled_s >= due_s[0]) & (samples.scheduled_s <= due_s[-1]) if len(due_s) else slice(0, 0)
    scheduled_s = samples.scheduled_s[inside]
    latency_s = np.where(samples.ok, samples.done_s - samples.scheduled_s, math.inf)[inside]
    failed = (samples.status != OK)[inside]
    missing_s = due_s[~np.isin(due_s, scheduled_s)]
    order = np.argsort(np.concatenate([scheduled_s, missing_s]), kind="stable")
    return Requests(
        np.concatenate([scheduled_s, missing_s])[order],
        np.concatenate([latency_s, np.full(len(missing_s), math.inf)])[order],
        np.concatenate([failed, np.zeros(len(missing_s), np.bool_)])[order],
    )


def _estimate_per_s(quest: Quest, runs: _Runs) -> float:
    """Where to start: a share of what a closed loop reaches, measured once."""
    plan = msgspec.structs.replace(
        step_plan(quest, 0.0, 0),
        arrivals="closed",
        users=min(_ESTIMATE_USERS, quest.plan.max_in_flight),
        duration_s=min(_ESTIMATE_S, quest.plan.duration_s),
        warm_up_s=min(_ESTIMATE_WARM_UP_S, quest.plan.warm_up_s),
    )
    recorded = runs.take("looking for a start", plan, "estimate", None)
    answered = int(recorded.samples.ok.sum())
    if not answered:
        raise UsageError("the closed loop that looks for a start got no good answer; look into the server's log")
    return float(max(1.0, _START_SHARE * answered / recorded.run.window.duration_s))


def _found(quest: Quest, end: End, steps: Sequence[StepRun], points: Sequence[StepRun]) -> Found:
    every = [one.step for one in steps]
    bracket = bracket_of(every)
    ends = (bracket.passed_per_s, bracket.failed_per_s)
    return Found(
        end=end,
        why=_why(quest, end, steps, *ends),
        passed_per_s=ends[0],
        failed_per_s=ends[1],
        confirmed=all(is_confirmed(every, rate) for rate in ends),
        steps=tuple(steps),
        points=tuple(points),
    )


def _why(quest: Quest, end: End, steps: Sequence[StepRun], passed_per_s: float, failed_per_s: float) -> str:
    match end:
        case "found":
            return "two runs of each end say so"
        case "nothing passes" | "runs too short":
            lower = "" if end == "nothing passes" else _lower_rates(quest)
            return f"even {failed_per_s:g}/s does not meet the objective{lower}"
        case "nothing fails":
            return f"{passed_per_s:g}/s is the most that mlserve offers, and meets the objective"
        case "undecided":
            return "runs of the same rate contradict one another; measure for longer with --duration"
    blame = steps[-1].blame
    if not blame.startswith(_GENERATOR_CHECKS):
        return f"no run at {steps[-1].rate_per_s:g}/s can be believed: {blame}"
    offered = max([one.rate_per_s for one in steps if not one.blame], default=0.0)
    most = f"more than {offered:g}/s" if offered else f"{steps[-1].rate_per_s:g}/s"
    return f"the generator cannot offer {most}: use --workers ({blame})"


def _lower_rates(quest: Quest) -> str:
    needed, name = minimum_samples(quest.objective.percentile), quest.objective.name
    return (
        f", and runs of {quest.plan.duration_s:g} s at a lower rate are too short to tell: {name} takes {needed:,} "
        "requests; measure for longer with --duration"
    )


def _blame(check: Check) -> str:
    return f"{check.name}: {check.found}, limit: {check.limit}"
