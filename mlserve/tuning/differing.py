"""In what two requests for the same folder differ, told in the words that users ask in. Pure, of JSON documents."""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from mlserve.report.gating.limits import Limit
from mlserve.tuning.evidence import Objective
from mlserve.units import format_bytes, format_duration, format_rate

__all__ = ["differing"]

# What holds what else was asked, and is no word of a user's.
_SILENT = frozenset(("aim", "contender", "options", "plan"))
_CALLED = {
    "arrivals": "--arrivals",
    "axes": "--sweep",
    "batch_rows": "--batch",
    "check_answers": "--check",
    "code": "the code of the mlserve that serves",
    "compute_type": "--compute-type",
    "content": "the content of the model, of --data or of what else requests are made of",
    "data": "--data",
    "device": "--device",
    "duration_s": "--duration",
    "engine": "--engine",
    "generators": "--workers",
    "keep_servers": "--keep-servers",
    "limits": "--max-regression",
    "locustfile": "--locustfile",
    "digests": "the content of the models",
    "max_batch_rows": "--max-batch-rows",
    "max_delay_ms": "--max-delay-ms",
    "max_duration_s": "--max-duration",
    "max_errors": "--errors",
    "max_in_flight": "--max-in-flight",
    "objective": "--slo",
    "percentile": "--percentile",
    "precision": "--precision",
    "protocol": "--protocol",
    "rate_per_s": "--rps",
    "repeats": "--repeats",
    "resolution": "--resolution",
    "row_mix": "--batch",
    "seed": "--seed",
    "shape": "--shape",
    "slot_s": "--in-turn",
    "start_per_s": "--rps",
    "threads": "--threads",
    "timeout_s": "--timeout",
    "users": "--users",
    "warm_up_s": "--warm-up",
    "where": "what is measured",
    "workers": "--server-workers",
}
_SHARES = frozenset(("max_errors", "precision", "resolution"))
_UNITS = (("_per_s", format_rate), ("_s", format_duration), ("_bytes", format_bytes))
_LONGEST = 80

_T = TypeVar("_T")


def differing(held: Any, wanted: Any, path: tuple[str, ...] = ()) -> list[str]:
    """`["--rps 100/s there, 200/s now"]`: what of `held` is asked otherwise now."""
    if held == wanted:
        return []
    name = path[-1] if path else ""
    if isinstance(held, dict) and isinstance(wanted, dict):
        if name == "objective" and (lines := _fields(_objective(held), _objective(wanted), path[:-1])):
            return lines
        if name == "objective" or name not in _CALLED:
            return _fields(held, wanted, path)
    there, now = _short(_shown(name, held)), _short(_shown(name, wanted))
    if there == now:  # rounded, or cut, they look alike
        there, now = repr(held), repr(wanted)
    return [f"{_called(path)} {there} there, {now} now"]


def _fields(held: dict[str, Any], wanted: dict[str, Any], path: tuple[str, ...]) -> list[str]:
    keys = dict.fromkeys([*held, *wanted])
    return [line for key in keys for line in differing(held.get(key), wanted.get(key), (*path, str(key)))]


def _called(path: tuple[str, ...]) -> str:
    """`--rps`, `base: --server-workers`; a field that no flag is known of by its name."""
    whose = [part for part in path[:-1] if part not in _SILENT]
    if path and path[-1] not in _CALLED:
        return ".".join(path)
    return ": ".join([" ".join(whose), _CALLED[path[-1]]] if whose else [_CALLED[path[-1]]]) if path else "all of it"


def _objective(document: dict[str, Any]) -> dict[str, Any]:
    """As two flags say it."""
    read = _read(document, Objective, lambda objective: objective.text)
    return {"objective": read, "max_errors": document.get("max_errors")}


def _shown(name: str, value: Any) -> str:
    match value:
        case None | "" | []:
            return "not set"
        case int() | float():
            return _number(name, value)
        case dict():
            return _structure(value)
        case list():
            return ", ".join(_shown(name, each) for each in value)
    return str(value)


def _structure(document: dict[str, Any]) -> str:
    """`p99=5%`, `rps=100,200`; any other as its fields."""
    match document:
        case {"metric": _}:
            return _read(document, Limit, lambda limit: limit.text)
        case {"name": axis, "values": list(values)}:
            return f"{axis}={','.join(_shown('', each) for each in values)}"
    return " ".join(f"{key} {_shown(key, each)}" for key, each in document.items())


def _number(name: str, value: float) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if name == "percentile":
        return f"p{100 * value:.10g}"
    if name in _SHARES:
        return f"{100 * value:.6g}%"
    return next((told(value) for suffix, told in _UNITS if name.endswith(suffix)), f"{value:.10g}")


def _read(document: dict[str, Any], kind: type[_T], told: Callable[[_T], str]) -> str:
    """Of another version's file it may be of another form; then it is told as it is."""
    try:
        return told(msgspec.convert(document, kind))
    except msgspec.ValidationError:
        return " ".join(f"{key} {value}" for key, value in document.items())


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
