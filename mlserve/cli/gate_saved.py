"""`mlserve gate` of runs that were made before: against each other, against another day's, against a history."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import typer

from mlserve.cli.gate_output import EXIT_CODES, Outputs, tell
from mlserve.cli.terminal import err
from mlserve.errors import RunFileError, UsageError

if TYPE_CHECKING:
    from mlserve.report.gating.calibration import GateCalibration
    from mlserve.report.gating.limits import Limit
    from mlserve.report.gating.result import GateResult
    from mlserve.report.measurement import Measurement, Recorded

__all__ = ["OtherDay", "Record", "append_runs", "gate_against", "gate_saved", "holds_runs"]

# What says how much sessions differ, unless another is named.
_HISTORY = Path("reports/history")


class OtherDay(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured on another day: `where` it is, the `history` beside it, and what of the machines `may_differ`
    (fields of a fingerprint, and packages).
    """

    where: Path
    history: Path | None = None
    may_differ: tuple[str, ...] = ()


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The history that runs are added to, None for none, and the commit they are called by."""

    folder: Path | None = None
    commit: str = ""


def holds_runs(where: str) -> bool:
    """Whether this is a run's folder, or one with runs in it."""
    from mlserve.runs.run import find_runs

    try:
        return bool(find_runs(Path(where)))
    except (RunFileError, OSError):
        return False


def _is_history(path: Path) -> bool:
    """Whether this is a history: a folder of lines by month."""
    return any(path.glob("*.jsonl"))


def gate_saved(
    base: str,
    candidate: str,
    limits: "tuple[Limit, ...]",
    told: Outputs,
    calibration: "GateCalibration | None",
    *,
    ignore_differences: bool,
) -> None:
    """Two folders of runs, held against each other. `calibration` is the machine's."""
    from mlserve.report.gating.decision import decide

    before, after = _measurement(base, "baseline"), _measurement(candidate, "candidate")
    result = decide(before, after, limits, calibration=calibration, ignore_differences=ignore_differences)
    _end(result, base, candidate, told)


def gate_against(
    runs: str,
    other: OtherDay,
    limits: "tuple[Limit, ...]",
    told: Outputs,
    calibration: "GateCalibration | None",
    record: Record,
) -> None:
    """One folder of runs against a history, or against runs of another session."""
    from mlserve.report.gating.fingerprint import check_names
    from mlserve.report.gating.history import decide_by_history, read_history

    check_names(other.may_differ, "--may-differ")
    _check_history(other.where)
    candidate = _measurement(runs, "candidate")
    if _is_history(other.where):
        if other.history is not None:
            raise UsageError(f"--against {other.where} is a history itself; leave out --history {other.history}")
        result = decide_by_history(
            read_history(other.where), candidate, limits, ignoring=("mlserve", *other.may_differ)
        )
    else:
        result = _against_runs(other, candidate, limits, calibration)
    if record.folder is not None and result.verdict != "fail":
        if candidate.valid:
            _append(candidate, record.folder, record.commit)
        else:
            _say(f"not added to {record.folder}: no run of {runs} is VALID; measure again")
    _end(result, str(other.where), runs, told)


def append_runs(runs: str, record: Record) -> None:
    """Adds one folder of runs to the history, without a verdict."""
    assert record.folder is not None
    _append(_measurement(runs, "candidate"), record.folder, record.commit)


def _append(measurement: "Measurement", folder: Path, commit: str) -> None:
    from mlserve.report.gating.history import append_history

    try:
        kept = append_history(folder, measurement, commit=commit)
    except OSError as error:
        raise UsageError(f"--append {folder} cannot be written: {error.strerror}; choose another folder") from error
    _say(f"added to {kept}" if kept else f"{folder} has these runs already; they count once")


def _say(text: str) -> None:
    err.print(text, highlight=False, markup=False, soft_wrap=True)


def _check_history(path: Path) -> None:
    """Raises UsageError where there is neither a history nor a run."""
    if not path.exists():
        raise UsageError(
            f"there is no {path}; begin a history with: mlserve gate RUNS --append {shlex.quote(str(path))}, or give "
            "the runs of another day"
        )


def _against_runs(
    other: OtherDay, candidate: "Measurement", limits: "tuple[Limit, ...]", calibration: "GateCalibration | None"
) -> "GateResult":
    from mlserve.report.gating.absolute import decide_against
    from mlserve.report.gating.history import read_history
    from mlserve.report.measurement import read_runs

    before = _matching(read_runs(_runs_of(other.where)), candidate)
    history = read_history(other.history or _HISTORY) if other.history or _is_history(_HISTORY) else []
    return decide_against(
        before,
        candidate,
        limits,
        calibration=calibration,
        history=history,
        ignoring=other.may_differ,
    )


def _matching(recorded: "list[Recorded]", candidate: "Measurement") -> "Measurement":
    """Of the measurements that a report has, the one that the candidate repeats: the same model under the same load.

    Raises UsageError where there is none, or more than one.
    """
    from mlserve.report.conditions import LOAD_FIELDS, SERVER_FIELDS, differences
    from mlserve.report.gating.likeness import one_measurement
    from mlserve.report.measurement import group

    measurements = group(recorded)
    same_model = [one for one in measurements if _named(one) == _named(candidate)] or measurements
    for fields in (LOAD_FIELDS, (*LOAD_FIELDS, *SERVER_FIELDS)):
        found = [one for one in same_model if not differences(one.conditions, candidate.conditions, fields)]
        if len(found) == 1:
            return found[0]
    return one_measurement(recorded, "baseline")


def _named(measurement: "Measurement") -> tuple[str, str]:
    return measurement.model.name, measurement.model.variant


def _runs_of(against: Path) -> list[Path]:
    """The folders of runs that this means: itself, or those that a file such as a report.json names."""
    from mlserve.runs.naming import named_runs

    return [against] if against.is_dir() else named_runs(against)


def _measurement(where: str, side: str) -> "Measurement":
    from mlserve.report.gating.likeness import one_measurement
    from mlserve.report.measurement import read_runs

    return one_measurement(read_runs([Path(where)]), side)


def _end(result: "GateResult", base: str, candidate: str, told: Outputs) -> None:
    tell(result, base, candidate, told)
    raise typer.Exit(EXIT_CODES[result.verdict])
