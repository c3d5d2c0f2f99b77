"""Rows for making a variant and rows for judging it: never the same ones."""

from typing import Annotated

import msgspec
import numpy as np

from mlserve.errors import DataFileError
from mlserve.model.rows import Rows
from mlserve.model.tensors import Array
from mlserve.stats import Floats

__all__ = ["Split", "split_rows"]


class Split(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How rows are divided: `held_out_share` of them, drawn with `seed`, are kept for judging alone."""

    seed: int = 0
    held_out_share: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.5

    def __str__(self) -> str:
        return f"{self.held_out_share:.0%} held out, seed {self.seed}"

    def described(self, held_out_rows: int, rows: int) -> str:
        """In words: `150 of 300 rows held out, seed 0`."""
        return f"{held_out_rows} of {rows} rows held out, seed {self.seed}"


def split_rows(rows: Rows, split: Split) -> tuple[Rows, Rows]:
    """The rows to calibrate, prune or distill with, and those held out; the same for the same rows and split.

    Labels that are classes (whole numbers, truths, texts) are divided class by class: each has its share in both, and a
    class of two rows or more is never on one side alone. Raises DataFileError when there are too few rows for both.
    """
    count = len(rows)
    held_out = round(count * split.held_out_share)
    if not 0 < held_out < count:
        raise DataFileError(f"{rows.source} has {count} rows, too few to hold some out for judging; give at least 2")
    order = np.random.default_rng(split.seed).permutation(count)
    kept = np.zeros(count, bool)
    for group, wanted in _groups(rows.labels, order, held_out):
        kept[group[:wanted]] = True
    return rows.take(np.flatnonzero(~kept).tolist()), rows.take(np.flatnonzero(kept).tolist())


def _groups(labels: Array | None, order: Array, held_out: int) -> list[tuple[Array, int]]:
    """Rows that are divided together, in the order they are drawn, and how many of each group are held out.

    Those of one class are a group, and so are all rows that are the only one of their class.
    """
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "biuOUS":
        return [(order, held_out)]
    texts = np.array([str(label) for label in labels[order].tolist()])
    _, class_of, sizes = np.unique(texts, return_inverse=True, return_counts=True)
    class_of = np.where(sizes[class_of] == 1, -1, class_of)
    groups = [order[class_of == number] for number in np.unique(class_of).tolist()]
    shared = [bool(class_of.min() >= 0) or position > 0 for position in range(len(groups))]
    wanted = _quotas(np.array([len(group) for group in groups], np.float64), held_out)
    return [
        (group, min(max(number, 1), len(group) - 1) if is_class else number)
        for group, number, is_class in zip(groups, wanted, shared, strict=True)
    ]


def _quotas(sizes: Floats, seats: int) -> list[int]:
    """`seats` shared out in proportion to `sizes`: whole parts first, the rest to the largest remainders (Hamilton)."""
    exact = sizes * seats / sizes.sum()
    quotas = np.floor(exact).astype(np.int64)
    largest = np.argsort(quotas - exact, kind="stable")[: seats - int(quotas.sum())]
    quotas[largest] += 1
    found: list[int] = quotas.tolist()
    return found
