"""Which results nobody beats in everything: the Pareto front. Pure functions of numbers."""

from collections.abc import Sequence

__all__ = ["pareto"]


def pareto(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """For each of `points` [n, figures], all of which are better when lower: whether no other is at least as good in
    every figure and better in one.
    """
    return [not any(_beats(other, point) for other in points) for point in points]


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))
