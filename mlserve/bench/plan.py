"""What may be asked of a load test: the plan's values, checked before anything is started."""

import math
from typing import get_args

from mlserve.bench.target import check_protocol
from mlserve.errors import UsageError
from mlserve.runs.load import Arrivals, Plan

__all__ = ["check_arrivals", "check_plan"]

_MOST_PER_S = 1e6
_MOST_REQUESTS = 1e8
_MOST_IN_FLIGHT = 100_000
_MOST_ROWS = 1_000_000


def check_arrivals(arrivals: str) -> Arrivals:
    """`arrivals` itself. Raises UsageError when it is none that mlserve knows."""
    for known in get_args(Arrivals):
        if arrivals == known:
            return known  # type: ignore[no-any-return]  # get_args tells no types
    raise UsageError(f"--arrivals {arrivals!r} is unknown; use {' or '.join(get_args(Arrivals))}")


def check_plan(plan: Plan) -> Plan:
    """`plan` itself. Raises UsageError, naming the flag, for a value that no run can have."""
    check_protocol(plan.protocol)
    check_arrivals(plan.arrivals)
    if not 0 < plan.rate_per_s <= _MOST_PER_S:  # not NaN either
        raise UsageError(f"--rps {plan.rate_per_s:g} cannot be sent; give a rate above 0, up to {_MOST_PER_S:,.0f}")
    _check_duration(plan.duration_s, "--duration", least_s=1e-3)
    _check_duration(plan.warm_up_s, "--warm-up", least_s=0.0)
    _check_duration(plan.timeout_s, "--timeout", least_s=1e-3)
    _check_count(plan.batch_rows, "--batch", 1, _MOST_ROWS)
    _check_count(plan.max_in_flight, "--max-in-flight", 1, _MOST_IN_FLIGHT)
    _check_count(plan.seed, "--seed", 0, 2**63 - 1)
    requests = plan.rate_per_s * (plan.duration_s + plan.warm_up_s)
    if requests > _MOST_REQUESTS:
        raise UsageError(f"the run would send {requests:,.0f} requests; lower --rps or --duration")
    if plan.rate_per_s * plan.duration_s < 1:
        raise UsageError(
            f"--rps {plan.rate_per_s:g} sends less than one request in {plan.duration_s:g} s; raise --duration"
        )
    return plan


def _check_duration(seconds: float, flag: str, *, least_s: float) -> None:
    if not least_s <= seconds < math.inf:
        raise UsageError(f"{flag} {seconds:g} s is too short or no duration; write one such as 20s")


def _check_count(value: int, flag: str, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UsageError(f"{flag} {value} is out of range; give a whole number from {least} to {most:,}")
