"""An engine whose runs are noted where the supervisor sees them, should one of them be the worker's last."""

from mlserve.engines.engine import Engine
from mlserve.model.tensors import Tensors
from mlserve.serve.life.slate import Place

__all__ = ["NotedEngine"]


class NotedEngine:
    """`engine`, with every run noted at `place`, which takes less than 0.2 us."""

    def __init__(self, engine: Engine, place: Place) -> None:
        self.inputs, self.outputs, self.execution = engine.inputs, engine.outputs, engine.execution
        self._engine, self._place = engine, place
        self._run, self._numbers, self._began = engine.run, place.numbers, 0

    def run(self, inputs: Tensors) -> Tensors:
        """As the engine does it."""
        numbers = self._numbers
        numbers[0] = self._began = self._began + 1
        try:
            return self._run(inputs)
        finally:
            numbers[1] = self._began

    def close(self) -> None:
        """Frees the model, and its place."""
        self._engine.close()
        self._place.free()
