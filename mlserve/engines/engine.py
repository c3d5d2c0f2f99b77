"""The seam every engine fits: `run` maps named arrays to named arrays."""

from typing import Protocol

import msgspec

from mlserve.model.tensors import Tensors, TensorSpec

__all__ = ["Engine", "EngineSettings"]


class EngineSettings(msgspec.Struct, frozen=True):
    """How a model is run. `device` is `cpu`, `cuda` or `cuda:N`; `threads` work on one run together.

    `engine` and `compute_type` are empty for what the artifact was made for.
    """

    device: str = "cpu"
    threads: int = 1
    engine: str = ""
    compute_type: str = ""


class Engine(Protocol):
    """A loaded model.

    **Law:** `run` maps named arrays `[rows, ...]` to named arrays `[rows, ...]`, row i from row i; it may be called
    from several threads at once. What it raises is EngineError.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, inputs: Tensors) -> Tensors: ...

    def close(self) -> None:
        """Frees the model; `run` must not be called afterwards."""
        ...
