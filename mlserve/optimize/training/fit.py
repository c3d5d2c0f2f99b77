"""Training by mini-batches: how long, how fast, when to stop, and what came of it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np

from mlserve.model.rows import Rows

if TYPE_CHECKING:
    import torch

__all__ = ["FitReport", "Loss", "Schedule", "fit", "learning_rate_share", "split_validation"]

Loss = Callable[[dict[str, "torch.Tensor"], "torch.Tensor | None", list[int]], "torch.Tensor"]
"""A batch's named inputs [rows, ...], its labels [rows] if there are any, and the numbers of its rows -> one number."""

_FEWEST_ROWS = 2


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


def fit(
    module: "torch.nn.Module",
    rows: Rows,
    loss: Loss,
    schedule: Schedule,
    *,
    seed: int,
    checkpoint: Path | None,
    on_step: Callable[[str], None],
    after_step: Callable[[], None] | None = None,
) -> FitReport:
    """Trains `module` in place to a small `loss` on `rows`, and leaves it in eval mode with the best weights it had.

    Best is by the loss on the validation rows; without any, it is the last epoch. The same seed, rows and number of
    threads give the same weights. `after_step` is called after every step of the optimizer (masks are put back there).

    `checkpoint` is a file that is written as training goes on and removed when it has ended well. Where it exists and
    was written by this very training, that goes on from there; any other is started over.

    Raises Refused when the loss is not finite, or the module cannot be trained.
    """
    from mlserve.optimize.training.loop import Loop

    train, validation = split_validation(len(rows), schedule.validation_share, seed)
    loop = Loop(module, loss, rows, train, validation, schedule, seed)
    return loop.run(checkpoint, on_step, after_step)


def split_validation(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """The numbers of the rows to train on, and of those that decide when to stop; the same for the same arguments.

    `split_validation(100, 0.1, seed=0)`  # 90 and 10; of two rows or more, each side has one unless the share is 0
    """
    if count < _FEWEST_ROWS or not share:
        return list(range(count)), []
    held_out = min(max(1, round(count * share)), count - 1)
    order = np.random.default_rng(seed).permutation(count)
    return sorted(order[held_out:].tolist()), sorted(order[:held_out].tolist())


def learning_rate_share(step: int, steps: int, warmup_share: float) -> float:
    """The share of the learning rate at `step` of `steps`: up in a line, then down along half a cosine.

    Loshchilov and Hutter 2017 (SGDR), with one period and no restart.
    """
    warmup = round(steps * warmup_share)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + float(np.cos(np.pi * (step - warmup) / max(steps - warmup, 1))))
