"""What is sent: several different request bodies, encoded once before the run and sent in turn.

Several, because a server (or a processor) that saw the same bytes every time could answer from a cache.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from mlserve.bench.clients.client import Request
from mlserve.bench.dialects.find import find_dialect
from mlserve.bench.target import Target
from mlserve.errors import DataFileError, UsageError
from mlserve.model.rows import Rows, read_rows
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import Tensors, TensorSpec

__all__ = ["Payload", "check_batch", "data_payload", "synthetic_payload"]

_SYNTHETIC_BODIES = 32
_MOST_BODIES = 1024
_MOST_BYTES = 64 << 20


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """Encoded requests, in which order they are sent, and where their rows came from.

    Arrival k sends request `order[k % len(order)]`. `expected[number]` are the tensors that the answer to request
    `number` must hold; empty where answers are not checked.
    """

    requests: tuple[Request, ...]
    order: tuple[int, ...]
    source: str
    expected: tuple[Tensors, ...] = ()


def check_batch(batch_rows: int, inputs: Sequence[TensorSpec], model: str) -> None:
    """Raises UsageError when a request of `batch_rows` rows does not fit the model's fixed dimensions."""
    if any(spec.shape and isinstance(spec.shape[0], str) for spec in inputs):
        return
    fixed = {spec.shape[0] for spec in inputs if spec.shape}
    rows = fixed.pop() if len(fixed) == 1 else 1
    if batch_rows != rows:
        raise UsageError(
            f"--batch {batch_rows}: model '{model}' takes exactly {rows} row{'s' if rows != 1 else ''} a request; "
            f"use --batch {rows}"
        )


def synthetic_payload(target: Target, inputs: Sequence[TensorSpec], batch_rows: int, seed: int) -> Payload:
    """Bodies of made-up rows, the same for the same seed."""
    rng = np.random.default_rng(seed)
    tensors = (synthesize(inputs, batch_rows, rng) for _ in range(_SYNTHETIC_BODIES))
    return _payload(_encode(tensors, target, inputs), "synthetic rows")


def data_payload(
    target: Target, inputs: Sequence[TensorSpec], batch_rows: int, data: Path, tokenizer: Path | None
) -> Payload:
    """Bodies of `batch_rows` consecutive rows of a data file each, from its start.

    Raises DataFileError when the file does not fit the inputs or has fewer rows than one request takes.
    """
    rows = read_rows(data, inputs, tokenizer)
    if len(rows) < batch_rows:
        raise DataFileError(f"{data} has {len(rows)} rows, a request takes {batch_rows}; use a smaller --batch")
    return _payload(_encode(_batches(rows, batch_rows), target, inputs), rows.source)


def _payload(requests: tuple[Request, ...], source: str) -> Payload:
    order = tuple(range(len(requests)))
    return Payload(requests=requests, order=order, source=f"{source}, {len(requests)} bodies")


def _batches(rows: Rows, batch_rows: int) -> Iterator[Tensors]:
    for start in range(0, len(rows) - batch_rows + 1, batch_rows):
        yield rows.batch(start, start + batch_rows)


def _encode(tensors: Iterable[Tensors], target: Target, inputs: Sequence[TensorSpec]) -> tuple[Request, ...]:
    """As many requests as there are `tensors`, up to a number and a size that are plenty."""
    dialect = find_dialect(target.protocol)
    requests: list[Request] = []
    size_bytes = 0
    for batch in tensors:
        request = dialect.encode(target, batch, inputs)
        size_bytes += len(request.body)
        if requests and (len(requests) == _MOST_BODIES or size_bytes > _MOST_BYTES):
            break
        requests.append(request)
    return tuple(requests)
