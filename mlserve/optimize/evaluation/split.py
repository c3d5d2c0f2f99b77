"""Rows for making a variant and rows for judging it: never the same ones."""

from typing import Annotated

import msgspec
import numpy as np

from mlserve.errors import DataFileError
from mlserve.model.rows import Rows

__all__ = ["Split", "split_rows"]


class Split(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How rows are divided: `held_out_share` of them, drawn with `seed`, are kept for judging alone."""

    seed: int = 0
    held_out_share: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.5

    def __str__(self) -> str:
        return f"{self.held_out_share:.0%} held out, seed {self.seed}"


def split_rows(rows: Rows, split: Split) -> tuple[Rows, Rows]:
    """The rows to calibrate, prune or distill with, and those held out; the same for the same rows and split.

    Raises DataFileError when there are too few rows for both.
    """
    count = len(rows)
    held_out = round(count * split.held_out_share)
    if not 0 < held_out < count:
        raise DataFileError(f"{rows.source} has {count} rows, too few to hold some out for judging; give at least 2")
    order = np.random.default_rng(split.seed).permutation(count)
    used, kept = sorted(order[held_out:].tolist()), sorted(order[:held_out].tolist())
    return rows.take(used), rows.take(kept)
