"""The order in which the runs of a gate are taken. Pure.

A B B A: every second pair is turned round, so that a drift in a straight line cancels out. Both runs of a pair have the
same schedule, and no other pair has it. Either they are taken one after the other, or at once, in turns of a slot each.
"""

from math import ceil

import msgspec

from mlserve.runs.load import Bursts, Flat, Plan

__all__ = ["SIDES", "Turn", "pair_plan", "shared_plan", "slot_of"]

SIDES = ("base", "candidate")

# Shorter turns see more alike machines, and more requests at their edges.
_SHORTEST_SLOT_S, _FEWEST_REQUESTS, _FEWEST_PERIODS = 0.1, 10, 4
# Of a slot, what passes before the other's first request is due: the last ones of this are to be answered by then.
_BETWEEN = 0.1

_MOST_PAIRS = 10_000
_SEEDS_OF_FRESH = 1_000_000


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One pair of runs. `number` counts from 1; `fresh` ones, counted apart, confirm what was found before."""

    number: int
    fresh: bool = False

    @property
    def order(self) -> tuple[str, str]:
        """Which side is measured first, and which second."""
        base, candidate = SIDES
        return (base, candidate) if self.number % 2 else (candidate, base)

    def folder(self, side: str, attempt: int = 1) -> str:
        """`03-base`, `fresh-03-base`, `03-base-again2`."""
        again = f"-again{attempt}" if attempt > 1 else ""
        return f"{'fresh-' if self.fresh else ''}{self.number:02}-{side}{again}"


def pair_plan(plan: Plan, turn: Turn, attempt: int = 1) -> Plan:
    """`plan` with the seed of this pair; one that is taken again has another."""
    offset = turn.number - 1 + (attempt - 1) * _MOST_PAIRS + (_SEEDS_OF_FRESH if turn.fresh else 0)
    return msgspec.structs.replace(plan, seed=plan.seed + offset)


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
