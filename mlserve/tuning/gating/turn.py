"""The order in which the runs of a gate are taken. Pure.

A B B A: every second pair is turned round, so that a drift in a straight line cancels out. Both runs of a pair have the
same schedule, and no other pair has it. Either they are taken one after the other, or at once, in turns of a slot each.
"""

import msgspec

from mlserve.runs.load import Plan

__all__ = ["SIDES", "Turn", "pair_plan"]

SIDES = ("base", "candidate")

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
