"""`gate.toml`: a gate written down."""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import msgspec

from mlserve.errors import UsageError
from mlserve.report.gating.fingerprint import check_names
from mlserve.report.gating.limits import Limit, parse_gate_limits
from mlserve.units import parse_duration_s

__all__ = ["GateFile", "GateLoad", "read_gate_file"]

Mode = Literal["relative", "absolute", "history"]


_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`(?: - at `(.*)`)?")


class GateLoad(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The load, each key called as the flag of `mlserve bench` is; what is left out is up to that."""

    rps: float | None = None
    users: int | None = None
    duration: str = ""
    warm_up: str = ""
    rows: int | None = None
    protocol: str = ""
    slo: str = ""
    seed: int | None = None


class GateFile(msgspec.Struct, frozen=True, kw_only=True):
    """What the file says. `base` is "" for a gate against a history."""

    base: str
    candidate: str
    limits: tuple[Limit, ...]
    mode: Mode = "relative"
    budget_s: float | None = None
    load: GateLoad = GateLoad()
    store: str = ""
    history: str = ""
    calibration: str = ""
    may_differ: tuple[str, ...] = ()


class _Written(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    candidate: str
    limits: tuple[str, ...]
    base: str = ""
    mode: Mode = "relative"
    budget: str = ""
    load: GateLoad = GateLoad()
    store: str = ""
    history: str = ""
    calibration: str = ""
    may_differ: tuple[str, ...] = ()


def read_gate_file(path: Path) -> GateFile:
    """What `path` says. Raises UsageError, naming the file and the key, for one that cannot be read, for a key that is
    unknown or not as it should be, and for what contradicts itself.
    """
    try:
        written = msgspec.toml.decode(path.read_bytes(), type=_Written)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); write one as docs/gating.md shows") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {_told(str(error))}; see docs/gating.md for its keys") from error
    _check(path, written)
    try:
        limits = parse_gate_limits(written.limits, "limits")
        check_names(written.may_differ, "may_differ")
        budget_s = parse_duration_s(written.budget) if written.budget else None
        if written.load.duration:
            parse_duration_s(written.load.duration)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return GateFile(
        base=written.base,
        candidate=written.candidate,
        limits=limits,
        mode=written.mode,
        budget_s=budget_s,
        load=written.load,
        store=written.store,
        history=written.history,
        calibration=written.calibration,
        may_differ=written.may_differ,
    )


def _told(message: str) -> str:
    """What is wrong with a file; a key that is unknown, with the one that was probably meant."""
    unknown = _UNKNOWN.fullmatch(message)
    if unknown is None:
        return message
    table = GateLoad if unknown[2] == "$.load" else _Written
    near = get_close_matches(unknown[1], table.__struct_fields__, 1)
    place = " in [load]" if table is GateLoad else ""
    return f"there is no key {unknown[1]}{place}" + (f"; did you mean {near[0]}?" if near else "")


def _check(path: Path, written: _Written) -> None:
    if not written.candidate:
        raise UsageError(f"{path}: candidate is empty; name a model, a URL, or a folder of runs")
    if written.mode == "relative" and (written.history or written.may_differ):
        key = "history" if written.history else "may_differ"
        raise UsageError(
            f'{path}: {key} is about runs of another day; give mode = "absolute" or "history", or leave it out'
        )
    if written.mode == "history":
        if not written.history:
            raise UsageError(f'{path}: mode = "history" needs history, such as history = "reports/history"')
        if written.base:
            raise UsageError(
                f'{path}: mode = "history" has no base, for the history is it; leave out base = "{written.base}"'
            )
    elif not written.base:
        raise UsageError(f'{path}: mode = "{written.mode}" needs base, what the candidate is held against')
    if written.load.rps is not None and written.load.users is not None:
        raise UsageError(f"{path}: load has rps and users; an open loop has a rate, a closed loop has users: give one")
