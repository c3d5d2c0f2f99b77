"""An engine that is a function: for tests of everything above the engine, and for measuring what the rest costs."""

from collections.abc import Callable

from mlserve.engines.engine import Execution
from mlserve.model.tensors import Tensors, TensorSpec

__all__ = ["FakeEngine"]


class FakeEngine:
    """Answers with `answer(inputs)`; keeps the row counts of the batches it was given in `batches`."""

    def __init__(
        self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], answer: Callable[[Tensors], Tensors]
    ) -> None:
        self.inputs, self.outputs, self._answer = inputs, outputs, answer
        self.execution = Execution("fake")
        self.batches: list[int] = []
        self.closed = False

    def run(self, inputs: Tensors) -> Tensors:
        self.batches.append(len(next(iter(inputs.values()))))
        return self._answer(inputs)

    def close(self) -> None:
        self.closed = True
