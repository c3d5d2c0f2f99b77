"""The loop that trains: epochs of mini-batches, validation, early stopping, checkpoints."""

import time
from collections.abc import Callable, Iterator
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from mlserve.errors import Refused
from mlserve.model.rows import Rows, TextRows
from mlserve.model.tensors import Array
from mlserve.optimize.training.checkpoints import drop_checkpoint, fingerprint_of, read_checkpoint, write_checkpoint
from mlserve.optimize.training.schedule import FitReport, Loss, Schedule, learning_rate_share
from mlserve.units import format_duration

__all__ = ["Loop", "as_tensors", "batches", "grouped", "shuffled"]

CHECKPOINT_EVERY_S = 20.0
# Writing checkpoints may take this share of the time, so that short epochs of a large model do not spend it on disk.
_MOST_WRITING = 0.05
_TOLD_EVERY_S = 1.0
_LEAST_LEFT_S = 0.1
_LARGEST_GRADIENT = 1.0
_SORTED_GROUPS = 64
_NO_LOSS = float("nan")

Weights = dict[str, torch.Tensor]


class _Progress(msgspec.Struct):
    """Where training is. `batch` and `loss_sum` belong to the running `epoch` (the first is 1); `spent_s` to all."""

    epoch: int = 1
    batch: int = 0
    loss_sum: float = 0.0
    spent_s: float = 0.0
    first_loss: float = _NO_LOSS
    best_loss: float = float("inf")
    best_epoch: int = 0


class Loop:
    """Trains one module; made by `fit`, which says what it does.

    Every batch and every dropout follows from the seed and the number of the step, so that a training that was
    interrupted goes on as if it had not been.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        loss: Loss,
        rows: Rows,
        train: list[int],
        validation: list[int],
        schedule: Schedule,
        seed: int,
    ) -> None:
        self.module, self.loss, self.rows, self.train, self.validation = module, loss, rows, train, validation
        self.schedule, self.seed = schedule, seed
        self.progress, self.best = _Progress(), _copied(module)
        self.batches = -(-len(train) // schedule.batch_rows)
        self.notes: list[str] = []
        self._told_s = self._written_s = 0.0
        self._writing_s = 0.0

    def run(
        self, checkpoint: Path | None, on_step: Callable[[str], None], after_step: Callable[[], None] | None
    ) -> FitReport:
        """Trains to the end, or to where the validation loss no longer falls."""
        self._checkpoint, self._on_step = checkpoint, on_step
        with _own_randomness():
            self._begin()
            while self.progress.epoch <= self.schedule.epochs and not self._stalled():
                self._epoch(after_step)
        self.module.load_state_dict(self.best)
        self.module.eval()
        if self._checkpoint is not None:
            drop_checkpoint(self._checkpoint)
        return self._report()

    def _begin(self) -> None:
        self.optimizer = _optimizer(self.module, self.schedule)
        self.fingerprint = fingerprint_of(
            (self.schedule, self.seed, self.rows.source, len(self.rows)), self.module.state_dict()
        )
        state, why = read_checkpoint(self._checkpoint, self.fingerprint) if self._checkpoint else (None, "")
        if why:
            self._note(why)
        if state is not None:
            self._restore(state)
            self._note(f"went on from a checkpoint in epoch {self.progress.epoch}")
        elif self.schedule.epochs:
            self.progress.first_loss = self.progress.best_loss = self._validate()
        self._written_s = time.monotonic()
        self._started_s = self._written_s - self.progress.spent_s

    def _stalled(self) -> bool:
        return bool(self.validation) and (
            self.progress.epoch - 1 - self.progress.best_epoch >= self.schedule.patience_epochs
        )

    def _epoch(self, after_step: Callable[[], None] | None) -> None:
        progress = self.progress
        self.module.train()
        groups = shuffled(self.rows, self.train, self.schedule.batch_rows, (self.seed, progress.epoch))
        for indices, inputs, labels in batches(self.rows, groups[progress.batch :]):
            value = self._step(inputs, labels, indices)
            if after_step is not None:
                after_step()
            progress.batch += 1
            progress.loss_sum += value * len(indices)
            self._tell()
            if time.monotonic() - self._written_s >= CHECKPOINT_EVERY_S:
                self._write()
        validation = self._validate()
        if not self.validation or validation < progress.best_loss:
            progress.best_loss, progress.best_epoch, self.best = validation, progress.epoch, _copied(self.module)
        self._tell(validation)
        progress.epoch, progress.batch, progress.loss_sum = progress.epoch + 1, 0, 0.0
        if (time.monotonic() - self._written_s) * _MOST_WRITING >= self._writing_s:
            self._write()

    def _step(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor | None, indices: list[int]) -> float:
        step = (self.progress.epoch - 1) * self.batches + self.progress.batch
        share = learning_rate_share(step, self.schedule.epochs * self.batches, self.schedule.warmup_share)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate * share
        torch.manual_seed((self.seed << 32) + step)
        self.optimizer.zero_grad(set_to_none=True)
        value = self._loss(inputs, labels, indices)
        try:
            value.backward()
        except RuntimeError as error:
            raise Refused(f"the model cannot be trained: {_first_line(error)}") from error
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), _LARGEST_GRADIENT)
        self.optimizer.step()
        return float(value.detach())

    def _validate(self) -> float:
        """The mean loss over the validation rows in inference mode; NaN when there are none."""
        if not self.validation:
            return _NO_LOSS
        self.module.eval()
        total = 0.0
        with torch.no_grad():
            for indices, inputs, labels in batches(self.rows, grouped(self.validation, self.schedule.batch_rows)):
                total += float(self._loss(inputs, labels, indices)) * len(indices)
        return total / len(self.validation)

    def _loss(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor | None, indices: list[int]) -> torch.Tensor:
        try:
            value = self.loss(inputs, labels, indices)
        except (RuntimeError, ValueError, IndexError) as error:  # what torch raises for inputs a layer cannot take
            raise Refused(f"the model cannot be trained on {self.rows.source}: {_first_line(error)}") from error
        if not torch.isfinite(value.detach()):
            raise Refused(
                f"training broke down in epoch {self.progress.epoch}: the loss is {float(value.detach())} at a "
                f"learning rate of {self.schedule.learning_rate:g}; try {self.schedule.learning_rate / 10:g}"
            )
        return value

    def _tell(self, validation: float | None = None) -> None:
        """Says where training is: at the end of an epoch, and at most every second within one."""
        now_s, progress = time.monotonic(), self.progress
        progress.spent_s = now_s - self._started_s
        if validation is None and now_s - self._told_s < _TOLD_EVERY_S:
            return
        self._told_s = now_s
        seen = len(self.train) if progress.batch == self.batches else progress.batch * len(self.train) // self.batches
        done = (progress.epoch - 1) * self.batches + progress.batch
        left_s = progress.spent_s / done * (self.schedule.epochs * self.batches - done)
        words = [f"epoch {progress.epoch}/{self.schedule.epochs}", f"loss {progress.loss_sum / max(seen, 1):.4g}"]
        if validation is not None and self.validation:
            words.append(f"validation {validation:.4g}")
        if left_s >= _LEAST_LEFT_S:
            words.append(f"{format_duration(left_s)} left")
        self._on_step(", ".join(words))

    def _note(self, note: str) -> None:
        self.notes.append(note)
        self._on_step(note)

    def _write(self) -> None:
        """Writes the checkpoint. Where that cannot be done, training goes on without, and says so."""
        if self._checkpoint is None:
            return
        began_s = time.monotonic()
        state = {
            "progress": msgspec.to_builtins(self.progress),
            "weights": self.module.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
        }
        try:
            write_checkpoint(self._checkpoint, self.fingerprint, state)
        except (OSError, RuntimeError) as error:  # torch tells of a full disk with the latter
            self._note(f"no checkpoint can be written ({_first_line(error)}): what is interrupted starts over")
            self._checkpoint = None
        self._written_s = time.monotonic()
        self._writing_s = self._written_s - began_s

    def _restore(self, state: dict[str, Any]) -> None:
        self.progress = _Progress(**state["progress"])
        self.module.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = state["best"]

    def _report(self) -> FitReport:
        return FitReport(
            epochs=self.progress.epoch - 1,
            best_epoch=self.progress.best_epoch,
            first_loss=self.progress.first_loss,
            best_loss=self.progress.best_loss if self.validation and self.schedule.epochs else _NO_LOSS,
            train_rows=len(self.train),
            validation_rows=len(self.validation),
            notes=tuple(self.notes),
        )


def batches(
    rows: Rows, groups: list[list[int]]
) -> Iterator[tuple[list[int], dict[str, torch.Tensor], torch.Tensor | None]]:
    """Row numbers, inputs and labels of each group of `rows`."""
    ordered = rows.take(list(chain.from_iterable(groups)))
    stops = list(accumulate(map(len, groups)))
    for group, stop in zip(groups, stops, strict=True):
        start = stop - len(group)
        labels = None if ordered.labels is None else _label_tensor(ordered.labels[start:stop], rows.source)
        yield group, as_tensors(ordered.batch(start, stop)), labels


def grouped(numbers: list[int], most: int) -> list[list[int]]:
    """`numbers` in their order, in groups of at most `most` and of nearly one size: a rest of a single row would break
    batch normalization.

    `grouped([1, 2, 3, 4, 5], 4)`  # [[1, 2], [3, 4, 5]]
    """
    cuts = np.linspace(0, len(numbers), -(-len(numbers) // most) + 1).round().astype(int).tolist()
    return [numbers[start:stop] for start, stop in pairwise(cuts)]


def shuffled(rows: Rows, numbers: list[int], most: int, seed: tuple[int, int]) -> list[list[int]]:
    """`numbers` in random order, `grouped`. Texts of like length come together, so that batches hold little padding:
    they are sorted within stretches of 64 groups, and then the groups are shuffled.
    """
    rng = np.random.default_rng(seed)
    groups = grouped(rng.permutation(numbers).tolist(), most)
    if not isinstance(rows, TextRows):
        return groups
    by_length: list[list[int]] = []
    for start in range(0, len(groups), _SORTED_GROUPS):
        stretch = groups[start : start + _SORTED_GROUPS]
        in_order = iter(sorted(chain.from_iterable(stretch), key=lambda number: len(rows.texts[number])))
        by_length.extend(list(islice(in_order, len(group))) for group in stretch)
    return [by_length[position] for position in rng.permutation(len(by_length)).tolist()]


def as_tensors(inputs: dict[str, Array]) -> dict[str, torch.Tensor]:
    """The same values as tensors."""
    return {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}


def _label_tensor(labels: Array, source: str) -> torch.Tensor:
    if labels.dtype.kind not in "biuf":
        raise Refused(f"{source}: labels are text; training needs class numbers from 0, or values to predict")
    return torch.from_numpy(labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64))


def _optimizer(trained: torch.nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); biases and normalization do not decay."""
    weights = [weight for weight in trained.parameters() if weight.requires_grad]
    if not weights:
        raise Refused("the model cannot be trained: it has no weights that change")
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": schedule.weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=schedule.learning_rate)


def _copied(trained: torch.nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in trained.state_dict().items()}


def _own_randomness() -> Any:
    """Leaves the caller's random numbers as they were."""
    return torch.random.fork_rng(devices=[])


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
