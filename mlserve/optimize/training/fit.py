"""Training by mini-batches."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlserve.model.rows import Rows
from mlserve.optimize.training.schedule import FitReport, Loss, Schedule

if TYPE_CHECKING:
    import torch

__all__ = ["fit", "split_validation"]

_FEWEST_ROWS = 2


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
