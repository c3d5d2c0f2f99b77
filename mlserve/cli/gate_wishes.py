"""What a gate was asked for, by flags and by gate.toml; flags win."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mlserve.errors import UsageError

if TYPE_CHECKING:
    from mlserve.report.gating.limits import Limit

__all__ = ["Wanted", "check_given", "limits_of", "with_file"]

_CALIBRATION = Path("reports/gate/calibration.json")
# What says something of runs that were made before, too.
_HEEDED_BY_SAVED = frozenset(
    (
        *("against", "append", "badge", "base", "calibration", "candidate", "comment", "commit", "config"),
        *("ignore_differences", "json", "junit", "max_regression", "slo", "store"),
    )
)
_FLAG_OF = {"directory": "--out", "headers": "--header"}


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The flags that gate.toml can say as well. `limits` are texts, as they were written on the command line, and
    `file_limits` those of the file, where the command line has none. `against` is set for what was saved.
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
    against: Path | None
    calibration: Path | None
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
        "calibration": Path(read.calibration) if read.calibration else None,
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
    if read.mode == "relative" or wanted.against is not None:
        return merged
    against = read.history if read.mode == "history" else merged.base
    runs = merged.candidate or merged.base
    return msgspec.structs.replace(merged, base=runs, candidate="", against=Path(against))


def limits_of(wanted: Wanted) -> "tuple[Limit, ...]":
    """The limits of the command line, else those of the file, and the objective as one of them.

    Raises UsageError for none, and for what cannot be read.
    """
    from mlserve.report.gating.limits import parse_gate_limits

    texts = list(wanted.limits)
    objective = [wanted.slo.replace("=", "<=", 1)] if wanted.slo and "<" not in wanted.slo else []
    if wanted.file_limits and not texts:
        stated = {(limit.metric, limit.absolute) for limit in wanted.file_limits}
        extra = parse_gate_limits(objective) if objective else ()
        return wanted.file_limits + tuple(one for one in extra if (one.metric, one.absolute) not in stated)
    return parse_gate_limits(texts + objective)


def check_given(given: Collection[str], wanted: Wanted) -> None:
    """Raises UsageError for a flag of `given` that says how to measure, where what is compared was saved."""
    unheeded = sorted(set(given) - _HEEDED_BY_SAVED)
    if unheeded:
        name = _FLAG_OF.get(unheeded[0], f"--{unheeded[0].replace('_', '-')}")
        raise UsageError(f"{name} says how to measure, and {wanted.base} was measured already; leave it out")
