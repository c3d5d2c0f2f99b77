"""A sweep: every cell of a grid, in rounds, each run kept as it comes. An interrupted one goes on where it stopped."""

import time
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Protocol

import msgspec

from mlserve.bench.progress import Progress
from mlserve.errors import MlserveError
from mlserve.report.conditions import conditions_of
from mlserve.report.measurement import Measurement, Recorded
from mlserve.report.summary import Summary, summarize
from mlserve.tuning.campaign import is_finished, make_room, open_campaign
from mlserve.tuning.grid import Cell, Sweep, Turn, cells_of, turns_of
from mlserve.tuning.measuring import Measure, measure_run, read_recorded
from mlserve.tuning.opening import Opens, SubjectOf

__all__ = ["FAILURE_FILE", "SWEEP_FILE", "CellResult", "Course", "Outcome", "Watcher", "run_sweep"]

SWEEP_FILE = "sweep.json"
FAILURE_FILE = "failure.json"
# Until a run has shown it: starting the generators, calibrating, and the last answers.
_OVERHEAD_S = 4.0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one turn: a finished run in `directory`, or the reason why there is none. `again`: it was there."""

    turn: Turn
    directory: Path
    reason: str = ""
    again: bool = False


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    """A cell's runs taken together; without any, `summary` is None and `reason` says why.

    The figures are those of its VALID runs, and of all where none is (`valid` is then false).
    """

    cell: Cell
    outcomes: tuple[Outcome, ...]
    runs: tuple[Recorded, ...]
    summary: Summary | None
    valid: bool
    reason: str


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """How far a sweep is: turns of which something has come, of all, and how long the others may take."""

    done: int
    total: int
    left_s: float


class Watcher(Protocol):
    """Told of everything as it comes."""

    def begins(self, turn: Turn, course: Course) -> None: ...

    def moves(self, turn: Turn, progress: Progress) -> None: ...

    def ends(self, outcome: Outcome, recorded: Recorded | None, course: Course) -> None: ...


def run_sweep(
    sweep: Sweep, directory: Path, opens: Opens, watcher: Watcher, measure: Measure = measure_run
) -> tuple[CellResult, ...]:
    """Runs what of `sweep` is not yet in `directory`, and returns every cell's results.

    A cell that fails, by its server or by its run, is left out of the later rounds; a later sweep in the same folder
    tries it again. Raises UsageError where the grid or the folder cannot be used.
    """
    cells = cells_of(sweep)
    turns = turns_of(sweep, cells)
    open_campaign(directory, SWEEP_FILE, sweep)
    sweeping = _Sweeping(directory, watcher, measure, turns)
    for _, group in groupby(sweeping.todo, key=lambda turn: turn.server):
        sweeping.run_group(list(group), opens)
    return tuple(_result(cell, sweeping.outcomes(cell)) for cell in cells)


class _Sweeping:
    """A sweep under way: what has come of its turns, and how long the others may take."""

    def __init__(self, directory: Path, watcher: Watcher, measure: Measure, turns: Sequence[Turn]) -> None:
        self._directory, self._watcher, self._measure, self._turns = directory, watcher, measure, turns
        self._outcomes = {
            turn.folder: Outcome(turn=turn, directory=directory / turn.folder, again=True)
            for turn in turns
            if is_finished(directory / turn.folder)
        }
        self._spent_s = self._planned_s = 0.0
        self._runs = 0

    @property
    def todo(self) -> list[Turn]:
        """The turns of which nothing has come yet."""
        return [turn for turn in self._turns if turn.folder not in self._outcomes]

    def outcomes(self, cell: Cell) -> list[Outcome]:
        """What has come of a cell."""
        found = [self._outcomes.get(turn.folder) for turn in self._turns if turn.cell is cell]
        return [outcome for outcome in found if outcome is not None]

    def run_group(self, turns: Sequence[Turn], opens: Opens) -> None:
        """Takes `turns`, which one server answers. What goes wrong with it is the outcome of each."""
        left = [turn for turn in turns if turn.folder not in self._outcomes]
        if not left:
            return
        try:
            with opens(*left[0].server) as subject_of:
                while left:
                    turn = left.pop(0)
                    if turn.folder not in self._outcomes:  # its cell may have failed in the round before
                        self._take(turn, subject_of)
        except MlserveError as error:  # the server's: those of a run are the run's outcome
            for turn in left:
                if turn.folder not in self._outcomes:
                    self._fail(turn, str(error))

    def _take(self, turn: Turn, subject_of: SubjectOf) -> None:
        self._watcher.begins(turn, self._course())
        folder = self._directory / turn.folder
        began_s = time.monotonic()
        try:
            (folder / FAILURE_FILE).unlink(missing_ok=True)  # of an earlier try
            make_room(folder)
            on_progress = partial(self._watcher.moves, turn)
            self._measure(subject_of, turn.plan, folder, turn.cell.label, on_progress, None)
        except MlserveError as error:
            self._fail(turn, str(error))
            return
        self._runs += 1
        self._spent_s += time.monotonic() - began_s
        self._planned_s += turn.plan.warm_up_s + turn.plan.duration_s
        outcome = Outcome(turn=turn, directory=folder)
        self._outcomes[turn.folder] = outcome
        self._watcher.ends(outcome, read_recorded(folder), self._course())

    def _fail(self, turn: Turn, reason: str) -> None:
        """That is what comes of this turn, and of the cell's others that are still to come."""
        folder = self._directory / turn.folder
        folder.mkdir(exist_ok=True)
        (folder / FAILURE_FILE).write_bytes(msgspec.json.encode({"reason": reason}) + b"\n")
        outcome = Outcome(turn=turn, directory=folder, reason=reason)
        for other in self.todo:
            if other.cell is turn.cell:
                self._outcomes[other.folder] = msgspec.structs.replace(outcome, turn=other)
        self._watcher.ends(outcome, None, self._course())

    def _course(self) -> Course:
        todo = self.todo
        overhead_s = (self._spent_s - self._planned_s) / self._runs if self._runs else _OVERHEAD_S
        left_s = sum(turn.plan.warm_up_s + turn.plan.duration_s + max(overhead_s, 0.0) for turn in todo)
        return Course(done=len(self._turns) - len(todo), total=len(self._turns), left_s=left_s)


def _result(cell: Cell, outcomes: Sequence[Outcome]) -> CellResult:
    runs = tuple(read_recorded(outcome.directory) for outcome in outcomes if not outcome.reason)
    reason = next((outcome.reason for outcome in outcomes if outcome.reason), "")
    if not runs:
        return CellResult(
            cell=cell, outcomes=tuple(outcomes), runs=(), summary=None, valid=False, reason=reason or "it was not run"
        )
    measurement = Measurement(runs[0].run.model, conditions_of(runs[0].run), runs)
    return CellResult(
        cell=cell,
        outcomes=tuple(outcomes),
        runs=runs,
        summary=summarize(measurement.believed),
        valid=measurement.valid,
        reason=reason,
    )
