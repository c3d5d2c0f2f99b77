"""A request whose answer a coroutine awaits."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from typing import NamedTuple

from mlserve.errors import RequestError
from mlserve.model.tensors import Tensors
from mlserve.serve.batching.batcher import NO_HEADERS, Batch, Batcher, Ticket
from mlserve.serve.batching.turn import LoopTurn
from mlserve.wire.signature import InferRequest, Signature

__all__ = ["Answered", "Interest", "interested", "noting_runs", "run"]


class Answered(NamedTuple):
    """A request's own rows of every output, and the batch they ran in."""

    outputs: Tensors
    batch: Batch


class _FutureTicket(Ticket):
    __slots__ = ("answered", "headers")

    def __init__(
        self,
        request: InferRequest,
        signature: Signature,
        protocol: str,
        loop: asyncio.AbstractEventLoop,
        headers: Mapping[bytes, bytes],
    ) -> None:
        self.request, self.inputs, self.rows = request, request.inputs, request.rows
        self.key, self.loop = signature.batch_key(request.inputs), loop
        self.protocol, self.headers = protocol, headers
        self.arrived_s = time.perf_counter()
        self.priority = request.priority
        self.deadline_s = self.arrived_s + request.timeout_s if request.timeout_s else inf
        self.answered: asyncio.Future[Answered] = loop.create_future()

    def answer(self, outputs: Tensors, batch: Batch) -> None:
        if not self.answered.done():
            self.answered.set_result(Answered(outputs, batch))

    def fail(self, error: RequestError) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)


async def run(
    batcher: Batcher,
    request: InferRequest,
    signature: Signature,
    turn: LoopTurn,
    protocol: str = "",
    headers: Mapping[bytes, bytes] = NO_HEADERS,
) -> Answered:
    """Runs `request` in a batch with others. Raises what the batcher fails it with.

    An empty `protocol` is for a step on the way to an answer, which is not counted as a request.
    """
    ticket = _FutureTicket(request, signature, protocol, turn.loop, headers)
    interest = _interest.get()
    if interest is not None:
        interest.keep(batcher, ticket)
    turn.add(batcher, ticket)
    try:
        answered = await ticket.answered
    except asyncio.CancelledError:  # nobody waits any more
        batcher.drop(ticket)
        raise
    noted = _noted.get()
    if noted is not None and noted[0] is batcher:
        noted[1].append(answered.batch)
    return answered


class Interest:
    """Somebody's, in the answers to what `run` runs while it is his."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Batcher, _FutureTicket]] = []
        self._lost: RequestError | None = None

    def keep(self, batcher: Batcher, ticket: _FutureTicket) -> None:
        """Another request of his. Raises the error by which he left, if he has."""
        if self._lost is not None:
            raise self._lost
        self._waiting.append((batcher, ticket))

    def lose(self, error: RequestError) -> None:
        """Takes back what still waits, and fails it with `error`; what runs goes on."""
        self._lost = error
        for batcher, ticket in self._waiting:
            batcher.drop(ticket, error)


_interest: ContextVar[Interest | None] = ContextVar("interest", default=None)


@contextmanager
def interested(interest: Interest) -> Iterator[None]:
    """Within it, and in tasks that are started within it, what `run` runs is of this interest."""
    before = _interest.set(interest)
    try:
        yield
    finally:
        _interest.reset(before)


# The batcher whose runs are noted, and where; tasks that the present one starts note theirs in the same place.
_noted: ContextVar[tuple[Batcher, list[Batch]] | None] = ContextVar("noted", default=None)


@contextmanager
def noting_runs(batcher: Batcher, batches: list[Batch] | None) -> Iterator[None]:
    """Within it, what `run` runs on `batcher` is added to `batches`, if that is a list."""
    if batches is None:
        yield
        return
    before = _noted.set((batcher, batches))
    try:
        yield
    finally:
        _noted.reset(before)
