"""The live gate: base and candidate measured in turn, A B B A, until the limits are decided or the time is up. Where
their load allows it, both at once in short turns: a machine is not the same for long.

Every run is kept as it comes; the same gate in the same folder goes on where it stopped. What looks like a regression
is not believed before servers that were started afresh, under schedules of their own, have shown it again. Neither is
a candidate that does not work at all, where the base does, before it was started once more.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Protocol

import msgspec

from mlserve.bench.progress import Progress
from mlserve.errors import UsageError
from mlserve.report.gating.blame import does_not_work, is_spoilt, machine_faults
from mlserve.report.gating.calibration import GateCalibration
from mlserve.report.gating.decision import broken, decide_pairs
from mlserve.report.gating.evidence import Pair
from mlserve.report.gating.figures import KeptFigures
from mlserve.report.gating.limits import Limit
from mlserve.report.gating.result import GateResult
from mlserve.report.measurement import Recorded
from mlserve.runs.load import Plan
from mlserve.stats import minimum_samples
from mlserve.tuning.campaign import is_finished, make_room, open_campaign
from mlserve.tuning.evidence import Objective
from mlserve.tuning.gating.calibrated import CalibratedRuns, MeasureBoth, SideLoad
from mlserve.tuning.gating.highest_rate import RateSearch
from mlserve.tuning.gating.servers import OpensSide, Servers, SideBroke
from mlserve.tuning.gating.side import Side
from mlserve.tuning.gating.turn import SIDES, Turn, pair_plan, shared_plan
from mlserve.tuning.measuring import Measure, read_recorded

__all__ = ["GATE_FILE", "Course", "LiveGate", "Watcher", "check_gate", "run_gate"]

GATE_FILE = "gate.json"
# 1: first format
FORMAT_VERSION = 1

# Until a pair has shown it: starting server and generators, calibrating, and the last answers.
_OVERHEAD_S = 6.0
_MOST_ATTEMPTS = 5
# A candidate that does not work has to show it twice, by servers that were started one after the other.
_ENOUGH_BREAKS = 2
# A Poisson load has more or less than it should; a run is refused only where it never could hold enough.
_LEAST_SHARE = 0.9


class LiveGate(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, as `gate.json` keeps it. `objective` and `resolution` are those of the search for the highest
    rate, where that is limited. With `keep_servers` they stay up from run to run. The runs of a pair take turns of
    `slot_s`; for 0 one is made after the other.
    """

    format_version: int = FORMAT_VERSION
    base: Side
    candidate: Side
    plan: Plan
    limits: tuple[Limit, ...]
    objective: Objective | None = None
    resolution: float = 0.05
    keep_servers: bool = False
    slot_s: float = 0.0

    @property
    def one_process_a_side(self) -> bool:
        """Whether the runs of a side all ask the same process."""
        return self.keep_servers or None in (self.base.options, self.candidate.options)


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """How far a gate is: pairs of runs, those that are to confirm a suspicion apart, and the time."""

    pairs: int
    fresh_pairs: int
    spent_s: float
    budget_s: float


class Watcher(Protocol):
    """Told of everything as it comes."""

    def begins(self, sides: Sequence[Side], turn: Turn, course: Course) -> None: ...

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
    plan = asked.plan
    enough = minimum_samples(plan.percentile)
    if not plan.closed and not plan.precision and plan.rate_per_s * plan.duration_s < _LEAST_SHARE * enough:
        raise UsageError(
            f"{plan.rate_per_s:g} requests/s for {plan.duration_s:g} s are {plan.rate_per_s * plan.duration_s:g} "
            f"requests a run, and p{100 * plan.percentile:g} takes {enough}; raise --rps or --duration, or limit a "
            "lower percentile"
        )


def run_gate(
    asked: LiveGate,
    directory: Path,
    opens: OpensSide,
    watcher: Watcher,
    budget_s: float,
    *,
    calibration: GateCalibration | None = None,
    measure: Measure | None = None,
    measure_both: MeasureBoth | None = None,
    now_s: Callable[[], float] = time.monotonic,
) -> GateResult:
    """Measures into `directory` what is not there yet, and decides.

    It ends when the limits are decided, when the candidate was found twice not to work where the base does, when
    another pair would not fit into `budget_s` seconds of this call, or when a pair stays INVALID however often this
    call takes it. `measure` takes one run, and `measure_both` those of a pair that take turns; None for real ones.
    Raises UsageError where the folder cannot be used, BenchError where the base does not start or its run breaks down;
    all finished runs are kept.
    """
    check_gate(asked)
    open_campaign(directory, GATE_FILE, asked)
    sides = {"base": asked.base, "candidate": asked.candidate}
    with Servers(opens, sides, keep=asked.keep_servers) as servers:
        real = CalibratedRuns()
        pairs = _Pairs(asked, directory, servers, watcher, measure or real, measure_both or real.both)
        budget = _Budget(asked.plan, budget_s, now_s)
        figures = KeptFigures()
        first: list[Pair] = []
        fresh: list[Pair] = []
        result: GateResult | None = None
        while result is None or pairs.unconfirmed or not (result.settled or budget.is_out or pairs.spoilt):
            confirming = result is not None and bool(result.suspected)
            taken = fresh if confirming else first
            if confirming and not fresh:
                servers.restart()
            pair = pairs.take(Turn(number=len(taken) + 1, fresh=confirming), budget.course(first, fresh), budget)
            if pair is not None:
                taken.append(pair)
                budget.pair_ended(measured=pairs.measured)
                result = decide_pairs(
                    first,
                    asked.limits,
                    fresh=fresh,
                    calibration=calibration,
                    figure=figures,
                    resolution=asked.resolution,
                    kept=asked.one_process_a_side,
                )
            if len(pairs.breaks) >= _ENOUGH_BREAKS:
                result = broken(result, pairs.breaks)
                break
            assert result is not None
            watcher.judged(result, budget.course(first, fresh))
    return result


class _Budget:
    """The time that is left; a pair is expected to take as long as the longest so far."""

    def __init__(self, plan: Plan, budget_s: float, now_s: Callable[[], float]) -> None:
        self._budget_s, self._now_s = budget_s, now_s
        self._began_s = self._pair_s = now_s()
        self._longest_s = 2 * (plan.warm_up_s + plan.duration_s + _OVERHEAD_S)
        self._measured = False

    def pair_ended(self, *, measured: bool) -> None:
        """One pair is over; one that was only read again says nothing of how long they take."""
        now_s = self._now_s()
        took_s, self._pair_s = now_s - self._pair_s, now_s
        if measured:
            self._longest_s = max(self._longest_s, took_s) if self._measured else took_s
        self._measured = self._measured or measured

    @property
    def is_out(self) -> bool:
        """Whether another pair would not fit."""
        return self._now_s() - self._began_s + self._longest_s > self._budget_s

    def course(self, first: Sequence[Pair], fresh: Sequence[Pair]) -> Course:
        """How far the gate is."""
        spent_s = self._now_s() - self._began_s
        return Course(pairs=len(first), fresh_pairs=len(fresh), spent_s=spent_s, budget_s=self._budget_s)


class _Pairs:
    """Takes pairs of runs into the folder of a gate; those that are finished are read.

    `spoilt`: the last pair was INVALID as often as it was taken. `measured`: a run of it was made now, and not read.
    `breaks` says of each time that the candidate did not work, and the base did, how; the last time is `unconfirmed`
    until it was tried once more.
    """

    def __init__(
        self,
        asked: LiveGate,
        directory: Path,
        servers: Servers,
        watcher: Watcher,
        measure: Measure,
        measure_both: MeasureBoth,
    ) -> None:
        self._asked, self._directory, self._servers = asked, directory, servers
        self._watcher, self._measure, self._measure_both = watcher, measure, measure_both
        self._search = self._rate_search()
        self._base_works = False
        self.spoilt = self.measured = self.unconfirmed = False
        self.breaks: list[str] = []

    def take(self, turn: Turn, course: Course, budget: _Budget) -> Pair | None:
        """One pair, taken again while it is INVALID and there is time; None where the candidate broke too often.

        Attempts of an earlier call that are INVALID are passed over, and do not count among those of this one.
        """
        self.measured, tries = False, 0
        for attempt in count(1):
            is_known = is_finished(self._directory / turn.folder(turn.order[0], attempt))
            last = not is_known and (tries + 1 >= _MOST_ATTEMPTS or budget.is_out)
            tries += not is_known
            pair = self._attempt(turn, attempt, course, last=last)
            if len(self.breaks) >= _ENOUGH_BREAKS:
                return pair
            self.spoilt = pair is None or is_spoilt(pair)
            if pair is not None and (not self.spoilt or (last and not self.unconfirmed)):
                return pair if self.spoilt or self._search is None else self._with_rates(pair, turn, self._search)
        raise AssertionError("attempts do not end")

    def _attempt(self, turn: Turn, attempt: int, course: Course, *, last: bool) -> Pair | None:
        """Both runs of a pair; None where the first is disturbed, unless this is the `last` attempt, and where the
        candidate breaks. The base comes first after that, to show that it works still.
        """
        plan = pair_plan(self._asked.plan, turn, attempt)
        try:
            if self._asked.slot_s:
                runs = self._both(turn, plan, attempt, course)
            else:
                runs = self._one_by_one(turn, plan, attempt, course, last=last)
        except SideBroke as error:
            self._broke(error)
            return None
        if len(runs) < len(SIDES):
            return None
        pair = Pair(baseline=runs["base"], candidate=runs["candidate"])
        how = does_not_work(pair)
        self.unconfirmed = bool(how)
        if how:
            self.breaks.append(f"candidate ({self._asked.candidate.name}): {how}")
            self._servers.restart()
        return pair

    def _one_by_one(self, turn: Turn, plan: Plan, attempt: int, course: Course, *, last: bool) -> dict[str, Recorded]:
        runs: dict[str, Recorded] = {}
        for side in SIDES if self.unconfirmed else turn.order:
            is_known = is_finished(self._directory / turn.folder(side, attempt))
            if last or is_known or not any(map(machine_faults, runs.values())):
                runs[side] = self._run(side, turn, plan, attempt, course)
                self._base_works = self._base_works or side == "base"
        return runs

    def _both(self, turn: Turn, plan: Plan, attempt: int, course: Course) -> dict[str, Recorded]:
        """Both runs of a pair, in turns; known only where both are."""
        order = SIDES if self.unconfirmed else turn.order
        folders = {side: self._directory / turn.folder(side, attempt) for side in order}
        if not all(map(is_finished, folders.values())):
            self.measured = True
            self._watcher.begins([self._side(side) for side in order], turn, course)
            self._measure_in_turns(folders, shared_plan(plan, self._asked.slot_s))
        self._base_works = True
        runs = {side: read_recorded(folder) for side, folder in folders.items()}
        if self.measured:
            for side, recorded in runs.items():
                self._watcher.ends(self._side(side), turn, recorded)
        return runs

    def _measure_in_turns(self, folders: Mapping[str, Path], plan: Plan) -> None:
        with ExitStack() as stack:
            loads = []
            for side, folder in folders.items():
                subject_of = stack.enter_context(self._servers.asked(side))
                self._base_works = self._base_works or side == "base"
                make_room(folder)
                label = self._side(side).name
                loads.append(SideLoad(subject_of=subject_of, plan=plan, folder=folder, label=label))
            raised = self._measure_both(loads, self._asked.slot_s, self._watcher.moves)
        for side, error in zip(folders, raised, strict=True):
            if error is not None:
                with self._servers.blaming(side):
                    raise error

    def _broke(self, error: SideBroke) -> None:
        """Keeps what broke the candidate, for another start to confirm. Raises `error` where it is the base's, or where
        nobody knows yet whether the base works.
        """
        self._servers.restart()
        if error.side == "base" or not self._base_works:
            raise error
        self.unconfirmed = True
        self.breaks.append(str(error))

    def _with_rates(self, pair: Pair, turn: Turn, search: RateSearch) -> Pair | None:
        """`pair` with the highest rates of both; None where the candidate broke too often for them."""
        while len(self.breaks) < _ENOUGH_BREAKS:
            try:
                found = {side: search.highest(side, turn.folder(side), turn.number) for side in turn.order}
            except SideBroke as error:
                self._broke(error)
                continue
            (base, base_at_most), (other, other_at_most) = found["base"], found["candidate"]
            return Pair(pair.baseline, pair.candidate, (base, other), (base_at_most, other_at_most))
        return None

    def _run(self, name: str, turn: Turn, plan: Plan, attempt: int, course: Course) -> Recorded:
        folder = self._directory / turn.folder(name, attempt)
        if is_finished(folder):
            return read_recorded(folder)
        self.measured = True
        side = self._side(name)
        self._watcher.begins([side], turn, course)
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
