"""What may be asked of a load test: the plan's values, checked before anything is started."""

import math
from typing import get_args

import msgspec

from mlserve.bench.load.curve import rate_curve
from mlserve.bench.load.scenario import SCENARIOS
from mlserve.bench.load.shape import FORMS, peak_rate_per_s, shape_name
from mlserve.bench.target import check_protocol
from mlserve.errors import UsageError
from mlserve.runs.load import Arrivals, Bursts, Flat, Plan, Replay, Spikes, Steps

__all__ = ["check_arrivals", "check_plan"]

_MOST_PER_S = 1e6
_MOST_REQUESTS = 1e8
_MOST_IN_FLIGHT = 100_000
_MOST_ROWS = 1_000_000
_MOST_GENERATORS = 64
_MOST_PERIODS = 100_000
_SHORTEST_PHASE_S = 1e-3


def check_arrivals(arrivals: str) -> Arrivals:
    """`arrivals` itself. Raises UsageError when it is none that mlserve knows."""
    for known in get_args(Arrivals):
        if arrivals == known:
            return known  # type: ignore[no-any-return]  # get_args tells no types
    raise UsageError(f"--arrivals {arrivals!r} is unknown; use {' or '.join(get_args(Arrivals))}")


def check_plan(plan: Plan) -> Plan:
    """`plan` itself. Raises UsageError, naming the flag, for a value that no run can have, and for two that contradict
    each other.
    """
    check_protocol(plan.protocol)
    check_arrivals(plan.arrivals)
    if plan.scenario and plan.scenario not in SCENARIOS:
        raise UsageError(f"--scenario {plan.scenario!r} is unknown; use one of {', '.join(SCENARIOS)}")
    _check_duration(plan.duration_s, "--duration", least_s=1e-3)
    _check_duration(plan.warm_up_s, "--warm-up", least_s=0.0)
    _check_duration(plan.timeout_s, "--timeout", least_s=1e-3)
    _check_count(plan.batch_rows, "--batch", 1, _MOST_ROWS)
    _check_mix(plan)
    _check_count(plan.max_in_flight, "--max-in-flight", 1, _MOST_IN_FLIGHT)
    _check_count(plan.generators, "--workers", 1, _MOST_GENERATORS)
    _check_count(plan.seed, "--seed", 0, 2**63 - 1)
    _check_share(plan.max_errors, "--errors", 0.0, 1.0)
    _check_share(plan.percentile, "--percentile", 0.5, 0.9999)
    _check_extension(plan)
    if plan.closed:
        _check_closed(plan)
    else:
        _check_open(plan)
    return plan


def _check_closed(plan: Plan) -> None:
    """A closed loop has users and neither a rate nor a shape."""
    _check_count(plan.users, "--users", 1, _MOST_IN_FLIGHT)
    if plan.generators > plan.users:
        raise UsageError(
            f"--workers {plan.generators} would leave some without one of the {plan.users} users of a closed loop; "
            f"use --workers {plan.users} or fewer"
        )
    if plan.rate_per_s != 0:
        raise UsageError(
            f"--rps {plan.rate_per_s:g} contradicts --users {plan.users}, each of which sends when it was answered; "
            "leave one out"
        )
    if not isinstance(plan.shape, Flat):
        raise UsageError(f"--shape contradicts --users {plan.users}: a closed loop has no rate; leave one out")


def _check_open(plan: Plan) -> None:
    if plan.users:
        raise UsageError(
            f"--users {plan.users} is a closed loop, which contradicts --arrivals {plan.arrivals}; leave one out"
        )
    if (plan.arrivals == "replay") != isinstance(plan.shape, Replay):
        raise UsageError("--arrivals replay and --replay FILE go together; give the file, and leave --arrivals out")
    _check_rate(plan.rate_per_s, "--rps")
    _check_shape(plan)
    requests = _requests(plan)
    if requests > _MOST_REQUESTS:
        raise UsageError(f"the run would send {requests:,.0f} requests; lower --rps or --duration")
    measured = _requests(msgspec.structs.replace(plan, warm_up_s=0.0, max_duration_s=0.0, find_warm_up=False))
    if measured < 1 - 1e-6:
        raise UsageError(
            f"--rps {plan.rate_per_s:g} sends less than one request in {plan.duration_s:g} s; raise --duration"
        )


def _check_shape(plan: Plan) -> None:
    shape = plan.shape
    if shape == Steps(()):
        raise UsageError(f"--shape steps has no steps; write {FORMS}")
    _check_rate(peak_rate_per_s(shape, plan.rate_per_s), "--shape: a rate of" if shape != Flat() else "--rps")
    match shape:
        case Steps(rates_per_s):
            for rate in rates_per_s:
                _check_rate(rate, "--shape: a step of")
            if rates_per_s[0] != plan.rate_per_s:
                raise UsageError(
                    f"--rps {plan.rate_per_s:g} contradicts --shape, whose first step is {rates_per_s[0]:g}; leave "
                    "--rps out"
                )
        case Spikes(_, length_s, every_s):
            if length_s >= every_s:
                raise UsageError(f"--shape: a spike of {length_s:g} s does not fit into every {every_s:g} s")
            _check_periods(plan, (length_s, every_s - length_s))
        case Bursts(on_s, off_s):
            _check_periods(plan, (on_s, off_s))


def _check_periods(plan: Plan, phases_s: tuple[float, float]) -> None:
    if min(phases_s) < _SHORTEST_PHASE_S or plan.longest_s / sum(phases_s) > _MOST_PERIODS:
        raise UsageError(
            f"--shape: {shape_name(plan.shape)} changes too often; a phase is at least 1ms, and there are at most "
            f"{_MOST_PERIODS:,} in a run"
        )


def _check_extension(plan: Plan) -> None:
    """`precision` and what belongs to it; what is found by looking at a load that stays the same needs one."""
    if plan.precision != 0:
        _check_share(plan.precision, "--precision", 1e-3, 1.0)
        _check_duration(plan.max_duration_s, "--max-duration", least_s=1e-3)
        if plan.max_duration_s < plan.duration_s:
            raise UsageError(
                f"--max-duration {plan.max_duration_s:g} s is less than --duration {plan.duration_s:g} s; raise it"
            )
    elif plan.max_duration_s != 0:
        raise UsageError("--max-duration says how long --precision may take; give --precision too, or leave it out")
    if plan.endless:
        return
    load = f"--{'replay' if plan.arrivals == 'replay' else 'shape'} ({shape_name(plan.shape)})"
    if plan.precision:
        raise UsageError(f"--precision contradicts {load}, which has an end of its own; leave one out")
    if plan.find_warm_up:
        raise UsageError(
            f"no warm-up can be found with {load}: its rate changes, which looks the same; say how long it takes by "
            "--warm-up"
        )


def _check_mix(plan: Plan) -> None:
    if not plan.row_mix:
        return
    for size in plan.row_mix:
        _check_count(size.rows, "--batch", 1, _MOST_ROWS)
    total = sum(size.share for size in plan.row_mix)
    if not (all(0 < size.share <= 1 for size in plan.row_mix) and math.isclose(total, 1, rel_tol=1e-6)):
        raise UsageError(f"--batch: the shares add up to {total:g}; above zero each, they add up to 1")
    largest = max(size.rows for size in plan.row_mix)
    if plan.batch_rows != largest:
        raise UsageError(f"--batch {plan.batch_rows} contradicts the mix, whose largest request has {largest} rows")


def _requests(plan: Plan) -> float:
    """How many the run may send, on average."""
    replayed = plan.rate_per_s * plan.duration_s if plan.arrivals == "replay" else 0.0
    return rate_curve(plan).total + replayed


def _check_rate(per_s: float, flag: str) -> None:
    if not 0 < per_s <= _MOST_PER_S:  # not NaN either
        raise UsageError(f"{flag} {per_s:g} cannot be sent; give a rate above 0, up to {_MOST_PER_S:,.0f}")


def _check_duration(seconds: float, flag: str, *, least_s: float) -> None:
    if not least_s <= seconds < math.inf:
        raise UsageError(f"{flag} {seconds:g} s is too short or no duration; write one such as 20s")


def _check_share(value: float, flag: str, least: float, most: float) -> None:
    if not least <= value <= most:
        raise UsageError(f"{flag} {value:g} is out of range; give {least:g} to {most:g}")


def _check_count(value: int, flag: str, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UsageError(f"{flag} {value} is out of range; give a whole number from {least} to {most:,}")
