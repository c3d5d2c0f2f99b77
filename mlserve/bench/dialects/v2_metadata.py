"""Inputs and outputs as a V2 server describes them."""

from collections.abc import Sequence

from mlserve.bench.target import Target
from mlserve.errors import BenchError
from mlserve.model.tensors import DTYPE_OF, TensorSpec

__all__ = ["to_specs"]


def to_specs(tensors: Sequence[tuple[str, str, Sequence[int]]], target: Target) -> tuple[TensorSpec, ...]:
    """(name, datatype, shape) of each tensor as specs; the protocol's -1 becomes a word, `batch` where it comes first.

    Raises BenchError for an unknown datatype, or when there are none.
    """
    specs = []
    for name, datatype, shape in tensors:
        if datatype not in DTYPE_OF:
            raise BenchError(f"{target.url}: tensor '{name}' of model '{target.model}' has the type {datatype!r}")
        dims = tuple((f"dim{i}" if i else "batch") if size < 0 else size for i, size in enumerate(shape))
        specs.append(TensorSpec(name, DTYPE_OF[datatype], dims))
    if not specs:
        raise BenchError(f"{target.url} says that model '{target.model}' takes no inputs; there is nothing to send")
    return tuple(specs)
