"""The kinds of `mlserve bench`, and the flags that each does not heed: what would be forgotten is refused."""

from collections.abc import Collection

import typer

from mlserve.errors import UsageError

__all__ = ["check_flags", "check_many", "given_flags"]

_LIKE = frozenset(
    (
        "ca_file",
        "client_cert",
        "client_key",
        "data",
        "directory",
        "expected",
        "headers",
        "inputs",
        "json",
        "label",
        "like",
        "locustfile",
        "replay",
        "store",
        "what",
    )
)
_SINGLE = ("label", "locustfile", "master", "web", "web_port")
_MADE_BY_RULE = ("arrivals", "replay", "scenario", "shape", "users")

# A flag, and the one without which it says nothing.
_NEEDS = {
    "expected": "data",
    "max_duration": "precision",
    "replay_speed": "replay",
    "resolution": "find_max",
    "slo": "find_max",
    "web_port": "web",
}
# A flag that makes a run another kind of run; why; and what that kind has no use for.
_UNHEEDED: dict[str, tuple[str, tuple[str, ...]]] = {
    "find_max": ("chooses the rates itself, and holds to --slo", (*_SINGLE, "max_duration", "percentile", "precision")),
    "locustfile": (
        "says itself what is sent",
        (
            *("answer", "batch", "ca_file", "check", "client_cert", "client_key", "data", "expected", "headers"),
            *("image_sizes", "inputs", "lengths", "metrics", "server_timing", "template"),
        ),
    ),
    "tax": (
        "asks over every protocol, one request after the other, and keeps no rows",
        (
            *(*_SINGLE, *_MADE_BY_RULE, "check", "directory", "errors", "expected", "max_duration", "max_in_flight"),
            *("percentile", "precision", "protocol", "server_timing", "timeout", "warm_up", "workers"),
        ),
    ),
}
_FLAG_OF = {"directory": "--out", "headers": "--header", "targets": "--target", "what": "what is loaded"}


def given_flags(context: typer.Context) -> frozenset[str]:
    """The parameters of the command that its line says, by their names in Python."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")


def check_flags(given: Collection[str]) -> None:
    """Raises UsageError where one of `given` would not be heeded, because of another that is given or is not."""
    if "join" in given:
        _refuse(sorted(set(given) - {"join"}), "--join", "does what it is told by the bench that waits there")
    if "like" in given:
        _refuse(sorted(set(given) - _LIKE), "--like", "makes a run again as it was")
        return
    for kind, (why, unheeded) in _UNHEEDED.items():
        if kind in given:
            _refuse([name for name in unheeded if name in given], _flag(kind), why)
    for name, needed in _NEEDS.items():
        if name in given and needed not in given:
            raise UsageError(f"{_flag(name)} says something of {_flag(needed)}; give that too, or leave it out")


def check_many(given: Collection[str]) -> None:
    """Raises UsageError for what only a single run heeds."""
    _refuse([name for name in _SINGLE if name in given], "--sweep, --repeats or several targets", "make many runs")


def _refuse(unheeded: list[str], kind: str, why: str) -> None:
    if unheeded:
        raise UsageError(f"{_flag(unheeded[0])} contradicts {kind}, which {why}; leave one of them out")


def _flag(name: str) -> str:
    return _FLAG_OF.get(name, f"--{name.replace('_', '-')}")
