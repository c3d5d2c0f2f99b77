"""How large requests are: rows that are mixed, lengths of sequences, sides of images. Their text forms, and what of
each is sent how often.

Sizes are spread, not drawn: of n bodies the i-th has the size at the quantile (i + 0.5) / n, so that even a few bodies
have the distribution that was asked for.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from statistics import NormalDist

import msgspec
import numpy as np
import numpy.typing as npt

from mlserve.errors import UsageError
from mlserve.runs.load import RowShare
from mlserve.units import parse_fraction

__all__ = [
    "Lengths",
    "LogNormalLengths",
    "MixedLengths",
    "UniformLengths",
    "mixed_order",
    "parse_image_sizes",
    "parse_lengths",
    "parse_row_mix",
]

_LONGEST, _MOST_SIDE = 65_536, 8192
_LENGTH_FORMS = (
    "8..128 (any between, all as often), 16:0.5,64:0.3,256:0.2 (length:share) or lognormal:MEAN,SPREAD (the mean and "
    "the standard deviation of the lengths)"
)
# A cycle of the order is as short as the shares allow, and no longer than this by them alone.
_LONGEST_CYCLE = 10_000


class UniformLengths(msgspec.Struct, frozen=True, tag="uniform"):
    """Every length from `least` to `most`, all as often."""

    least: int
    most: int

    def at(self, quantile: float) -> int:
        """The length that the share `quantile`, in (0, 1), of all is at most."""
        return self.least + int(quantile * (self.most - self.least + 1))

    def __str__(self) -> str:
        return f"{self.least} to {self.most}"


class MixedLengths(msgspec.Struct, frozen=True, tag="mixed"):
    """A few lengths and their shares, which add up to 1."""

    lengths: tuple[int, ...]
    shares: tuple[float, ...]

    def at(self, quantile: float) -> int:
        """As for UniformLengths."""
        place = int(np.searchsorted(np.cumsum(self.shares), quantile))
        return self.lengths[min(place, len(self.lengths) - 1)]

    def __str__(self) -> str:
        return ", ".join(map(str, self.lengths))


class LogNormalLengths(msgspec.Struct, frozen=True, tag="lognormal"):
    """A few long ones among many short: `mean` and standard deviation `spread`, both as lengths."""

    mean: float
    spread: float

    def at(self, quantile: float) -> int:
        """As for UniformLengths.

        The logarithm is normal about ln(mean) - v / 2 with the variance v = ln(1 + (spread / mean)²) (Johnson, Kotz,
        Balakrishnan, Continuous Univariate Distributions, ch. 14).
        """
        variance = math.log1p((self.spread / self.mean) ** 2)
        normal = NormalDist(math.log(self.mean) - variance / 2, math.sqrt(variance))
        return min(max(round(math.exp(normal.inv_cdf(quantile))), 1), _LONGEST)

    def __str__(self) -> str:
        return f"about {self.mean:g}"


Lengths = UniformLengths | MixedLengths | LogNormalLengths


def parse_lengths(text: str) -> Lengths:
    """`"8..128"`, `"64"`, `"16:0.5,64:0.3,256:0.2"` or `"lognormal:64,40"`. Raises UsageError for another form."""
    try:
        if text.startswith("lognormal:"):
            mean, spread = (float(part) for part in text.removeprefix("lognormal:").split(","))
            if not (1 <= mean <= _LONGEST and 0 < spread <= _LONGEST):
                raise ValueError(f"the mean is 1 to {_LONGEST}, the spread above 0")
            return LogNormalLengths(mean, spread)
        if ".." in text:
            least, most = (int(part) for part in text.split(".."))
            if not 1 <= least <= most <= _LONGEST:
                raise ValueError(f"lengths are 1 to {_LONGEST}, the smaller first")
            return UniformLengths(least, most)
        shares = _shares(text, _LONGEST)
    except ValueError as error:
        raise UsageError(f"--lengths {text!r} cannot be read ({error}); write {_LENGTH_FORMS}") from error
    return MixedLengths(tuple(shares), tuple(shares.values()))


def parse_row_mix(text: str) -> tuple[RowShare, ...]:
    """`"1:0.7,8:0.2,32:0.1"`, or `"1,8,32"` for equal shares, or one number; smallest first.

    Raises UsageError for another form.
    """
    try:
        shares = _shares(text, 1_000_000)
    except ValueError as error:
        raise UsageError(
            f"--batch {text!r} cannot be read ({error}); write 8, or 1,8,32 (all as often), or 1:0.7,8:0.2,32:0.1 "
            "(rows:share)"
        ) from error
    return tuple(RowShare(rows, share) for rows, share in sorted(shares.items()))


def parse_image_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """`"224,512x384"` -> `((224, 224), (512, 384))`: height and width. Raises UsageError for another form."""
    sizes = []
    for part in text.split(","):
        sides = part.strip().split("x")
        if len(sides) > 2 or not all(side.isdecimal() and 1 <= int(side) <= _MOST_SIDE for side in sides):
            raise UsageError(
                f"--image-sizes {text!r} cannot be read; write sides or HEIGHTxWIDTH of 1 to {_MOST_SIDE} pixels, such "
                "as 224,512x384"
            )
        sizes.append((int(sides[0]), int(sides[-1])))
    return tuple(sizes)


def mixed_order(shares: Sequence[float], bodies: Sequence[Sequence[int]], seed: int) -> npt.NDArray[np.int64]:
    """In which order requests are sent, where kind i makes up `shares[i]` of them by the requests `bodies[i]` in turn.

    One cycle: it holds the shares exactly where they are parts of 10,000 or fewer, and every body at least once. Its
    kinds are shuffled by `seed`.
    """
    counts = _whole_parts(shares)
    times = max(math.ceil(len(each) / count) for each, count in zip(bodies, counts, strict=True))
    order = np.concatenate([np.resize(each, count * times) for each, count in zip(bodies, counts, strict=True)])
    if len(bodies) == 1:
        return order
    kinds = np.repeat(np.arange(len(bodies)), np.array(counts) * times)
    np.random.default_rng(seed).shuffle(kinds)
    # Of each kind its bodies in turn, wherever the kind comes.
    shuffled = np.empty_like(order)
    shuffled[np.argsort(kinds, kind="stable")] = order
    return shuffled


def _whole_parts(shares: Sequence[float]) -> list[int]:
    """How often each kind comes in the shortest cycle, at least once: the largest remainders get what is left over."""
    parts = [Fraction(share).limit_denominator(_LONGEST_CYCLE) for share in shares]
    exact = all(abs(part - share) < 1e-9 for part, share in zip(parts, shares, strict=True))
    cycle = min(math.lcm(*(part.denominator for part in parts)), _LONGEST_CYCLE) if exact else _LONGEST_CYCLE
    wanted = np.array(shares) / sum(shares) * cycle
    counts = np.floor(wanted + 1e-9).astype(int)
    for place in np.argsort(counts - wanted, kind="stable")[: cycle - counts.sum()]:
        counts[place] += 1
    return [max(count, 1) for count in counts.tolist()]


def _shares(text: str, most: int) -> dict[int, float]:
    """`"1:0.7,8:0.3"` -> `{1: 0.7, 8: 0.3}`, in the order given; equal shares where none is named."""
    parts = [part.partition(":") for part in text.split(",")]
    if len({bool(colon) for _, colon, _ in parts}) > 1:
        raise ValueError("some have a share and some have none")
    sizes = [int(size) for size, _, _ in parts]
    if not all(1 <= size <= most for size in sizes):
        raise ValueError(f"sizes are whole numbers from 1 to {most:,}")
    if len(set(sizes)) < len(sizes):
        raise ValueError("a size is given twice")
    if not parts[0][1]:
        return dict.fromkeys(sizes, 1 / len(sizes))
    try:
        shares = [parse_fraction(share) for _, _, share in parts]
    except UsageError as error:
        raise ValueError(str(error)) from error
    total = sum(shares)
    if not (all(shares) and 0.99 <= total <= 1.01):
        raise ValueError(f"the shares add up to {total:g}; above zero each, they add up to 1")
    return {size: share / total for size, share in zip(sizes, shares, strict=True)}
