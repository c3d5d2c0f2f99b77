"""Whether two models give the same answers, up to the rounding that another order of additions brings."""

import msgspec
import numpy as np
import numpy.typing as npt

from mlserve.model.tensors import Array, Tensors

__all__ = ["TOLERANCE", "Difference", "largest_difference"]

# Float32 sums in another order differ by 1e-6 to 1e-4 of the output's size; a wrong operator differs by far more.
TOLERANCE = 1e-3


class Difference(msgspec.Struct, frozen=True):
    """How far one output is from what was expected: the largest error relative to the output's own size.

    Infinite when shapes differ, values are missing, or integers, truths or texts are not all equal.
    """

    output: str
    relative: float
    reason: str = ""

    @property
    def acceptable(self) -> bool:
        """Whether rounding explains it."""
        return self.relative <= TOLERANCE

    def __str__(self) -> str:
        return self.reason or (
            f"output '{self.output}' differs by {self.relative:.2g} of its size (at most {TOLERANCE:g} is rounding)"
        )


def largest_difference(expected: Tensors, found: Tensors) -> Difference:
    """The worst output of `found` against `expected`; both name -> array [rows, ...]."""
    missing = [name for name in expected if name not in found]
    if missing:
        return Difference(missing[0], np.inf, f"output '{missing[0]}' is missing")
    return max(
        (_difference(name, array, found[name]) for name, array in expected.items()),
        key=lambda difference: difference.relative,
    )


def _difference(name: str, expected: Array, found: Array) -> Difference:
    if expected.shape != found.shape:
        reason = f"output '{name}' has shape {list(found.shape)}, expected {list(expected.shape)}"
        return Difference(name, np.inf, reason)
    if expected.dtype.kind != "f":
        unequal = float(np.mean(expected != found)) if expected.size else 0.0
        return Difference(
            name, np.inf if unequal else 0.0, f"{unequal:.0%} of output '{name}' differs" if unequal else ""
        )
    one, other = expected.astype(np.float64), found.astype(np.float64)
    if not np.array_equal(np.isfinite(one), np.isfinite(other)):
        return Difference(name, np.inf, f"output '{name}' is not finite where it should be, or the other way round")
    finite = np.isfinite(one)
    return Difference(name, _relative(one[finite], other[finite]))


def _relative(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    if not one.size:
        return 0.0
    # Below 1e-3 the absolute error counts: an output that is all but zero has no size to compare with.
    return float(np.max(np.abs(one - other)) / max(float(np.max(np.abs(one))), 1e-3))
