"""What a replay sends: for every arrival of a trace a request of its size, and with its inputs where they were kept."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from mlserve.bench.load.schedule import schedule
from mlserve.bench.load.trace import Trace
from mlserve.bench.payload.encoding import Encoded, encode_kinds
from mlserve.bench.payload.supply import Batch, MadeUpRows, Supply, shaped
from mlserve.bench.target import Target
from mlserve.errors import DataFileError, InvalidRequest
from mlserve.model.tensors import TensorSpec
from mlserve.runs.load import Plan

__all__ = ["replayed"]

_Ints = npt.NDArray[np.int64]


def replayed(
    target: Target, inputs: Sequence[TensorSpec], plan: Plan, trace: Trace, data: Supply | None
) -> tuple[list[Encoded], _Ints, str]:
    """Requests, the order in which they are sent, and where their rows came from.

    A request whose inputs were kept has them again. One whose were not is one of its kind: a kept one where there are
    any, or else of `data`, or made-up. With `data` all are of it. Before them come as many as the warm-up needs, from
    the trace's beginning. Raises DataFileError where the trace, or the data, is of another model.
    """
    made = [_batches(kind.rows, kind.shapes, inputs, plan.seed, trace, data) for kind in trace.kinds]
    kept = [] if data else _kept_batches(trace, inputs, target.model)
    order = np.full(len(trace), -1) if data else trace.body_of.copy()
    kind_of_body = np.full(len(kept), -1)
    kind_of_body[order[order >= 0]] = trace.kind_of[order >= 0]
    lacking = np.setdiff1d(trace.kind_of[order < 0], kind_of_body)
    kinds: list[Iterable[Batch]] = [*([batch] for batch in kept), *(made[kind] for kind in lacking)]
    encoded, numbers = encode_kinds(kinds, target, inputs)
    of_kind = dict(zip(lacking.tolist(), numbers[len(kept) :], strict=True))
    for places in _by_kind(np.flatnonzero(order < 0), trace.kind_of):
        kind = int(trace.kind_of[places[0]])
        order[places] = np.resize(of_kind.get(kind, np.flatnonzero(kind_of_body == kind)), len(places))
    warm_up = len(schedule(plan, trace.arrivals_ns.tobytes())) - len(trace)
    others = data.source if data else "synthetic rows"
    rows = "recorded rows" if kept and not len(lacking) else f"recorded and {others}" if kept else others
    source = f"{rows} in the sizes of {trace.source} (sha256 {trace.sha256[:12]})"
    return encoded, np.concatenate([np.resize(order, warm_up), order]), source


def _batches(
    rows: int,
    shapes: dict[str, tuple[int, ...]],
    inputs: Sequence[TensorSpec],
    seed: int,
    trace: Trace,
    data: Supply | None,
) -> Iterable[Batch]:
    try:
        specs = shaped(inputs, shapes)
    except ValueError as error:
        raise DataFileError(f"{trace.source} was recorded from another model: {error}") from error
    return (data or MadeUpRows(specs, seed)).batches(rows)


def _kept_batches(trace: Trace, inputs: Sequence[TensorSpec], model: str) -> list[Batch]:
    from mlserve.wire import grpc
    from mlserve.wire.signature import Signature

    signature = Signature(model, "", inputs, [])
    batches = []
    for number, body in enumerate(trace.bodies, 1):
        try:
            batches.append(Batch(grpc.decode_request(grpc.parse_request(body), signature).inputs))
        except InvalidRequest as error:
            raise DataFileError(
                f"{trace.source}: recorded request {number} is none that '{model}' takes ({error}); replay it to the "
                "model that it was recorded from"
            ) from error
    return batches


def _by_kind(places: _Ints, kind_of: _Ints) -> list[_Ints]:
    """`places`, those of one kind together."""
    if not len(places):
        return []
    places = places[np.argsort(kind_of[places], kind="stable")]
    return np.split(places, np.flatnonzero(np.diff(kind_of[places])) + 1)
