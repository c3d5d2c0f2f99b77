"""Training passes on a model that transformers or sentence-transformers has loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mlserve.model.rows import TOKENIZER_FILE
from mlserve.model.tensors import TensorSpec
from mlserve.optimize.importers.pretrained_inputs import image_form
from mlserve.optimize.importers.request import ImportRequest
from mlserve.optimize.training.trainee import Trainee, thaw
from mlserve.optimize.training.training import Notes, run_passes, tuning_rows

__all__ = ["train_pretrained"]

_SENTENCE = "sentence_embedding"


def train_pretrained(
    model: Any, library: str, task: str, request: ImportRequest, on_step: Callable[[str], None]
) -> tuple[Any, Notes]:
    """`model` after every pass of `request.training`, in inference mode, and what each of them did.

    It is called with the inputs that optimum exports it with, and its answers are those of the exported file. Raises as
    `training.train` does.
    """
    source = Path(request.source)
    inputs, outputs = _signature(model, library, task)
    images, _ = image_form(source)

    def call(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        answers = module(tensors) if library == "sentence_transformers" else module(**tensors)
        return {name: answers[name] for name in outputs}

    trainee = Trainee(
        model,
        call,
        inputs,
        rows=tuning_rows(request, inputs, source / TOKENIZER_FILE, images),
        task=task,
        sizes={"height": images.height, "width": images.width} if images else None,
        on_step=on_step,
    )
    thaw(model)
    notes = run_passes(trainee, request)
    return trainee.module.eval().requires_grad_(requires_grad=False), notes


def _signature(model: Any, library: str, task: str) -> tuple[list[TensorSpec], list[str]]:
    """What optimum's configuration for exporting this model says it takes, and gives.

    Rows and lengths are open, and so are an image's sides unless the model itself is of one size: those of optimum's
    example mean nothing.
    """
    from optimum.exporters.onnx import model_configs  # noqa: F401  # makes the configurations known
    from optimum.exporters.tasks import TasksManager

    TasksManager.standardize_model_attributes(model)
    config = TasksManager.get_exporter_config_constructor("onnx", model, task=task, library_name=library)(model.config)
    made_up = config.generate_dummy_inputs(framework="pt")
    vocabulary = getattr(model.config, "vocab_size", None)
    open_sides = () if getattr(model.config, "image_size", None) else ("height", "width")
    specs = []
    for name, axes in config.inputs.items():
        tensor = made_up[name]
        dims = tuple(
            axes[axis] if axis == 0 or "sequence" in axes.get(axis, "") or axes.get(axis) in open_sides else size
            for axis, size in enumerate(tensor.shape)
        )
        dtype = str(tensor.dtype).removeprefix("torch.")
        specs.append(TensorSpec(name, dtype, dims, vocabulary if name == "input_ids" else None))
    return specs, [_SENTENCE] if library == "sentence_transformers" else list(config.outputs)
