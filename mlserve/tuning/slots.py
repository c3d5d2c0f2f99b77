"""Loads that share one machine in turns of a slot each: what it does by itself, it does to all of them. Pure."""

from math import ceil

import msgspec

from mlserve.runs.load import Bursts, Flat, Plan

__all__ = ["shared_plan", "slot_of"]

# Shorter turns see more alike machines, and more requests at their edges.
_SHORTEST_SLOT_S, _FEWEST_REQUESTS, _FEWEST_PERIODS = 0.1, 10, 4
# Of a slot, what passes before the other's first request is due: the last ones of this are to be answered by then.
_BETWEEN = 0.1


def slot_of(plan: Plan) -> float:
    """How long a turn is (seconds) where two loads by `plan` take turns; 0.0 where they cannot: a closed loop, a load
    that changes, several generators, or too few requests for some turns.
    """
    if plan.closed or plan.shape != Flat() or plan.arrivals == "replay" or plan.generators > 1 or plan.precision:
        return 0.0
    slot_s = max(_SHORTEST_SLOT_S, _FEWEST_REQUESTS / plan.rate_per_s)
    return slot_s if plan.duration_s >= _FEWEST_PERIODS * slot_s else 0.0


def shared_plan(plan: Plan, slot_s: float, parties: int = 2) -> Plan:
    """`plan` as one of `parties` that take turns of `slot_s`: as many requests in about so many times the time."""
    on_s, period_s = (1 - _BETWEEN) * slot_s, parties * slot_s
    warm_up_s, duration_s = (
        ceil(round(length_s / on_s, 9)) * period_s for length_s in (plan.warm_up_s, plan.duration_s)
    )
    shape = Bursts(on_s=on_s, off_s=period_s - on_s, throughout=True)
    return msgspec.structs.replace(plan, shape=shape, warm_up_s=warm_up_s, duration_s=duration_s)
