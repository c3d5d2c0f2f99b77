"""Pruning: weights, channels, attention heads or whole layers taken away, and the rest tuned to make up for it."""

import copy
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from mlserve.errors import Refused
from mlserve.optimize.training.fit import fit
from mlserve.optimize.training.schedule import Loss, Schedule

if TYPE_CHECKING:
    import torch

    from mlserve.optimize.training.sparsity import Masks
    from mlserve.optimize.training.trainee import Trainee

__all__ = ["Prune"]

_TUNING = Schedule()
# 12 layers * 0.25 may come out a hair below 3.
_ROUNDING = 1e-9
_WHOLE_PARTS = ("channels", "heads", "layers")


class Prune(msgspec.Struct, frozen=True, tag_field="pass", tag="prune", forbid_unknown_fields=True):
    """Takes away the share `amount` of what it says, and trains the rest by `tuning`.

    - `unstructured`: the weights of smallest magnitude, of all layers together or `per_layer`.
    - `2:4`: two of every four neighbouring weights, which is one half; GPUs from Ampere on compute it faster.
    - `channels`: of convolutions and linear layers, those of smallest norm; less is left to compute.
    - `heads`: of attention.
    - `layers`: of a stack of like layers, those that change least (`choose = "influence"`), or so that what is left is
      evenly spread (`"spacing"`).

    Tuning is towards the labels in the data, or without labels towards what the model answered before; without data
    there is none. Zeros stay zeros. Raises Refused for a model that this cannot be done to.
    """

    what: Literal["unstructured", "2:4", "channels", "heads", "layers"]
    amount: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.5
    per_layer: bool = False
    choose: Literal["influence", "spacing"] = "influence"
    tuning: Schedule = _TUNING
    seed: int = 0

    def __post_init__(self) -> None:
        if self.what == "2:4" and self.amount != 0.5:
            raise ValueError(f"amount is 0.5 for 2:4 pruning, not {self.amount}: two of every four weights go")
        if self.per_layer and self.what != "unstructured":
            raise ValueError(f"per_layer is for unstructured pruning, not for {self.what}")
        if self.choose != "influence" and self.what != "layers":
            raise ValueError(f"choose is for layers, not for {self.what}")

    @property
    def leaves_zeros(self) -> bool:
        """Whether what it does is lost when a later pass trains the same weights."""
        return self.what not in _WHOLE_PARTS

    def __call__(self, trainee: "Trainee") -> tuple[str, ...]:
        from mlserve.optimize.training.size import measure_size

        if trainee.frozen_as and not self.leaves_zeros:
            raise Refused(
                f"{self.what} cannot be taken out of {trainee.frozen_as}, which is a fixed graph; give the state dict "
                "with --model-class, or prune unstructured or 2:4"
            )
        before = measure_size(trainee)
        trainee.module.eval()
        teacher = copy.deepcopy(trainee.module) if self.tuning.epochs and _imitates(trainee) else None
        masks, done = self._take_away(trainee)
        tuned = self._tune(trainee, teacher, masks)
        came_out = self._what_is_zero(trainee) if masks else measure_size(trainee).since(before)
        return (*done, *came_out, *tuned)

    def _take_away(self, trainee: "Trainee") -> "tuple[Masks | None, tuple[str, ...]]":
        """What has to be kept zero, if anything, and what was done, in words."""
        from mlserve.optimize.training.structure import shrink

        match self.what:
            case "channels":
                return None, shrink(trainee, channels=self.amount)
            case "heads":
                return None, shrink(trainee, heads=self.amount)
            case "layers":
                return None, self._drop_layers(trainee)
            case _:
                return self._sparsify(trainee)

    def _sparsify(self, trainee: "Trainee") -> "tuple[Masks, tuple[str, ...]]":
        from mlserve.optimize.training.sparsity import largest_masks, prunable_weights, two_of_four_masks

        weights = prunable_weights(trainee.module)
        left: list[str] = []
        if self.what == "2:4":
            masks, left = two_of_four_masks(weights)
        else:
            masks = largest_masks(weights, self.amount, per_layer=self.per_layer)
        masks.apply()
        return masks, (f"left as they are, their inputs being no multiple of four: {', '.join(left)}",) if left else ()

    def _drop_layers(self, trainee: "Trainee") -> tuple[str, ...]:
        from mlserve.optimize.training.layers import block_influence, drop_layers, evenly_spaced, layer_stacks

        before = trainee.shapes()
        stacks = layer_stacks(trainee.module)
        count = max(map(len, stacks.values()), default=0)
        keep = count - max(1, int(count * self.amount + _ROUNDING))
        kept, why = evenly_spaced(count, keep), "evenly spread"
        if self.choose == "influence" and trainee.rows is not None and len(stacks) == 1:
            influence = block_influence(trainee, next(iter(stacks.values())))
            kept = sorted(sorted(range(count), key=lambda number: -influence[number])[:keep])
            why = "those that change most what passes through"
        drop_layers(trainee.module, kept)
        if trainee.shapes() != before:
            raise Refused(f"without some of its layers the outputs have other shapes: {before} -> {trainee.shapes()}")
        return (f"layers: {count} -> {keep}; kept {', '.join(str(number + 1) for number in kept)}, {why}",)

    def _tune(self, trainee: "Trainee", teacher: "torch.nn.Module | None", masks: "Masks | None") -> tuple[str, ...]:
        """Trains what is left."""
        if not self.tuning.epochs:
            return ("not fine-tuned: epochs = 0",)
        if trainee.rows is None:
            return ("no data: not fine-tuned",)
        report = fit(
            trainee.module,
            trainee.rows,
            _loss(trainee, teacher),
            self.tuning,
            seed=self.seed,
            checkpoint=trainee.checkpoints / "tuning.pt" if trainee.checkpoints else None,
            on_step=trainee.on_step,
            after_step=masks.apply if masks else None,
        )
        towards = "the labels" if teacher is None else "the answers of the model as it was"
        loss = f"loss {report.first_loss:.3g} -> {report.best_loss:.3g}" if report.validation_rows else "no validation"
        rows = f"{report.train_rows} rows, {report.epochs} epochs"
        return (f"fine-tuned towards {towards} on {rows}: {loss}", *report.notes)

    def _what_is_zero(self, trainee: "Trainee") -> tuple[str, ...]:
        from mlserve.optimize.training.sparsity import count_of, prunable_weights, zero_share

        weights = prunable_weights(trainee.module)
        faster = "; TensorRT on GPUs from Ampere on is faster by this pattern" if self.what == "2:4" else ""
        return (
            f"{zero_share(weights):.1%} of {count_of(weights):,} weights are zero",
            f"zeros are multiplied like other numbers by onnxruntime: smaller when compressed, not faster{faster}",
        )


def _imitates(trainee: "Trainee") -> bool:
    """Whether to tune towards the model as it was: without labels, and for embeddings, which have no true ones."""
    import torch

    from mlserve.optimize.training.losses import answer_kind

    if trainee.rows is None or trainee.rows.labels is None:
        return trainee.rows is not None
    with torch.no_grad():
        outputs = trainee.answer(trainee.module, trainee.example(2))
    return all(answer_kind(name, answer, task=trainee.task) == "embedding" for name, answer in outputs.items())


def _loss(trainee: "Trainee", teacher: "torch.nn.Module | None") -> Loss:
    """The loss of a batch: against its labels, or against what `teacher` answers."""
    import torch

    from mlserve.optimize.training.losses import answer_kind, imitation_loss, task_loss

    def against_labels(
        inputs: dict[str, torch.Tensor], labels: torch.Tensor | None, _indices: list[int]
    ) -> torch.Tensor:
        assert labels is not None
        return task_loss(trainee.answer(trainee.module, inputs), labels, trainee.task)

    def against_teacher(
        inputs: dict[str, torch.Tensor], _labels: torch.Tensor | None, _indices: list[int]
    ) -> torch.Tensor:
        assert teacher is not None
        with torch.no_grad():
            wanted = trainee.answer(teacher, inputs)
        kinds = {name: answer_kind(name, answer, task=trainee.task) for name, answer in wanted.items()}
        found = trainee.answer(trainee.module, inputs)
        return imitation_loss(found, wanted, kinds=kinds, mask=inputs.get("attention_mask"))

    return against_labels if teacher is None else against_teacher
