"""What a gate was asked for, by flags and by gate.toml; flags win."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mlserve.errors import UsageError

if TYPE_CHECKING:
    from mlserve.report.gating.calibration import GateCalibration
    from mlserve.report.gating.limits import Limit

__all__ = ["Wanted", "calibration_of", "check_live", "check_saved", "highest_percentile", "limits_of", "with_file"]

_CALIBRATION = Path("reports/gate/calibration.json")
# What says something of runs that were made before, too.
_HEEDED_BY_SAVED = frozenset(
    (
        *("against", "append", "badge", "base", "calibration", "candidate", "comment", "commit", "config"),
        *("history", "ignore_differences", "json", "junit", "max_regression", "may_differ", "slo", "store"),
    )
)
_OF_ANOTHER_DAY = ("may_differ", "history")
_FLAG_OF = {"directory": "--out", "headers": "--header"}


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The flags that gate.toml can say as well. `limits` are texts, as they were written on the command line, and
    `file_limits` those of the file, where the command line has none. `against` is set for what was saved. `store_said`:
    the command line or the file says the store, which wins then over that of a production.toml.
    """

    base: str
    candidate: str
    limits: tuple[str, ...]
    slo: str
    rps: float | None
    users: int | None
    batch: str | None
    protocol: str | None
    duration: str
    warm_up: str
    seed: int
    budget_s: float
    store: Path
    store_said: bool
    against: Path | None
    calibration: Path | None
    may_differ: tuple[str, ...]
    history: Path | None
    file_limits: "tuple[Limit, ...]" = ()

    @property
    def calibration_file(self) -> Path:
        """Where this machine's false alarms are kept."""
        return self.calibration or _CALIBRATION


def with_file(wanted: Wanted, file: Path | None, given: Collection[str]) -> Wanted:
    """`wanted`, with what `file` says of that which is not `given` on the command line.

    Raises UsageError, naming the file and the key, for what cannot be read.
    """
    if file is None:
        return wanted
    from mlserve.report.gating.gate_file import read_gate_file

    read = read_gate_file(file)
    said: dict[str, Any] = {
        "base": read.base,
        "candidate": read.candidate,
        "slo": read.load.slo,
        "rps": read.load.rps,
        "users": read.load.users,
        "batch": str(read.load.rows) if read.load.rows else None,
        "protocol": read.load.protocol or None,
        "duration": read.load.duration,
        "warm_up": read.load.warm_up,
        "seed": read.load.seed,
        "budget_s": read.budget_s,
        "store": Path(read.store) if read.store else None,
        "store_said": True if read.store else None,
        "calibration": Path(read.calibration) if read.calibration else None,
        "may_differ": read.may_differ or None,
        "history": Path(read.history) if read.history and read.mode == "absolute" else None,
    }
    flag_of = {"budget_s": "budget"}
    found = {
        name: value for name, value in said.items() if value not in (None, "") and flag_of.get(name, name) not in given
    }
    if "rps" in given or "users" in given:  # one load, whichever of the two says it
        found = {name: value for name, value in found.items() if name not in ("rps", "users")}
    if not wanted.limits:
        found["file_limits"] = read.limits
    merged = msgspec.structs.replace(wanted, **found)
    if read.mode == "relative":
        return merged
    against = wanted.against or Path(read.history if read.mode == "history" else merged.base)
    if "base" in given and (read.mode == "history" or wanted.against is not None):
        # BASE is what is judged, as it is without a file; two folders are refused later.
        return msgspec.structs.replace(merged, candidate=wanted.candidate, against=against)
    return msgspec.structs.replace(merged, base=merged.candidate, candidate="", against=against)


def limits_of(wanted: Wanted) -> "tuple[Limit, ...]":
    """The limits of the command line, else those of the file, and the objective as one of them.

    Raises UsageError for none, for what cannot be read, and for a bound and an objective that contradict each other.
    """
    from mlserve.report.gating.limits import parse_gate_limits

    limits = wanted.file_limits
    if wanted.limits or not (limits or wanted.slo):
        limits = parse_gate_limits(wanted.limits)
    if not wanted.slo:
        return limits
    objective = _objective_limit(wanted.slo)
    stated = next((limit for limit in limits if limit.key == objective.key), None)
    if stated is None:
        return (*limits, objective)
    if stated != objective:
        raise UsageError(f"--slo {wanted.slo} and the limit {stated.text} contradict each other; give one of them")
    return limits


def _objective_limit(slo: str) -> "Limit":
    """The objective as a bound of the candidate. Raises UsageError for any other form than `p99=50ms`."""
    from mlserve.report.gating.limits import parse_gate_limits
    from mlserve.tuning.evidence import parse_slo

    parse_slo(slo)
    (limit,) = parse_gate_limits([slo.replace("=", "<=", 1)], "--slo")
    return limit


def highest_percentile(limits: Sequence["Limit"]) -> str:
    """The one that takes the most requests to be known, which every run must hold; p50 at least."""
    return max([(0.5, "p50"), *((limit.q, limit.metric) for limit in limits if limit.q is not None)])[1]


def calibration_of(wanted: Wanted) -> "GateCalibration | None":
    """What is known of this machine's false alarms; None where nobody has calibrated it.

    Raises UsageError for a file that cannot be read, and for one that was named and is not there.
    """
    from mlserve.report.gating.calibration import read_calibration

    file = wanted.calibration_file
    return read_calibration(file) if wanted.calibration is not None or file.is_file() else None


def check_saved(given: Collection[str], wanted: Wanted) -> None:
    """Raises UsageError for a flag of `given` that is not heeded where what is compared was measured before."""
    unheeded = sorted(set(given) - _HEEDED_BY_SAVED)
    if unheeded:
        raise UsageError(
            f"{_flag(unheeded[0])} says how to measure, and {wanted.base} was measured already; leave it out"
        )
    of_another_day = [name for name in _OF_ANOTHER_DAY if name in given]
    if of_another_day and wanted.against is None:
        raise UsageError(f"{_flag(of_another_day[0])} is about runs of another day; name them with --against")
    if "ignore_differences" in given and wanted.against is not None:
        raise UsageError("--ignore-differences is about two folders of runs; with --against, name what --may-differ")


def check_live(given: Collection[str]) -> None:
    """Raises UsageError for a flag of `given` that is not heeded where both are measured now."""
    unheeded = [name for name in ("commit", *_OF_ANOTHER_DAY, "ignore_differences") if name in given]
    if unheeded:
        raise UsageError(f"{_flag(unheeded[0])} is about runs that were made before, and these are not; leave it out")


def _flag(name: str) -> str:
    return _FLAG_OF.get(name, f"--{name.replace('_', '-')}")
