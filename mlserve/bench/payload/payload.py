"""What is sent: several different request bodies, encoded once before the run and sent in turn.

Several, because a server (or a processor) that saw the same bytes every time could answer from a cache.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from mlserve.bench.clients.client import Request
from mlserve.bench.load.trace import Trace
from mlserve.bench.payload.encoding import Encoded, encode_kinds
from mlserve.bench.payload.replay import replayed
from mlserve.bench.payload.sizes import Lengths, mixed_order
from mlserve.bench.payload.supply import DataRows, MadeUpRows, Supply, read_answers, read_data
from mlserve.bench.target import Target
from mlserve.errors import UsageError
from mlserve.model.processing import Processing
from mlserve.model.tensors import Tensors, TensorSpec
from mlserve.runs.load import Plan, Protocol, RowShare
from mlserve.wire import grpc

__all__ = ["Payload", "PayloadWish", "Timed", "check_batch", "make_payload"]

Timed = Literal["none", "sampled", "all"]
"""Which requests ask where their time went, every eighth by "sampled": telling costs our server a little, and other
servers do not heed it.
"""

_TIMING = ("mlserve-timing", "1")
_ONE_TIMED_OF = 8


class PayloadWish(msgspec.Struct, frozen=True, kw_only=True):
    """What requests shall hold, beyond what the plan says.

    `data` has the rows (made-up ones if None), which `tokenizer` and `processing` bring into the model's form, and
    `expected` has the answers to them. `lengths` and `image_sizes` (height, width) are for sizes that the model leaves
    open. `trace` is what a replay repeats. `outputs` are the model's, where they are known.
    """

    data: Path | None = None
    tokenizer: Path | None = None
    processing: Processing | None = None
    expected: Path | None = None
    lengths: Lengths | None = None
    image_sizes: tuple[tuple[int, int], ...] = ()
    timed: Timed = "sampled"
    trace: Trace | None = None
    outputs: tuple[TensorSpec, ...] = ()


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """Encoded requests, in which order they are sent, and where their rows came from.

    Arrival k sends request `order[k % len(order)]`. `expected[number]` are the tensors that the answer to request
    `number` must hold; empty where answers are not checked, or not known yet.
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


def make_payload(target: Target, inputs: Sequence[TensorSpec], plan: Plan, wish: PayloadWish) -> Payload:
    """The requests of a run: the same for the same plan and wish.

    Raises UsageError for sizes that the model cannot have and for wishes that contradict each other, DataFileError for
    files that cannot be read or do not fit the inputs.
    """
    _check(wish)
    mix = plan.row_mix or (RowShare(plan.batch_rows, 1.0),)
    for size in mix:
        check_batch(size.rows, inputs, target.model)
    supply = _supply(inputs, plan.seed, wish)
    if wish.trace is not None:
        encoded, order, source = replayed(target, inputs, plan, wish.trace, supply if wish.data else None)
    else:
        encoded, numbers = encode_kinds([supply.batches(size.rows) for size in mix], target, inputs)
        order, source = mixed_order([size.share for size in mix], numbers, plan.seed), supply.source
    source = f"{source}, {len(encoded)} bodies"
    encoded, order = _timed(encoded, order, wish.timed, plan.seed, target.protocol)
    expected = tuple(each.outputs for each in encoded if each.outputs is not None)
    return Payload(
        requests=tuple(each.request for each in encoded),
        order=tuple(order.tolist()),
        source=source,
        expected=expected if len(expected) == len(encoded) else (),
    )


def _check(wish: PayloadWish) -> None:
    """Raises UsageError where two flags contradict each other."""
    if wish.expected is not None and wish.data is None:
        raise UsageError(f"--expected {wish.expected} holds the answers to rows of --data; give --data too")
    if wish.lengths is not None and wish.data is not None:
        raise UsageError(f"--lengths contradicts --data {wish.data}, whose rows have their own; leave one out")
    if wish.trace is not None and (wish.lengths is not None or wish.image_sizes):
        flag = "--lengths" if wish.lengths is not None else "--image-sizes"
        raise UsageError(f"{flag} contradicts --replay, which sends the sizes that were recorded; leave one out")


def _supply(inputs: Sequence[TensorSpec], seed: int, wish: PayloadWish) -> Supply:
    if wish.data is None:
        return MadeUpRows(inputs, seed, wish.lengths, wish.image_sizes)
    form = wish.processing.image if wish.processing else None
    data = read_data(wish.data, inputs, wish.tokenizer, form, wish.image_sizes)
    return DataRows(data, read_answers(wish.expected, wish.outputs) if wish.expected else {}, wish.data)


def _timed(
    encoded: list[Encoded], order: npt.NDArray[np.int64], timed: Timed, seed: int, protocol: Protocol
) -> tuple[list[Encoded], npt.NDArray[np.int64]]:
    """The same with the wish to be told where the time went: in all, or at random places of the order, so that it falls
    in with nothing that repeats itself.
    """
    if timed == "none":
        return encoded, order
    wishing = [each._replace(request=_wishing(each.request, protocol)) for each in encoded]
    if timed == "all":
        return wishing, order
    order = np.tile(order, max(1, _ONE_TIMED_OF // len(order)))
    places = np.random.default_rng(seed).permutation(len(order))[: max(1, round(len(order) / _ONE_TIMED_OF))]
    order[places] += len(encoded)
    used, order = np.unique(order, return_inverse=True)
    both = [*encoded, *wishing]
    return [both[number] for number in used], order.ravel()


def _wishing(request: Request, protocol: Protocol) -> Request:
    """By a header, or by a parameter of the message: our gRPC server reads no metadata where it need not."""
    if protocol == "grpc":
        return msgspec.structs.replace(request, body=grpc.ask_timing(request.body))
    return msgspec.structs.replace(request, headers=(*request.headers, _TIMING))
