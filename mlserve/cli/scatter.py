"""A scatter plot of a few named points, in characters."""

from collections.abc import Sequence

import msgspec

__all__ = ["Dot", "scatter"]

_WIDTH, _HEIGHT = 56, 12


class Dot(msgspec.Struct, frozen=True):
    """One point; `mark` is the character it is drawn with."""

    mark: str
    x: float
    y: float


def scatter(dots: Sequence[Dot], x_label: str, y_label: str) -> str:
    """The points in a frame, the axes named and marked with their smallest and largest values.

    Where two points fall on the same place, the first is seen.
    """
    (left, right), (bottom, top) = _range([dot.x for dot in dots]), _range([dot.y for dot in dots])
    cells = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    for dot in reversed(dots):
        column = round((dot.x - left) / (right - left) * (_WIDTH - 1))
        row = round((top - dot.y) / (top - bottom) * (_HEIGHT - 1))
        cells[row][column] = dot.mark
    margins = [""] * _HEIGHT
    margins[0], margins[-1] = f"{top:.3g}", f"{bottom:.3g}"
    wide = max(map(len, margins))
    lines = [f"{margin:>{wide}} |{''.join(row).rstrip()}" for margin, row in zip(margins, cells, strict=True)]
    low, high = f"{left:.3g}", f"{right:.3g}"
    lines.append(f"{'':>{wide}} +{'-' * _WIDTH}")
    lines.append(f"{'':>{wide}}  {low}{x_label:^{max(_WIDTH - len(low) - len(high), 0)}}{high}")
    return "\n".join([f"{'':>{wide}}  {y_label}", *lines])


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The smallest and largest, apart even where all are equal."""
    low, high = min(values), max(values)
    spread = high - low or abs(high) or 1.0
    return (low, high) if high > low else (low - spread / 2, high + spread / 2)
