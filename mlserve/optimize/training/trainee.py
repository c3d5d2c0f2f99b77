"""A PyTorch model while it is changed: the module, how it is called, and what it may learn from."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from mlserve.errors import Refused
from mlserve.model.rows import Rows
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import TensorSpec
from mlserve.optimize.importers.shapes import Sizes, default_sizes, fix

__all__ = ["Call", "Trainee", "thaw"]

Call = Callable[[torch.nn.Module, dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]
"""How a module is run on named inputs; returns its outputs by name, in the order the exported file has them."""


class Trainee:
    """A model that training passes change, each in place or by setting `module` to another one.

    `rows` are the user's rows that may be learnt from, with their labels; those held out are never among them. `task`
    is what the model is for, by Hugging Face's words, or "unknown". `inputs` are the specs the model is exported with.
    `frozen_as` says what the module is when its layers are no Python objects any more ("TorchScript"), else it is
    empty. `checkpoints` is a folder for unfinished work of the current pass, of no other; `threads` is how many torch
    uses.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        call: Call,
        inputs: Sequence[TensorSpec],
        *,
        rows: Rows | None = None,
        task: str = "unknown",
        sizes: Sizes | None = None,
        frozen_as: str = "",
        on_step: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.module, self.inputs, self.rows, self.task = module, tuple(inputs), rows, task
        self.frozen_as, self.on_step = frozen_as, on_step
        self.checkpoints: Path | None = None
        self.threads = torch.get_num_threads()
        self._call, self._sizes = call, default_sizes(inputs) | (sizes or {})

    def answer(self, module: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs of `module`, by name, with gradients where torch records them.

        `module` is `self.module` or any other that takes and gives the same, such as a student.
        """
        return dict(self._call(module, dict(inputs)))

    def example(self, rows: int) -> dict[str, torch.Tensor]:
        """The first `rows` of the user's rows as inputs, or as many made-up ones when there are not so many.

        A model of a fixed number of rows gets as many as it takes.
        """
        first = self.inputs[0].shape[0] if self.inputs[0].shape else 1
        count = first if isinstance(first, int) else rows
        if self.rows is not None and len(self.rows) >= count:
            arrays = self.rows.batch(0, count)
        else:
            sizes = self._sizes | ({first: count} if isinstance(first, str) else {})
            arrays = synthesize([fix(spec, sizes) for spec in self.inputs], count, np.random.default_rng(0))
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each output for two rows, by name.

        Raises Refused when the module does not run, which a change to it may have caused.
        """
        training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                outputs = self.answer(self.module, self.example(2))
        except Exception as error:  # a model's own code may raise anything
            reason = str(error).strip().splitlines() or [""]
            raise Refused(f"the changed model does not run: {type(error).__name__}: {reason[0][:200]}") from error
        finally:
            self.module.train(training)
        return {name: tuple(tensor.shape) for name, tensor in outputs.items()}


def thaw(module: torch.nn.Module, frozen: frozenset[str] = frozenset()) -> None:
    """Lets every weight be trained that the model's own code does not keep from it; all of them, if it keeps all."""
    weights = {name: weight for name, weight in module.named_parameters() if weight.is_floating_point()}
    kept = frozen if weights.keys() - frozen else frozenset()
    for name, weight in weights.items():
        weight.requires_grad_(name not in kept)
