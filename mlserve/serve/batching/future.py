"""A request whose answer a coroutine awaits."""

import asyncio
import time
from typing import NamedTuple

from mlserve.errors import RequestError
from mlserve.model.tensors import Tensors
from mlserve.serve.batching.batcher import Batch, Batcher, Ticket
from mlserve.serve.batching.turn import LoopTurn
from mlserve.wire.signature import InferRequest, Signature

__all__ = ["Answered", "run"]


class Answered(NamedTuple):
    """A request's own rows of every output, and the batch they ran in."""

    outputs: Tensors
    batch: Batch


class _FutureTicket(Ticket):
    __slots__ = ("answered",)

    def __init__(
        self, request: InferRequest, signature: Signature, protocol: str, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.inputs, self.rows = request.inputs, request.rows
        self.key, self.loop = signature.batch_key(request.inputs), loop
        self.protocol = protocol
        self.arrived_s = time.perf_counter()
        self.answered: asyncio.Future[Answered] = loop.create_future()

    def answer(self, outputs: Tensors, batch: Batch) -> None:
        if not self.answered.done():
            self.answered.set_result(Answered(outputs, batch))

    def fail(self, error: RequestError) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)


async def run(
    batcher: Batcher, request: InferRequest, signature: Signature, turn: LoopTurn, protocol: str = ""
) -> Answered:
    """Runs `request` in a batch with others. Raises what the batcher fails it with.

    An empty `protocol` is for a step on the way to an answer, which is not counted as a request.
    """
    ticket = _FutureTicket(request, signature, protocol, turn.loop)
    turn.add(batcher, ticket)
    return await ticket.answered
