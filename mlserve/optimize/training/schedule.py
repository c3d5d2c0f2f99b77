"""How a training is to go, and what came of it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["FitReport", "Loss", "Schedule", "learning_rate_share"]

Loss = Callable[[dict[str, "torch.Tensor"], "torch.Tensor | None", list[int]], "torch.Tensor"]
"""A batch's named inputs [rows, ...], its labels [rows] if there are any, and the numbers of its rows -> one number."""


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long and how fast to train; `validation_share` of the rows decide when to stop."""

    epochs: Annotated[int, msgspec.Meta(ge=0)] = 20
    batch_rows: Annotated[int, msgspec.Meta(ge=1)] = 32
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
    warmup_share: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.1
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 0.01
    patience_epochs: Annotated[int, msgspec.Meta(ge=1)] = 5
    validation_share: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.1


class FitReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a training did. Losses are means over rows; NaN where there were no rows to take them on.

    `best_epoch` is the one whose weights were kept: 0 when no epoch was better than no training.
    """

    epochs: int
    best_epoch: int
    first_loss: float
    best_loss: float
    train_rows: int
    validation_rows: int
    notes: tuple[str, ...] = ()


def learning_rate_share(step: int, steps: int, warmup_share: float) -> float:
    """The share of the learning rate at `step` of `steps`: up in a line, then down along half a cosine.

    Loshchilov and Hutter 2017 (SGDR), with one period and no restart.
    """
    warmup = round(steps * warmup_share)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + float(np.cos(np.pi * (step - warmup) / max(steps - warmup, 1))))
