"""The pairs of a gate's runs: taken in turn or one after the other, again where one is INVALID, and within the time."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Protocol

import msgspec

from mlserve.bench.progress import Progress
from mlserve.report.gating.blame import does_not_work, is_spoilt, machine_faults
from mlserve.report.gating.evidence import Pair
from mlserve.report.gating.result import GateResult
from mlserve.report.measurement import Recorded
from mlserve.runs.load import Plan
from mlserve.tuning.calibrated import Runs, SideLoad
from mlserve.tuning.campaign import is_finished, make_room
from mlserve.tuning.gating.asked import LiveGate
from mlserve.tuning.gating.highest_rate import RateSearch
from mlserve.tuning.gating.servers import Servers, SideBroke
from mlserve.tuning.gating.side import Side
from mlserve.tuning.gating.turn import SIDES, Turn, pair_plan
from mlserve.tuning.measuring import read_recorded
from mlserve.tuning.slots import shared_plan

__all__ = ["ENOUGH_BREAKS", "Budget", "Course", "Pairs", "Watcher"]

ENOUGH_BREAKS = 2
"""A candidate that does not work has to show it twice, by servers that were started one after the other."""

# Until a pair has shown it: starting server and generators, calibrating, and the last answers.
_OVERHEAD_S = 6.0
_MOST_ATTEMPTS = 5


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


class Budget:
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


class Pairs:
    """Takes pairs of runs into the folder of a gate; those that are finished are read.

    `spoilt`: the last pair was INVALID as often as it was taken. `measured`: a run of it was made now, and not read.
    `breaks` says of each time that the candidate did not work since it last did, and the base did, how; the last time
    is `unconfirmed` until it was tried once more. `hiccups` are those after which it worked again.
    """

    def __init__(
        self,
        asked: LiveGate,
        directory: Path,
        servers: Servers,
        watcher: Watcher,
        runs: Runs,
    ) -> None:
        self._asked, self._directory, self._servers = asked, directory, servers
        self._watcher, self._runs = watcher, runs
        self._search = self._rate_search()
        self._base_works = False
        self.spoilt = self.measured = self.unconfirmed = False
        self.breaks: list[str] = []
        self.hiccups: list[str] = []

    def take(self, turn: Turn, course: Course, budget: Budget) -> Pair | None:
        """One pair, taken again while it is INVALID and there is time; None where the candidate broke too often.

        Attempts of an earlier call that are INVALID are passed over, and do not count among those of this one.
        """
        self.measured, tries = False, 0
        for attempt in count(1):
            is_known = is_finished(self._directory / turn.folder(turn.order[0], attempt))
            last = not is_known and (tries + 1 >= _MOST_ATTEMPTS or budget.is_out)
            tries += not is_known
            pair = self._attempt(turn, attempt, course, last=last)
            if len(self.breaks) >= ENOUGH_BREAKS:
                return pair
            self.spoilt = pair is None or is_spoilt(pair, self._asked.limits)
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
        if how:
            self.unconfirmed = True
            self.breaks.append(f"candidate ({self._asked.candidate.name}): {how}")
            self._servers.restart()
        else:
            self._works()
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
            raised = self._runs.at_once(loads, self._asked.slot_s, self._watcher.moves)
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

    def _works(self) -> None:
        """Both sides did what was asked of them: another start has not confirmed what broke the candidate before."""
        self.hiccups += self.breaks
        self.breaks.clear()
        self.unconfirmed = False

    def _with_rates(self, pair: Pair, turn: Turn, search: RateSearch) -> Pair | None:
        """`pair` with the highest rates of both; None where the candidate broke too often for them."""
        while len(self.breaks) < ENOUGH_BREAKS:
            try:
                found = {side: search.highest(side, turn) for side in turn.order}
            except SideBroke as error:
                self._broke(error)
                continue
            self._works()
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
            self._runs.one(subject_of, plan, folder, side.name, self._watcher.moves, None)
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
            measure=self._runs.one,
        )
