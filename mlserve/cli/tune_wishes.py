"""From what was said to `mlserve tune` to what is wanted; flags that contradict each other are refused."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from mlserve.cli.price import Price, parse_price
from mlserve.errors import UsageError
from mlserve.units import format_bytes, parse_bytes, parse_duration_s

if TYPE_CHECKING:
    from mlserve.runs.load import Plan, Protocol
    from mlserve.tuning.choosing.aim import Aim, Goal
    from mlserve.tuning.choosing.choose import Pace

__all__ = [
    "Wanted",
    "is_model_file",
    "make_aim",
    "make_pace",
    "make_protocols",
    "plan_of",
]

_SHORT_SHARE, _SHORTEST_S = 5, 1.0
# What Python and the libraries of a server take before any model.
_LEAST_MEMORY = 30_000_000


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The flags that say what is wanted, as they were written."""

    slo: str
    errors: str
    rps: float | None
    maximize: Literal["throughput", "goodput"] | None
    minimize: Literal["cost", "latency", "energy"] | None
    max_drop: str
    max_memory: str
    price: str
    max_cost: str = ""


def make_aim(wanted: Wanted) -> "Aim":
    """What is best. Raises UsageError, naming the flag."""
    from mlserve.optimize.evaluation.drop import parse_max_drop
    from mlserve.tuning.choosing.aim import Aim
    from mlserve.tuning.evidence import parse_slo

    goal = _goal(wanted)
    memory = parse_bytes(wanted.max_memory) if wanted.max_memory else None
    if memory is not None and memory < _LEAST_MEMORY:
        raise UsageError(
            f"--max-memory {wanted.max_memory}: a server takes more than {format_bytes(_LEAST_MEMORY)} whatever it "
            "serves; give what it may take with its model, such as 500MB"
        )
    if wanted.rps is not None and not 0 < wanted.rps <= 1e6:
        raise UsageError(f"--rps {wanted.rps:g} cannot be offered; give a rate above 0 and up to 1,000,000")
    price = parse_price(wanted.price) if wanted.price else None
    return Aim(
        objective=parse_slo(wanted.slo, wanted.errors),
        goal=goal,
        rate_per_s=wanted.rps,
        max_accuracy_loss=parse_max_drop(wanted.max_drop),
        max_memory_bytes=memory,
        price_per_h=price.per_h if price else None,
        max_cost_per_h=_max_cost_per_h(wanted.max_cost, price) if wanted.max_cost else None,
    )


def make_protocols(text: str) -> "tuple[Protocol, ...]":
    """`rest,grpc`. Raises UsageError for one that no server of ours speaks, and one given twice."""
    from mlserve.bench.target import check_protocol

    words = [word.strip() for word in text.split(",")]
    if "json" in words:
        raise UsageError("--protocol json is for servers of others; tune serves the model itself and asks it by others")
    if len(set(words)) < len(words):
        raise UsageError(f"--protocol {text}: one is given twice; give each once")
    return tuple(check_protocol(word) for word in words)


def make_pace(budget: str, duration: str, aim: "Aim") -> "Pace":
    """How long runs are. Raises UsageError for a budget in which nothing can be confirmed."""
    from mlserve.stats import minimum_samples
    from mlserve.tuning.choosing.choose import Pace

    budget_s, long_s = _seconds("--budget", budget), _seconds("--duration", duration)
    if budget_s < long_s:
        raise UsageError(f"--budget {budget} is less than one run of {duration}; raise it, or lower --duration")
    pace = Pace(budget_s=budget_s, short_s=max(long_s / _SHORT_SHARE, min(_SHORTEST_S, long_s)), long_s=long_s)
    if aim.rate_per_s is not None:
        objective, least = aim.objective, minimum_samples(aim.objective.percentile)
        needed_s = pace.least_budget_s(aim.rate_per_s, least)
        if budget_s < needed_s:
            raise UsageError(
                f"--budget {budget} is too short to confirm {objective.name}, which takes {least:,} requests, at --rps "
                f"{aim.rate_per_s:g}; give at least --budget {math.ceil(needed_s)}s, or a higher --rps"
            )
    return pace


def plan_of(batch_rows: int, seed: int) -> "Plan":
    """What requests hold; rates, durations and protocols are the search's. Raises UsageError for so many rows that a
    server of ours refuses all that come beside another.
    """
    from mlserve.bench.plan import check_plan
    from mlserve.runs.load import Plan
    from mlserve.serve.settings import BatchSettings

    most = BatchSettings().max_waiting_rows
    if batch_rows > most:
        raise UsageError(
            f"--batch {batch_rows}: a server lets at most {most:,} rows wait, so that it would refuse every such "
            f"request that comes beside another; give at most {most}"
        )
    return check_plan(Plan(rate_per_s=1.0, duration_s=1.0, warm_up_s=1.0, batch_rows=batch_rows, seed=seed))


def is_model_file(what: str, store: Path) -> bool:
    """Whether `what` is a file or folder to make variants of, and no name of the store.

    Raises UsageError for what looks like a path and is none.
    """
    path = Path(what)
    if (store / what.partition("@")[0]).is_dir() and path.parent == Path():
        return False
    if path.exists():
        return True
    if "/" in what or path.suffix in (".pt", ".pth", ".onnx", ".h5", ".keras", ".safetensors", ".pkl", ".joblib"):
        raise UsageError(f"{what}: there is no such file; check the path, or give the name of a model in the store")
    return False


def _seconds(flag: str, text: str) -> float:
    try:
        return parse_duration_s(text)
    except UsageError as error:
        raise UsageError(f"{flag}: {error}") from error


def _max_cost_per_h(text: str, price: Price | None) -> float:
    try:
        most = parse_price(text)
    except UsageError as error:
        raise UsageError(
            f"--max-cost {text!r} is no cost; write the most that an hour may cost, such as 0.40/h or $0.40/h"
        ) from error
    if price is None:
        raise UsageError(
            f"--max-cost {text} says nothing without what a whole machine like this costs; give that too, such as "
            "--price 1.20/h"
        )
    mine, theirs = (one.before or one.behind for one in (most, price))
    if mine and theirs and mine != theirs:
        raise UsageError(f"--max-cost {text} is in {mine}, and --price in {theirs}; write both in one currency")
    return most.per_h


def _goal(wanted: Wanted) -> "Goal":
    if wanted.maximize and wanted.minimize:
        raise UsageError(
            f"--maximize {wanted.maximize} and --minimize {wanted.minimize} are two goals; give one, the other "
            "is then what it is"
        )
    goal: Goal = wanted.maximize or wanted.minimize or ("latency" if wanted.rps is not None else "throughput")
    if goal in ("throughput", "goodput") and wanted.rps is not None:
        raise UsageError(
            f"--maximize {goal} looks for the rate itself; leave --rps out, or say what is best at that rate: "
            "--minimize latency, cost or energy"
        )
    if goal in ("latency", "energy") and wanted.rps is None:
        raise UsageError(f"--minimize {goal} needs a load to measure it at; give it with --rps")
    return goal
