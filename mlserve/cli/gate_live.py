"""`mlserve gate` of two servers: what is seen while they are measured in turn."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mlserve.cli.bench_sweep import Line, many_runs
from mlserve.cli.gate_output import EXIT_CODES, Outputs, check_writable, tell
from mlserve.cli.terminal import err, out, print_json
from mlserve.errors import UsageError
from mlserve.units import format_duration

if TYPE_CHECKING:
    from mlserve.bench.progress import Progress as Moment
    from mlserve.report.gating.calibration import GateCalibration
    from mlserve.report.gating.result import GateResult
    from mlserve.report.measurement import Recorded
    from mlserve.tuning.gating.asked import LiveGate
    from mlserve.tuning.gating.pairs import Course
    from mlserve.tuning.gating.servers import OpensSide
    from mlserve.tuning.gating.side import Side
    from mlserve.tuning.gating.turn import Turn
    from mlserve.tuning.opening import Source, SubjectOf

__all__ = ["calibrate_gate", "gate_live", "opens_side"]

# A gate looks for the first time after so many pairs.
_FEWEST_RUNS = 4


def gate_live(
    asked: "LiveGate",
    source: "Source",
    directory: Path,
    budget_s: float,
    told: Outputs,
    calibration: "GateCalibration | None",
) -> None:
    """Measures into `directory`, tells of it, and exits as the verdict says. `calibration` is the machine's."""
    from mlserve.tuning.gating.live import run_gate

    began_s = time.monotonic()
    with many_runs(directory) as line:
        result = run_gate(asked, directory, opens_side(source), _Watching(line), budget_s, calibration=calibration)
    took_s = time.monotonic() - began_s
    tell(result, asked.base.name, asked.candidate.name, told, took_s=took_s)
    if took_s > budget_s and not result.settled and len(result.candidate_runs) < _FEWEST_RUNS:
        err.print(
            f"--budget {format_duration(budget_s)} is too short: a verdict takes {_FEWEST_RUNS} pairs of runs at the "
            f"least, and {len(result.candidate_runs)} took {format_duration(took_s)}; the same command with "
            f"--out {directory} and a longer --budget goes on",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    err.print(f"runs  {directory}", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(EXIT_CODES[result.verdict])


def calibrate_gate(
    asked: "LiveGate", source: "Source", directory: Path, budget_s: float, times: int, file: Path, *, json: bool
) -> None:
    """Gates a server against itself, and writes to `file` how often that raised an alarm."""
    from mlserve.report.gating.calibration import calibrate, write_calibration
    from mlserve.runs.machine import read_machine
    from mlserve.tuning.gating.calibrating import calibrated_of, gate_against_itself
    from mlserve.tuning.gating.live import run_gate

    if not 2 <= times <= 1000:
        raise UsageError(f"--times {times} is out of range; give a whole number from 2 to 1000")
    check_writable("--calibration", file)
    with many_runs(directory) as line:
        watching, opens = _Watching(line), opens_side(source)

        def run(gate: "LiveGate", folder: Path) -> "GateResult":
            result = run_gate(gate, folder, opens, watching, budget_s)
            line.say(f"{folder.name} of {times}: {result.verdict}", "red" if result.verdict == "fail" else "")
            return result

        results = gate_against_itself(asked, times, directory, run)
    decided = [result for result in results if result.settled]
    if len(decided) < times:
        err.print(
            f"{times - len(decided)} of {times} gates were not decided in their time, and do not count; see --budget",
            highlight=False,
            soft_wrap=True,
        )
    calibration = calibrate(decided, read_machine(), calibrated_of(asked, decided))
    write_calibration(file, calibration)
    if json:
        print_json(calibration)
    else:
        out.print(calibration.false_alarms.words, highlight=False, markup=False, soft_wrap=True)
        out.print(f"kept in {file}; every gate on this machine tells it", highlight=False, markup=False, soft_wrap=True)


def opens_side(source: "Source") -> "OpensSide":
    """Opens either side: the server of its URL, or one of ours for its model."""
    import msgspec

    from mlserve.tuning.opening import opener

    def opened(side: "Side") -> "AbstractContextManager[SubjectOf]":
        opens = opener(msgspec.structs.replace(source, store=Path(side.store)))
        return opens(side.contender, side.options)

    return opened


class _Watching:
    """What a gate tells, on the terminal."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._told = ""

    def begins(self, sides: "Sequence[Side]", turn: "Turn", course: "Course") -> None:
        purpose = "confirming, " if turn.fresh else ""
        names = " and ".join(dict.fromkeys(side.name for side in sides)) + (" in turns" if len(sides) > 1 else "")
        left = f"{format_duration(max(course.budget_s - course.spent_s, 1.0))} left"
        self._line.show(f"{purpose}pair {turn.number}, {left}: {names}", round(course.spent_s), round(course.budget_s))

    def moves(self, progress: "Moment") -> None:
        self._line.moves(progress)

    def ends(self, side: "Side", turn: "Turn", recorded: "Recorded") -> None:
        for check in recorded.run.certificate.faults[:1]:
            self._line.say(
                f"{recorded.directory.name} ({side.name}) is INVALID: {check.name}: {check.found}, "
                f"limit: {check.limit}",
                "yellow",
            )

    def judged(self, result: "GateResult", course: "Course") -> None:
        """The intervals as they narrow."""
        from mlserve.report.render.gate_figures import gate_figures

        figures = gate_figures(result, "base", "candidate")
        pairs = f"{course.pairs} pair{'' if course.pairs == 1 else 's'}" + (
            f" and {course.fresh_pairs} fresh ones" if course.fresh_pairs else ""
        )
        said = "; ".join(
            f"{row.metric} {row.change} ({row.interval}) of {row.limit}: {row.verdict}" for row in figures.rows
        )
        if said != self._told:
            self._line.say(f"{pairs}: {said}")
        self._told = said
        if result.suspected and not course.fresh_pairs:
            self._line.say(f"{', '.join(result.suspected)}: worse, it seems; fresh runs are to confirm it", "yellow")
