"""The live gate: base and candidate measured in turn, A B B A, until the limits are decided or the time is up.

Every run is kept as it comes; the same gate in the same folder goes on where it stopped. What looks like a regression
is not believed before servers that were started afresh, under schedules of their own, have shown it again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from mlserve.bench.progress import Progress
from mlserve.errors import UsageError
from mlserve.report.gating.calibration import GateCalibration
from mlserve.report.gating.decision import decide_pairs
from mlserve.report.gating.evidence import Pair
from mlserve.report.gating.limits import Limit
from mlserve.report.gating.result import GateResult
from mlserve.report.measurement import Recorded
from mlserve.runs.load import Plan
from mlserve.tuning.campaign import is_finished, make_room, open_campaign
from mlserve.tuning.evidence import Objective
from mlserve.tuning.gating.highest_rate import RateSearch
from mlserve.tuning.gating.servers import OpensSide, Servers
from mlserve.tuning.gating.side import Side
from mlserve.tuning.gating.turn import Turn, pair_plan
from mlserve.tuning.measuring import Measure, measure_run, read_recorded

__all__ = ["GATE_FILE", "Course", "LiveGate", "Watcher", "check_gate", "run_gate"]

GATE_FILE = "gate.json"
# 1: first format
FORMAT_VERSION = 1

# Until a pair has shown it: starting server and generators, calibrating, and the last answers.
_OVERHEAD_S = 6.0
_MOST_ATTEMPTS = 3


class LiveGate(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, as `gate.json` keeps it. `objective` and `resolution` are those of the search for the highest
    rate, where that is limited. With `keep_servers` they stay up from run to run.
    """

    format_version: int = FORMAT_VERSION
    base: Side
    candidate: Side
    plan: Plan
    limits: tuple[Limit, ...]
    objective: Objective | None = None
    resolution: float = 0.05
    keep_servers: bool = False


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """How far a gate is: pairs of runs, those that are to confirm a suspicion apart, and the time."""

    pairs: int
    fresh_pairs: int
    spent_s: float
    budget_s: float


class Watcher(Protocol):
    """Told of everything as it comes."""

    def begins(self, side: Side, turn: Turn, course: Course) -> None: ...

    def moves(self, progress: Progress) -> None: ...

    def ends(self, side: Side, turn: Turn, recorded: Recorded) -> None: ...

    def judged(self, result: GateResult, course: Course) -> None: ...


def check_gate(asked: LiveGate) -> None:
    """Raises UsageError for what contradicts itself."""
    metrics = {limit.metric for limit in asked.limits}
    if "max_rate" in metrics and asked.objective is None:
        raise UsageError("max_rate is the highest rate that meets an objective; give it with --slo p99=50ms")
    if "max_rate" in metrics and asked.plan.closed:
        raise UsageError("max_rate is sought with an open loop; leave out --users, or the limit on max_rate")
    if "start_up" in metrics and asked.keep_servers:
        raise UsageError(
            "start_up needs a server that starts for every run; leave out --keep-servers, or the limit on start_up"
        )
    running = [side.name for side in (asked.base, asked.candidate) if side.options is None]
    if "start_up" in metrics and running:
        raise UsageError(f"start_up of {running[0]} is not known, for it runs already; give a model, or no such limit")


def run_gate(
    asked: LiveGate,
    directory: Path,
    opens: OpensSide,
    watcher: Watcher,
    budget_s: float,
    *,
    calibration: GateCalibration | None = None,
    measure: Measure = measure_run,
    now_s: Callable[[], float] = time.monotonic,
) -> GateResult:
    """Measures into `directory` what is not there yet, and decides.

    It ends when the limits are decided, when another pair would not fit into `budget_s` seconds of this call, or when
    a pair stays INVALID however often it is taken. Raises UsageError where the folder cannot be used, BenchError where
    a server does not start or a run breaks down; all finished runs are kept.
    """
    check_gate(asked)
    open_campaign(directory, GATE_FILE, asked)
    sides = {"base": asked.base, "candidate": asked.candidate}
    with Servers(opens, sides, keep=asked.keep_servers) as servers:
        pairs = _Pairs(asked, directory, servers, watcher, measure)
        budget = _Budget(asked.plan, budget_s, now_s)
        first: list[Pair] = []
        fresh: list[Pair] = []
        result: GateResult | None = None
        while result is None or not (result.settled or budget.is_out or pairs.spoilt):
            confirming = result is not None and bool(result.suspected)
            taken = fresh if confirming else first
            if confirming and not fresh:
                servers.restart()
            turn = Turn(number=len(taken) + 1, fresh=confirming)
            taken.append(pairs.take(turn, budget.course(first, fresh), budget))
            budget.pair_ended()
            result = decide_pairs(first, asked.limits, fresh=fresh, calibration=calibration)
            watcher.judged(result, budget.course(first, fresh))
    return result


class _Budget:
    """The time that is left; a pair is expected to take as long as the longest so far."""

    def __init__(self, plan: Plan, budget_s: float, now_s: Callable[[], float]) -> None:
        self._budget_s, self._now_s = budget_s, now_s
        self._began_s = self._pair_s = now_s()
        self._longest_s = 2 * (plan.warm_up_s + plan.duration_s + _OVERHEAD_S)
        self._measured = False

    def pair_ended(self) -> None:
        """One pair is over, measured or read again."""
        now_s = self._now_s()
        took_s, self._pair_s = now_s - self._pair_s, now_s
        self._longest_s = max(self._longest_s, took_s) if self._measured else took_s
        self._measured = True

    @property
    def is_out(self) -> bool:
        """Whether another pair would not fit."""
        return self._now_s() - self._began_s + self._longest_s > self._budget_s

    def course(self, first: Sequence[Pair], fresh: Sequence[Pair]) -> Course:
        """How far the gate is."""
        spent_s = self._now_s() - self._began_s
        return Course(pairs=len(first), fresh_pairs=len(fresh), spent_s=spent_s, budget_s=self._budget_s)


class _Pairs:
    """Takes pairs of runs into the folder of a gate; those that are finished are read. `spoilt`: a pair was INVALID
    as often as it was taken.
    """

    def __init__(self, asked: LiveGate, directory: Path, servers: Servers, watcher: Watcher, measure: Measure) -> None:
        self._asked, self._directory, self._servers = asked, directory, servers
        self._watcher, self._measure = watcher, measure
        self._search = self._rate_search()
        self.spoilt = False

    def take(self, turn: Turn, course: Course, budget: _Budget) -> Pair:
        """One pair, taken again while it is INVALID and there is time."""
        for attempt in range(1, _MOST_ATTEMPTS + 1):
            last = attempt == _MOST_ATTEMPTS or budget.is_out
            runs = self._attempt(turn, attempt, course, last=last)
            self.spoilt = not _all_valid(runs)
            if last or not self.spoilt:
                break
        rates = None
        if self._search is not None and not self.spoilt:
            found = {side: self._search.highest(side, turn.folder(side), turn.number) for side in turn.order}
            rates = found["base"], found["candidate"]
        return Pair(baseline=runs["base"], candidate=runs["candidate"], max_rates=rates)

    def _attempt(self, turn: Turn, attempt: int, course: Course, *, last: bool) -> dict[str, Recorded]:
        """Both runs of a pair; only the first where that is INVALID, unless this is the last attempt."""
        runs: dict[str, Recorded] = {}
        plan = pair_plan(self._asked.plan, turn, attempt)
        for side in turn.order:
            if last or _all_valid(runs):
                runs[side] = self._run(side, turn, plan, attempt, course)
        return runs

    def _run(self, name: str, turn: Turn, plan: Plan, attempt: int, course: Course) -> Recorded:
        folder = self._directory / turn.folder(name, attempt)
        if is_finished(folder):
            return read_recorded(folder)
        side = self._side(name)
        self._watcher.begins(side, turn, course)
        with self._servers.asked(name) as subject_of:
            make_room(folder)
            self._measure(subject_of, plan, folder, side.name, self._watcher.moves, None)
        recorded = read_recorded(folder)
        self._watcher.ends(side, turn, recorded)
        return recorded

    def _side(self, name: str) -> Side:
        return self._asked.base if name == "base" else self._asked.candidate

    def _rate_search(self) -> RateSearch | None:
        asked = self._asked
        if asked.objective is None or not any(limit.metric == "max_rate" for limit in asked.limits):
            return None
        return RateSearch(
            sides={"base": asked.base, "candidate": asked.candidate},
            plan=asked.plan,
            objective=asked.objective,
            resolution=asked.resolution,
            directory=self._directory,
            asked=self._servers.asked,
            on_progress=self._watcher.moves,
            measure=self._measure,
        )


def _all_valid(runs: Mapping[str, Recorded]) -> bool:
    return all(one.run.certificate.valid for one in runs.values())
