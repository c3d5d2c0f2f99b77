"""Training passes, one after another, on a model that has just been loaded."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch

from mlserve.errors import UsageError
from mlserve.model.processing import ImageInput
from mlserve.model.rows import Rows, read_rows
from mlserve.model.tensors import TensorSpec
from mlserve.optimize.evaluation.split import split_rows
from mlserve.optimize.importers.inputs import Inputs
from mlserve.optimize.importers.original import TorchOriginal, named_outputs
from mlserve.optimize.importers.request import ImportRequest
from mlserve.optimize.training import Prune, TrainingPass
from mlserve.optimize.training.trainee import Trainee, thaw

__all__ = ["Notes", "run_passes", "train", "tuning_rows"]

Notes = tuple[tuple[str, ...], ...]
"""What each pass did, in words."""


def train(
    original: TorchOriginal, inputs: Inputs, request: ImportRequest, on_step: Callable[[str], None]
) -> tuple[TorchOriginal, Notes]:
    """`original` after every pass of `request.training`, and what each of them did.

    The rows of `request.data` that are held out are not shown to any. Raises UsageError for an order of passes that
    makes no sense, DataFileError for rows that do not fit, and Refused for a pass that this model cannot take.
    """

    def call(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        arguments, keywords = original.arguments(tensors)
        return named_outputs(module(*arguments, **keywords))

    trainee = Trainee(
        original.module,
        call,
        inputs.specs,
        rows=tuning_rows(request, inputs.specs),
        sizes=inputs.sizes,
        frozen_as=_frozen_as(original),
        on_step=on_step,
    )
    thaw(original.module, original.frozen)
    notes = run_passes(trainee, request)
    return original.with_module(trainee.module), notes


def run_passes(trainee: Trainee, request: ImportRequest) -> Notes:
    """Does `request.training` to `trainee`; says what each pass did. Raises as `train` does."""
    _check_order(request.training)
    notes = []
    for number, one_pass in enumerate(request.training, 1):
        name = type(one_pass).__name__.lower()
        trainee.on_step(f"{name} ({number} of {len(request.training)})")
        if request.checkpoints:
            trainee.checkpoints = Path(request.checkpoints) / f"{number}-{name}"
        notes.append(one_pass(trainee))
        trainee.module.eval()
    return tuple(notes)


def tuning_rows(
    request: ImportRequest, specs: Sequence[TensorSpec], tokenizer: Path | None = None, images: ImageInput | None = None
) -> Rows | None:
    """Those of the user's rows that may be learnt from; None when there are no data."""
    if not request.data:
        return None
    return split_rows(read_rows(Path(request.data), specs, tokenizer, images), request.split)[0]


def _frozen_as(original: TorchOriginal) -> str:
    if original.program is not None:
        return "a torch.export program"
    return "TorchScript" if original.scripted else ""


def _check_order(passes: Sequence[TrainingPass]) -> None:
    """Zeros that a later pass would train away, or that it would cut differently, are work for nothing."""
    for one_pass, following in pairwise(passes):
        if isinstance(one_pass, Prune) and one_pass.leaves_zeros:
            raise UsageError(
                f"prune ({one_pass.what}) stands before {type(following).__name__.lower()}, which would fill its zeros "
                "again; put it last"
            )
