"""From what was said on the command line to a plan; flags that contradict each other are refused."""

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mlserve.errors import UsageError
from mlserve.units import parse_duration_s, parse_fraction

if TYPE_CHECKING:
    from mlserve.bench.load.trace import Trace
    from mlserve.runs.load import Arrivals, Plan
    from mlserve.tuning.serving import ServerOptions

__all__ = ["Asked", "make_plan", "parse_address", "parse_percentile", "server_options", "with_cores"]

_DEFAULT_RPS = 500.0
_LEAST_WARM_UP_S = 1.0
_MAX_DURATION_S = 300.0


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The flags that make a plan, as they were written; None or "" for those that were not."""

    rps: float | None
    users: int | None
    arrivals: str | None
    shape: str
    scenario: str
    replay: Path | None
    replay_speed: float
    model: str
    protocol: str
    batch: str | None
    duration: str
    warm_up: str
    precision: str
    max_duration: str | None
    percentile: str
    errors: str | None
    seed: int
    max_in_flight: int
    timeout: str
    workers: int
    check: bool
    locustfile: Path | None


def make_plan(asked: Asked) -> "tuple[Plan, Trace | None]":
    """The plan, checked, and the trace that it replays. Raises UsageError, naming the flag."""
    from mlserve.bench.load.scenario import apply_scenario
    from mlserve.bench.load.shape import first_rate_per_s, parse_shape
    from mlserve.bench.load.trace import read_trace, replay_plan
    from mlserve.bench.payload.sizes import parse_row_mix
    from mlserve.bench.plan import check_plan
    from mlserve.bench.target import check_protocol
    from mlserve.runs.load import Plan

    rate_per_s = _DEFAULT_RPS if asked.rps is None else asked.rps
    mix = parse_row_mix(asked.batch or "1")
    precision = _parse_precision(asked.precision)
    duration_s = parse_duration_s(asked.duration)
    shape = parse_shape(asked.shape, rate_per_s)
    plan = Plan(
        rate_per_s=0.0 if asked.users is not None else first_rate_per_s(shape, rate_per_s),
        duration_s=duration_s,
        warm_up_s=_LEAST_WARM_UP_S if asked.warm_up == "auto" else _parse_warm_up_s(asked.warm_up),
        find_warm_up=asked.warm_up == "auto",
        arrivals=_arrivals(asked),
        shape=shape,
        users=asked.users or 0,
        protocol=check_protocol(asked.protocol),
        batch_rows=mix[-1].rows,
        row_mix=mix if len(mix) > 1 else (),
        seed=asked.seed,
        max_in_flight=asked.max_in_flight,
        timeout_s=parse_duration_s(asked.timeout),
        percentile=parse_percentile(asked.percentile),
        precision=precision,
        max_duration_s=_max_duration_s(asked, duration_s) if precision else 0.0,
        generators=asked.workers,
        check_answers=asked.check,
        max_errors=parse_fraction(asked.errors or "1%"),
        locustfile=_locustfile(asked.locustfile),
    )
    if asked.scenario:
        plan = apply_scenario(asked.scenario, plan, _given(asked))
    trace = None
    if asked.replay is not None:
        _check_replay(asked)
        trace = read_trace(asked.replay, asked.model)
        plan = replay_plan(plan, trace, asked.replay_speed)
    return check_plan(_settled(plan, asked)), trace


def server_options(said: "dict[str, int | float | str | None]") -> "ServerOptions | None":
    """What was `said` of the server, by the fields of its options; None where nothing was.

    Raises UsageError where it cannot be set so.
    """
    from mlserve.tuning.serving import ServerOptions

    given = {name: value for name, value in said.items() if value is not None}
    flag_of = {"workers": "--server-workers", "threads": "--threads", "max_batch_rows": "--max-batch-rows"}
    for name, flag in flag_of.items():
        if given.get(name, 1) < 1:  # type: ignore[operator]  # these three are integers
            raise UsageError(f"{flag} {given[name]} cannot be used; give 1 or more")
    max_delay_ms = float(given.get("max_delay_ms", 0.0))
    if not 0 <= max_delay_ms < float("inf"):
        raise UsageError(f"--max-delay-ms {max_delay_ms} cannot be used; give 0 or more")
    return msgspec.convert(given, ServerOptions) if given else None


def with_cores(options: "ServerOptions | None", plan: "Plan") -> "ServerOptions":
    """`options`, which leave a core to each generator."""
    from mlserve.tuning.serving import ServerOptions

    return msgspec.structs.replace(options or ServerOptions(), spare_cores=plan.generators)


def parse_percentile(text: str) -> float:
    """`p99.9` -> 0.999. Raises UsageError for another form."""
    try:
        found = float(text.strip().lower().removeprefix("p")) / 100
    except ValueError:
        found = 0.0
    if not 0.5 <= found <= 0.9999:
        raise UsageError(f"--percentile {text!r} cannot be claimed; write one from p50 to p99.99")
    return round(found, 6)


def parse_address(text: str, flag: str) -> tuple[str, int]:
    """`127.0.0.1:5557` -> its two parts. Raises UsageError for another form."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"{flag} {text!r} is no address; write HOST:PORT, such as 127.0.0.1:5557")
    return host.strip("[]"), int(port)


def _arrivals(asked: Asked) -> "Arrivals":
    from mlserve.bench.plan import check_arrivals

    if asked.arrivals in ("replay", "closed"):
        flag = "--replay FILE" if asked.arrivals == "replay" else "--users N"
        raise UsageError(f"--arrivals {asked.arrivals} is what {flag} says; give that, and leave --arrivals out")
    if asked.users is None:
        return check_arrivals(asked.arrivals or "poisson")
    for flag, said in (("--rps", asked.rps), ("--arrivals", asked.arrivals), ("--replay", asked.replay)):
        if said is not None:
            raise UsageError(
                f"--users {asked.users} is a closed loop, in which answers set the pace; leave {flag} or --users out"
            )
    return "closed"


def _locustfile(path: Path | None) -> str:
    if path is not None and not path.is_file():
        raise UsageError(f"--locustfile {path}: there is no such file; give a Python file with a Locust User")
    return str(path.resolve()) if path else ""


def _parse_precision(text: str) -> float:
    """0.0 where nothing was said."""
    precision = parse_fraction(text) if text else 0.0
    if text and not precision:
        raise UsageError(f"--precision {text} is never reached; write one such as 5%, or leave it out")
    return precision


def _max_duration_s(asked: Asked, duration_s: float) -> float:
    if asked.max_duration is None:
        return max(duration_s, _MAX_DURATION_S)
    return parse_duration_s(asked.max_duration)


def _given(asked: Asked) -> set[str]:
    """The fields of a plan that the user set in so many words."""
    said = {
        "arrivals": asked.arrivals is not None,
        "batch_rows": asked.batch is not None,
        "row_mix": asked.batch is not None,
        "percentile": asked.percentile != "p99",
        "rate_per_s": asked.rps is not None,
        "shape": asked.shape != "flat",
        "users": asked.users is not None,
    }
    return {field for field, given in said.items() if given}


def _settled(plan: "Plan", asked: Asked) -> "Plan":
    """A load that changes as it goes, or comes from a file, has no warm-up that could be told from it."""
    from mlserve.runs.load import Flat

    if isinstance(plan.shape, Flat) or asked.warm_up != "auto":
        return plan
    warm_up_s = 0.0 if plan.arrivals == "replay" else plan.warm_up_s
    return msgspec.structs.replace(plan, find_warm_up=False, warm_up_s=warm_up_s)


def _check_replay(asked: Asked) -> None:
    for flag, said in (
        ("--rps", asked.rps is not None),
        ("--arrivals", asked.arrivals is not None),
        ("--shape", asked.shape != "flat"),
        ("--scenario", bool(asked.scenario)),
        ("--batch", asked.batch is not None),
    ):
        if said:
            raise UsageError(f"{flag} contradicts --replay {asked.replay}, which says it; leave one of them out")


def _parse_warm_up_s(text: str) -> float:
    """A duration, of which zero is one here."""
    return 0.0 if text.strip() in ("0", "0s", "0ms") else parse_duration_s(text)
