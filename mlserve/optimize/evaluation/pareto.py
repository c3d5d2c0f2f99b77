"""Which variants are worth a look: those that no other beats in everything."""

from collections.abc import Sequence

import msgspec

__all__ = ["Point", "dominated"]


class Point(msgspec.Struct, frozen=True):
    """What a variant costs: less is better everywhere.

    `loss_high` is the upper bound of its accuracy loss, `p50_s` its times, one for each batch size and as many for all.
    """

    name: str
    loss_high: float
    p50_s: tuple[float, ...]
    size_bytes: int

    @property
    def costs(self) -> tuple[float, ...]:
        """All of them, in one order."""
        return (self.loss_high, *self.p50_s, float(self.size_bytes))


def dominated(points: Sequence[Point]) -> dict[str, str]:
    """Each variant that another one dominates, and the one that does: no worse in anything, better in something.

    The one named is itself not dominated, and of several the first. Variants that are equal in everything stay.
    """
    found: dict[str, str] = {}
    best = [point for point in points if not any(_dominates(other, point) for other in points)]
    for point in points:
        better = next((other for other in best if _dominates(other, point)), None)
        if better is not None:
            found[point.name] = better.name
    return found


def _dominates(one: Point, other: Point) -> bool:
    pairs = list(zip(one.costs, other.costs, strict=True))
    return all(mine <= theirs for mine, theirs in pairs) and any(mine < theirs for mine, theirs in pairs)
