"""The seam every dialect fits: how a request is written for one kind of server, and how its answers are read."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from mlserve.bench.clients.client import Request
from mlserve.bench.target import Target
from mlserve.model.tensors import Tensors, TensorSpec

__all__ = ["Dialect", "ModelDescription", "Transport"]

Transport = Literal["http", "grpc"]


class ModelDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What a server says of one model. `provider` and `precision` are "" where it does not say them."""

    name: str
    versions: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...] = ()
    provider: str = ""
    precision: str = ""


class Dialect(Protocol):
    """One protocol. Instances hold no state of a run.

    **Law:** what `encode` writes, a server of the kind accepts, and `decode` reads its answer to the same tensors that
    the model gave. Reading never raises anything but BenchError, naming what was wrong.
    """

    @property
    def transport(self) -> Transport: ...

    @property
    def needs_model(self) -> bool:
        """Whether a request cannot be written without a model's name."""
        ...

    def path(self, target: Target) -> str:
        """Where inference is asked for: a path, or `/package.Service/Method`."""
        ...

    def encode(self, target: Target, tensors: Tensors, specs: Sequence[TensorSpec]) -> Request: ...

    def decode(self, content: bytes, outputs: Mapping[str, TensorSpec]) -> Tensors:
        """The tensors of an answer. One that names none can only be read where `outputs` has just one, whose it is."""
        ...

    def version(self, content: bytes) -> str:
        """The model version that an answer names, "" where it does not; cheap, as it is asked of every answer."""
        ...

    def describe(self, target: Target) -> ModelDescription | None:
        """What the server says of the model; None where servers of this kind do not tell. Raises BenchError when it
        cannot be reached or does not know the model.
        """
        ...

    def models(self, target: Target) -> tuple[str, ...] | None:
        """The names of the models it serves; None where it does not tell."""
        ...
