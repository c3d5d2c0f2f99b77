"""The grid of a sweep: which values each axis has, which runs that makes, and in which order they are taken. Pure."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import Any

import msgspec
import numpy as np

from mlserve.bench.plan import check_arrivals, check_plan
from mlserve.bench.target import check_protocol
from mlserve.errors import UsageError
from mlserve.runs.load import Plan
from mlserve.tuning.opening import Contender, contender_protocol
from mlserve.tuning.serving import ServerOptions

__all__ = ["AXES", "Axes", "Axis", "Cell", "Sweep", "Turn", "cells_of", "parse_sweep", "turns_of"]

# 1: first format
FORMAT_VERSION = 1

Value = str | int | float

_MOST_CELLS = 10_000


def _integer(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value < np.inf:
        raise ValueError(text)
    return value


def _delay(text: str) -> float:
    value = float(text)
    if not 0 <= value < np.inf:
        raise ValueError(text)
    return value


def _device(text: str) -> str:
    if not re.fullmatch(r"(cpu|cuda|tensorrt|gpu)(:\d+)?", text):
        raise ValueError(text)
    return text


def _one_of(words: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(text)
        return text

    return read


_ENGINES = ("onnxruntime", "openvino", "torch", "torch-compiled")
_COMPUTE_TYPES = ("bf16", "fp16", "tf32", "fp32")
_WHOLE = "whole numbers from 1, such as 1,8,32"

AXES: dict[str, tuple[Callable[[str], Value], str]] = {
    "arrivals": (check_arrivals, "poisson or constant"),
    "batch": (_integer, _WHOLE),
    "compute_type": (_one_of(_COMPUTE_TYPES), ", ".join(_COMPUTE_TYPES)),
    "device": (_device, "cpu, cuda or cuda:N"),
    "engine": (_one_of(_ENGINES), ", ".join(_ENGINES)),
    "max_batch_rows": (_integer, _WHOLE),
    "max_delay_ms": (_delay, "milliseconds, such as 0,2,5"),
    "protocol": (check_protocol, "protocols, such as rest,grpc"),
    "rps": (_rate, "rates above 0, such as 100,200"),
    "server_workers": (_integer, _WHOLE),
    "threads": (_integer, _WHOLE),
    "users": (_integer, _WHOLE),
    "workers": (_integer, _WHOLE),
}
"""Every axis, called as its flag is: how a value of it is read, and what may be written."""

_SERVER_FIELD = {
    "server_workers": "workers",
    "threads": "threads",
    "max_batch_rows": "max_batch_rows",
    "max_delay_ms": "max_delay_ms",
    "device": "device",
    "engine": "engine",
    "compute_type": "compute_type",
}
_PLAN_FIELD = {"batch": "batch_rows", "protocol": "protocol", "arrivals": "arrivals", "workers": "generators"}
# What a trace that is replayed has of its own.
_RECORDED = frozenset(("arrivals", "batch", "rps", "users"))


class Axis(msgspec.Struct, frozen=True):
    """One thing that differs from run to run, and its values."""

    name: str
    values: tuple[Value, ...]


Axes = tuple[Axis, ...]


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep was asked for, as `sweep.json` keeps it. `plan` and `options` hold what no axis says.

    Every cell is run `repeats` times, once a round. The seed of the schedule is that of `plan` in the first round, and
    one more in each further one: within a round every cell gets the same. `any_protocol`: nobody asked for one, so
    that a URL's scheme says it.
    """

    format_version: int = FORMAT_VERSION
    contenders: tuple[Contender, ...]
    axes: Axes
    plan: Plan
    options: ServerOptions = ServerOptions()
    repeats: int = 1
    any_protocol: bool = True


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One combination of the grid. `values` are those of the axes, as a table shows them; `label` names its folders.

    `options` is None for a server that runs already.
    """

    label: str
    contender: Contender
    plan: Plan
    options: ServerOptions | None
    values: tuple[tuple[str, str], ...]


class Turn(msgspec.Struct, frozen=True):
    """One run of one cell. Rounds count from 1."""

    cell: Cell
    round: int

    @property
    def plan(self) -> Plan:
        """The cell's, with the round's seed."""
        return msgspec.structs.replace(self.cell.plan, seed=self.cell.plan.seed + self.round - 1)

    @property
    def folder(self) -> str:
        """`minilm-8-grpc-200rps-1`."""
        return f"{self.cell.label}-{self.round}"

    @property
    def server(self) -> tuple[Contender, ServerOptions | None]:
        """Runs for which this is the same can share a running server."""
        return self.cell.contender, self.cell.options


def parse_sweep(texts: Iterable[str]) -> Axes:
    """`["batch=1,8", "protocol=grpc,rest"]` -> the axes, in the order they were given.

    Raises UsageError for an unknown axis, a value that is none, and what is given twice.
    """
    axes: dict[str, Axis] = {}
    for text in texts:
        name, equals, listed = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not listed.strip():
            raise UsageError(f"--sweep {text!r} is no axis; write NAME=VALUE,VALUE, such as batch=1,8,32")
        if name not in AXES:
            raise UsageError(f"--sweep {name}: there is no such axis; use {', '.join(AXES)}")
        if name in axes:
            raise UsageError(f"--sweep {name} is given twice; write all its values in one list")
        axes[name] = Axis(name, tuple(_value(name, word.strip()) for word in listed.split(",")))
        if len(set(axes[name].values)) < len(axes[name].values):
            raise UsageError(f"--sweep {text}: a value is given twice; give each once")
    return tuple(axes.values())


def cells_of(sweep: Sweep) -> tuple[Cell, ...]:
    """Every combination, once. A load is open (`rps`) or closed (`users`): the two are one axis, not a product.

    Raises UsageError for a combination that no run can have.
    """
    axes = {axis.name: axis.values for axis in sweep.axes}
    set_here = [name for name in axes if name in _SERVER_FIELD]
    running = next((one for one in sweep.contenders if one.running), None)
    if running is not None and set_here:
        raise UsageError(
            f"--sweep {', '.join(set_here)}: {running.where} runs already; set it where it was started, "
            "or sweep over models that bench serves itself"
        )
    recorded = [name for name in axes if name in _RECORDED]
    if sweep.plan.arrivals == "replay" and recorded:
        raise UsageError(f"--sweep {', '.join(recorded)}: --replay says that itself; leave one of them out")
    if not sweep.contenders:
        raise UsageError("there is nothing to sweep; name a model or a URL")
    grid = [axis for axis in sweep.axes if axis.name not in ("rps", "users")]
    loads = [(name, value) for name in ("rps", "users") for value in axes.get(name, ())] or [("", 0)]
    cells: dict[tuple[Any, ...], Cell] = {}
    for contender, chosen, load in product(sweep.contenders, product(*(axis.values for axis in grid)), loads):
        cell = _cell(sweep, contender, dict(zip([axis.name for axis in grid], chosen, strict=True)), load)
        cells.setdefault((cell.contender, cell.options, cell.plan), cell)
        if len(cells) > _MOST_CELLS:
            raise UsageError(f"the sweep has more than {_MOST_CELLS:,} cells; give fewer values")
    return _labelled(list(cells.values()))


def turns_of(sweep: Sweep, cells: Sequence[Cell]) -> list[Turn]:
    """Every cell once a round, in an order that the seed tells: servers in a shuffled order, and the cells of each too.

    So what drifts on the machine hits all cells alike. Where a round begins with the server that the one before ended
    with, it can go on running.
    """
    turns: list[Turn] = []
    for number in range(1, sweep.repeats + 1):
        rng = np.random.default_rng([sweep.plan.seed, number])
        groups: dict[Any, list[Turn]] = {}
        for cell in cells:
            turn = Turn(cell, number)
            groups.setdefault(turn.server, []).append(turn)
        for group in _shuffled(list(groups.values()), rng):
            turns += _shuffled(group, rng)
    return turns


def _value(name: str, text: str) -> Value:
    read, what = AXES[name]
    if name == "arrivals" and text == "closed":
        raise UsageError("--sweep arrivals=closed: a closed loop is swept by its users, such as users=1,4,16")
    try:
        return read(text)
    except UsageError as error:
        raise UsageError(f"--sweep {name}={text}: {error}") from error
    except ValueError as error:
        raise UsageError(f"--sweep {name}={text!r} cannot be used; write {what}") from error


def _cell(sweep: Sweep, contender: Contender, chosen: dict[str, Value], load: tuple[str, Value]) -> Cell:
    fields: dict[str, Any] = {_PLAN_FIELD[name]: value for name, value in chosen.items() if name in _PLAN_FIELD}
    if "protocol" not in fields and sweep.any_protocol:
        fields["protocol"] = contender_protocol(contender)
    name, value = load
    if name == "rps":
        fields["rate_per_s"] = value
        if sweep.plan.closed:
            fields |= {"users": 0, "arrivals": fields.get("arrivals", "poisson")}
    elif name == "users" or sweep.plan.closed:
        fields |= {"users": value or sweep.plan.users, "arrivals": "closed", "rate_per_s": 0.0}
    plan = check_plan(msgspec.structs.replace(sweep.plan, **fields))
    settings = {_SERVER_FIELD[name]: value for name, value in chosen.items() if name in _SERVER_FIELD}
    options = None if contender.running else msgspec.structs.replace(sweep.options, **settings)
    shown = {"target": contender.name} if len(sweep.contenders) > 1 else {}
    shown |= {axis.name: _shown(chosen[axis.name]) for axis in sweep.axes if axis.name in chosen}
    if any(axis.name in ("rps", "users") for axis in sweep.axes):
        shown["load"] = f"{plan.users} users" if plan.closed else f"{plan.rate_per_s:g} rps"
    return Cell(label="", contender=contender, plan=plan, options=options, values=tuple(shown.items()))


def _labelled(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """With labels that are folders' names, each another."""
    taken: set[str] = set()

    def labels() -> Iterator[str]:
        for cell in cells:
            words = [_word(name, value) for name, value in cell.values] or [cell.contender.name]
            label = stem = re.sub(r"[^A-Za-z0-9._@-]+", "_", "-".join(words)).strip("._-") or "cell"
            number = 1
            while label.lower() in taken:
                number += 1
                label = f"{stem}~{number}"
            taken.add(label.lower())
            yield label

    return tuple(msgspec.structs.replace(cell, label=label) for cell, label in zip(cells, labels(), strict=True))


def _word(name: str, value: str) -> str:
    """A value in a folder's name: with its axis where it is but a number."""
    if name == "load":
        return value.replace(" ", "")
    return f"{name}{value}" if value[:1].isdigit() else value


def _shown(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shuffled(items: list[Any], rng: np.random.Generator) -> list[Any]:
    return [items[number] for number in rng.permutation(len(items))]
