"""One request on its way through a batcher, what it ran in, and who is told of both."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import msgspec

from mlserve.errors import RequestError
from mlserve.model.tensors import Tensors
from mlserve.wire.signature import InferRequest

__all__ = ["NO_HEADERS", "Batch", "BatchObserver", "Ticket"]

NO_HEADERS: Mapping[bytes, bytes] = MappingProxyType({})


class Batch(msgspec.Struct, frozen=True):
    """One run of the engine: how many rows, when it started (`time.perf_counter`) and how long it computed.

    `free_s` is when the run before it ended, on the same clock: from then on it might have started.
    """

    rows: int
    started_s: float
    compute_s: float
    free_s: float = 0.0


class Ticket(ABC):
    """One request on its way through a batcher. A transport's subclass sets every field, and knows how to reply.

    Of `answer` and `fail` one is called, once: on `loop` where the ticket has one, else on whichever thread ran the
    batch. `arrived_s` is `time.perf_counter` at the request's last byte; past `deadline_s` on the same clock (`inf` for
    none) it is not run any more. `priority` 1 is the highest, larger ones come later, 0 is the default. `headers` are
    those that a transport noted, for logs and traces to look at.
    """

    __slots__ = ("arrived_s", "deadline_s", "inputs", "key", "loop", "priority", "protocol", "request", "rows")

    headers: Mapping[bytes, bytes] = NO_HEADERS
    request: InferRequest
    inputs: Tensors
    rows: int
    key: Hashable
    loop: asyncio.AbstractEventLoop | None
    protocol: str
    arrived_s: float
    deadline_s: float
    priority: int

    @abstractmethod
    def answer(self, outputs: Tensors, batch: Batch) -> None:
        """Replies with this request's rows of every output."""

    @abstractmethod
    def fail(self, error: RequestError) -> None:
        """Replies that the request could not be answered."""


class BatchObserver(Protocol):
    """Told of every batch after it ran, and of the requests of it that were answered or failed.

    `outcome` is "ok", or the name of the error when no ticket of the batch is answered; `waiting_rows` still wait.
    """

    def ran(self, batch: Batch, tickets: Sequence[Ticket], outcome: str, waiting_rows: int) -> None: ...

    def answered(self, tickets: Sequence[Ticket], batch: Batch) -> None: ...

    def failed(self, protocol: str, error: RequestError, ticket: Ticket) -> None: ...
