"""One request of the fast lane on its way through the batcher, and the places of replies on a connection."""

import asyncio
import time
from collections.abc import Iterable
from math import inf
from typing import Protocol

from mlserve.errors import NotServing, RequestError
from mlserve.model.tensors import Tensors
from mlserve.serve.batching.batcher import Batch, Ticket
from mlserve.serve.compression import pack, pack_at_once
from mlserve.serve.protocols.dialect import Content, Headers, Inference, error_body
from mlserve.serve.service import ServedModel
from mlserve.serve.transports.http_reply import ACCEPT_ENCODING, CLOSE, asked_fields, failure, success
from mlserve.serve.transports.patience import patience_s
from mlserve.wire.signature import InferRequest

__all__ = ["BUSY", "HALF_CLOSED", "Connection", "HttpTicket", "Place", "abandon", "drop_queued"]

HALF_CLOSED = NotServing(
    "the connection was closed, in one direction at least, while the request waited for its run; keep it open"
)
"""What is said to a client that has gone away, or may have: the two cannot be told apart."""


class Connection(Protocol):
    """Where the reply goes."""

    loop: asyncio.AbstractEventLoop

    @property
    def noted(self) -> Headers: ...

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]: ...

    def flush(self) -> None: ...


class HttpTicket(Ticket):
    """One request of the fast lane. Its reply is kept until those before it on the connection have gone out."""

    __slots__ = ("close", "connection", "headers", "inference", "model", "parse_s", "reply", "task")

    last = False
    task: "asyncio.Task[None]"  # what packs the reply, kept from being collected while it runs

    def __init__(
        self,
        connection: Connection,
        model: ServedModel,
        inference: Inference,
        request: InferRequest,
        *,
        close: bool,
        began_s: float | None = None,
    ) -> None:
        """`began_s` is `time.perf_counter` before the body was decoded, of a request whose head asks for timing."""
        self.inputs, self.rows = request.inputs, request.rows
        self.key, self.loop = model.signature.batch_key(request.inputs), connection.loop
        self.connection, self.model, self.inference = connection, model, inference
        self.headers = connection.noted
        self.request, self.close = request, close
        self.protocol = inference.protocol
        self.reply: bytes | None = None
        self.arrived_s = time.perf_counter()
        self.parse_s = None if began_s is None else self.arrived_s - began_s
        self.priority = request.priority
        limit_s = patience_s(request.timeout_s, self.headers) if self.headers else request.timeout_s
        self.deadline_s = self.arrived_s + limit_s if limit_s else inf

    def answer(self, outputs: Tensors, batch: Batch) -> None:
        if self.headers or self.close or self.request.timing:
            self._answer_as_asked(outputs, batch)
        else:
            content = self.inference.encode(self.model, self.request, outputs)
            self.reply = success(self.connection.default_headers, content)
            self.connection.flush()

    def fail(self, error: RequestError) -> None:
        status = error.http_status
        body = self.inference.error(status, str(error))
        self._reply(failure(status, body, self._extra(()), error.retry_after_s))

    def _answer_as_asked(self, outputs: Tensors, batch: Batch) -> None:
        began_s = time.perf_counter()
        content = self.inference.encode(self.model, self.request, outputs)
        extra = self._extra((batch,), time.perf_counter() - began_s)
        packed = pack_at_once(content.body, self.headers.get(ACCEPT_ENCODING))
        if packed is None:
            assert self.loop is not None
            self.task = self.loop.create_task(self._answer_packed(content, extra))
        else:
            self._reply(success(self.connection.default_headers, Content(packed[0], content.fields + packed[1]), extra))

    async def _answer_packed(self, content: Content, extra: bytes) -> None:
        body, fields = await pack(content.body, self.headers.get(ACCEPT_ENCODING))
        self._reply(success(self.connection.default_headers, Content(body, content.fields + fields), extra))

    def _extra(self, batches: tuple[Batch, ...], encode_s: float | None = None) -> bytes:
        asked = asked_fields(
            self.headers,
            self.arrived_s,
            batches,
            timing=self.request.timing,
            parse_s=self.parse_s,
            encode_s=encode_s,
        )
        return asked + CLOSE if self.close else asked

    def _reply(self, reply: bytes) -> None:
        if self.reply is None:
            self.reply = reply
            self.connection.flush()


class Place:
    """A reply that no ticket brings, in its place after those before it. After a `last` one nothing more is read."""

    __slots__ = ("close", "last", "reply", "task")

    task: "asyncio.Task[None]"  # what brings it, kept from being collected while it runs

    def __init__(self, reply: bytes | None, *, close: bool, last: bool = False) -> None:
        self.reply, self.close, self.last = reply, close, last


class _Busy:
    """Stands for a moment where uvicorn looks for the request before: the next one then waits in its pipeline."""

    response_complete = False


BUSY = _Busy()


def drop_queued(order: Iterable[HttpTicket | Place], error: RequestError | None = None) -> None:
    """Takes back what still waits for its run, and answers it with `error`; without one nobody is there to read it."""
    for ticket in list(order):
        if isinstance(ticket, Place) and ticket.reply is None and error is None:
            ticket.task.cancel()
        if isinstance(ticket, HttpTicket) and ticket.reply is None and ticket.model.batcher.drop(ticket) and error:
            ticket.model.meter.failed(ticket.protocol, error, ticket)
            ticket.fail(error)


def abandon(order: Iterable[HttpTicket | Place]) -> None:
    """Answers all that is not answered yet with the word that the server stops."""
    error = NotServing("the server stopped before this request was answered; send it again")
    for each in order:
        if each.reply is None:
            each.close = True
            each.reply = failure(error.http_status, error_body(error.http_status, str(error)), CLOSE)
