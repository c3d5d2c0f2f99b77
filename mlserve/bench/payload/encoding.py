"""From rows to requests: so many bodies of every size that no cache can answer, and no more than fit into memory."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mlserve.bench.clients.client import Request
from mlserve.bench.dialects.find import find_dialect
from mlserve.bench.payload.supply import Batch
from mlserve.bench.target import Target
from mlserve.errors import UsageError
from mlserve.model.tensors import Tensors, TensorSpec

__all__ = ["Encoded", "encode_kinds"]

_MOST_BODIES = 1024
_MOST_BYTES, _MOST_BYTES_AT_ALL = 64 << 20, 1 << 30


class Encoded(NamedTuple):
    """A request, and the outputs that it must be answered with; None where they are not known."""

    request: Request
    outputs: Tensors | None


def encode_kinds(
    kinds: Sequence[Iterable[Batch]], target: Target, inputs: Sequence[TensorSpec]
) -> tuple[list[Encoded], list[list[int]]]:
    """Requests, and the numbers of those of each of `kinds`: one of every kind, then another of every kind, and so on
    until 1,024 or 64 MB, which is plenty.

    Raises UsageError where one of every kind is more than can be held.
    """
    dialect = find_dialect(target.protocol)
    encoded: list[Encoded] = []
    numbers: list[list[int]] = [[] for _ in kinds]
    size_bytes = 0
    left = {kind: iter(batches) for kind, batches in enumerate(kinds)}
    while left:
        for kind, batches in list(left.items()):
            batch = next(batches, None)
            if batch is None:
                del left[kind]
                continue
            request = dialect.encode(target, batch.inputs, inputs)
            size_bytes += len(request.body)
            if numbers[kind] and (len(encoded) >= _MOST_BODIES or size_bytes > _MOST_BYTES):
                return encoded, numbers
            if size_bytes > _MOST_BYTES_AT_ALL:
                raise UsageError("one request of every size takes more than 1 GB; send fewer sizes, or smaller ones")
            numbers[kind].append(len(encoded))
            encoded.append(Encoded(request, batch.outputs))
    return encoded, numbers
