"""Batching by length: rows of tokens share a batch with rows of about their own length, and hardly anything is padded.

A row is padded where it meets a longer one in a batch, never before: a request that runs alone runs as it came. How far
lengths may differ is a ladder's steps; requests between the same two steps share a batch (`Ladder`). On the CPU a run's
time follows the number of tokens, whatever the rows (MiniLM: 3.4 to 4.8 ms for every 16 tokens with 1 to 32 rows), so
padding is the larger loss, but rows alone cost more than rows together. Steps measured with MiniLM, 32 texts in flight
of 4 to 256 tokens (log-normal, median 20), in turns on a busy machine, texts/s: every length by itself 57, steps of 1.1
64, 1.25 70, 1.5 59, 2.0 53, all lengths together 20. benchmarks/lengths.py measures the last against the chosen ones.
"""

from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence

import msgspec
import numpy as np

from mlserve.engines.engine import Engine
from mlserve.model.tensors import Array, Tensors, TensorSpec
from mlserve.serve.batching.batcher import Batcher, BatchObserver, Ticket
from mlserve.serve.batching.results import Results, check_rows
from mlserve.serve.batching.share import DeviceShare
from mlserve.serve.batching.window import BatchWindow
from mlserve.wire.signature import Signature

__all__ = ["LADDER", "LadderSignature", "LengthBatcher", "Padding", "batcher_for", "ladder"]

_SHORTEST, _LONGEST = 8, 1 << 20


class Padding(msgspec.Struct, frozen=True):
    """How rows of different length become one array.

    `fill` says what stands behind the end of a row, by input; all inputs are [rows, length]. `axes` says which axis of
    an output follows the length, for those that have one; an answer is cut there to its own request's length.
    """

    fill: Mapping[str, int]
    axes: Mapping[str, int] = {}

    def joined(self, parts: Sequence[Tensors]) -> Tensors:
        """Every row of `parts`, each padded to the longest: name -> [rows, longest]."""
        joined = {}
        for name, fill in self.fill.items():
            arrays = [part[name] for part in parts]
            length = max(array.shape[1] for array in arrays)
            whole = np.full((sum(map(len, arrays)), length), fill, arrays[0].dtype)
            start = 0
            for array in arrays:
                whole[start : start + len(array), : array.shape[1]] = array
                start += len(array)
            joined[name] = whole
        return joined

    def own(self, outputs: Tensors, start: int, rows: int, length: int) -> Tensors:
        """`rows` rows of `outputs` from `start` on, without what stands behind `length`."""
        return {name: self._cut(name, array[start : start + rows], length) for name, array in outputs.items()}

    def _cut(self, name: str, array: Array, length: int) -> Array:
        axis = self.axes.get(name)
        return array if axis is None else array[(slice(None),) * axis + (slice(length),)]


def ladder(ratio: float) -> tuple[int, ...]:
    """Lengths, each about `ratio` times the one before: 8, 10, 12, 15, 18, 22, ... for 1.25. `ratio` is above 1."""
    steps = [_SHORTEST]
    while steps[-1] < _LONGEST:
        steps.append(max(steps[-1] + 1, int(steps[-1] * ratio)))
    return tuple(steps)


LADDER = ladder(1.25)


class LadderSignature(Signature):
    """The signature of a model whose rows may be padded. Without `steps`, rows of any length share a batch."""

    def __init__(
        self,
        name: str,
        version: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        padding: Padding,
        steps: Sequence[int] = LADDER,
    ) -> None:
        super().__init__(name, version, inputs, outputs)
        self.padding, self._steps = padding, steps
        self._names = [spec.name for spec in inputs]

    def batch_key(self, inputs: Tensors) -> Hashable:
        """The number of the step that the rows are at, or the exact shapes where the inputs have several lengths."""
        lengths = {inputs[name].shape[1] for name in self._names}
        return self.step(lengths.pop()) if len(lengths) == 1 else super().batch_key(inputs)

    def step(self, length: int) -> int:
        """Equal for lengths that share a batch."""
        return bisect_left(self._steps, length)


class LengthBatcher(Batcher):
    """A batcher whose batches hold rows of several lengths, padded to the longest of them."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        window: BatchWindow[Ticket],
        observer: BatchObserver,
        *,
        typical_s: float,
        padding: Padding,
        single_s: float = 0.0,
        share: DeviceShare | None = None,
    ) -> None:
        super().__init__(name, engine, window, observer, typical_s=typical_s, single_s=single_s, share=share)
        self._padding = padding

    def _together(self, tickets: list[Ticket]) -> Results:
        lengths = [next(iter(ticket.inputs.values())).shape[1] for ticket in tickets]
        if min(lengths) == max(lengths) or not isinstance(tickets[0].key, int):
            return super()._together(tickets)
        outputs = self._engine.run(self._padding.joined([ticket.inputs for ticket in tickets]))
        check_rows(outputs, sum([ticket.rows for ticket in tickets]))
        results: Results = []
        start = 0
        for ticket, length in zip(tickets, lengths, strict=True):
            results.append((ticket, self._padding.own(outputs, start, ticket.rows, length)))
            start += ticket.rows
        return results


def batcher_for(
    signature: Signature,
    engine: Engine,
    window: BatchWindow[Ticket],
    observer: BatchObserver,
    *,
    typical_s: float,
    single_s: float = 0.0,
    share: DeviceShare | None = None,
) -> Batcher:
    """The batcher that runs requests of `signature`; see `Batcher`."""
    name = signature.name
    if isinstance(signature, LadderSignature):
        return LengthBatcher(
            name, engine, window, observer,
            typical_s=typical_s, padding=signature.padding, single_s=single_s, share=share,
        )  # fmt: skip
    return Batcher(name, engine, window, observer, typical_s=typical_s, single_s=single_s, share=share)
