"""What people send, read: values of several requests together, on a thread of its own, never on the event loop."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlserve.engines.engine import Execution
from mlserve.errors import InvalidRequest, PayloadTooLarge
from mlserve.model.tensors import Tensors, TensorSpec
from mlserve.serve.batching.batcher import Batcher, Ticket
from mlserve.serve.batching.future import run
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.batching.window import BatchWindow
from mlserve.wire.signature import InferRequest, Signature

__all__ = ["Reader"]

_VALUES, _READ = TensorSpec("values", "object", ("batch",)), TensorSpec("read", "object", ("batch",))
# Longer than any run that stays on the thread of the event loop.
_LONG_S = 1.0

_log = logging.getLogger("mlserve.serve")


class Reader:
    """Reads values by `read`, which gives what each became, or the error of one that cannot be read.

    At most `max_rows` values are read at once, and at most `most_values` may wait, or come in one request.
    """

    def __init__(
        self, name: str, read: Callable[[Sequence[Any]], Sequence[Any]], turn: LoopTurn, max_rows: int, most_values: int
    ) -> None:
        self._turn, self._max_rows, self._most_values = turn, max_rows, most_values
        self._signature = Signature(name, "", [_VALUES], [_READ])
        window: BatchWindow[Ticket] = BatchWindow(max_rows, max_waiting_rows=most_values)
        self._batcher = Batcher(f"{name}, reading", _Reading(read), window, _Unobserved(), typical_s=_LONG_S)

    async def read(self, values: Sequence[Any]) -> list[Any]:
        """What each of `values` became. Raises InvalidRequest for the first that cannot be read, and PayloadTooLarge
        and Overloaded for too many.
        """
        if not values:
            raise InvalidRequest("the request holds no value; send at least one")
        if len(values) > self._most_values:
            raise PayloadTooLarge(
                f"the request holds {len(values)} values, at most {self._most_values} are read at once"
            )
        parts = [values[start : start + self._max_rows] for start in range(0, len(values), self._max_rows)]
        requests = [InferRequest({_VALUES.name: _objects(part)}, len(part)) for part in parts]
        answered = await asyncio.gather(
            *[run(self._batcher, request, self._signature, self._turn) for request in requests]
        )
        found = [item for answer in answered for item in answer.outputs[_READ.name]]
        for number, item in enumerate(found, 1):
            if isinstance(item, InvalidRequest):
                raise InvalidRequest(f"value {number} of {len(found)}: {item}") if len(found) > 1 else item
        return found

    def close(self) -> None:
        """Reads what still waits, and stops its thread."""
        self._batcher.close()


class _Reading:
    """A reader as an engine."""

    inputs: tuple[TensorSpec, ...] = (_VALUES,)
    outputs: tuple[TensorSpec, ...] = (_READ,)
    execution = Execution()

    def __init__(self, read: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
        self._read = read

    def run(self, inputs: Tensors) -> Tensors:
        return {_READ.name: _objects(self._read(list(inputs[_VALUES.name])))}

    def close(self) -> None:
        pass


class _Unobserved:
    """Reading is a step on the way to an answer, which is what is counted."""

    def ran(self, *_: Any, **__: Any) -> None:
        pass

    def answered(self, *_: Any, **__: Any) -> None:
        pass

    def failed(self, *_: Any, **__: Any) -> None:
        pass


def _objects(values: Sequence[Any]) -> "np.ndarray[Any, np.dtype[np.object_]]":
    """`values` as one array of objects; numpy itself would look into them."""
    array = np.empty(len(values), object)
    for position, value in enumerate(values):
        array[position] = value
    return array
