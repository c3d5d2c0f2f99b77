"""Inference for coroutines: the pages the fast lane passed on, streams, tasks, GraphQL."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from mlserve.errors import InvalidRequest, NotServing, RequestError
from mlserve.serve.batching.batcher import NO_HEADERS, Batch
from mlserve.serve.batching.future import Answered, noting_runs, run
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.service import ServedModel, Service
from mlserve.serve.tasks.task import Asked, TaskAnswer
from mlserve.serve.transports.patience import patience_s
from mlserve.wire.signature import InferRequest

__all__ = ["Answering", "noting_batches"]

_batches: ContextVar[list[Batch] | None] = ContextVar("batches", default=None)


@contextmanager
def noting_batches() -> Iterator[list[Batch]]:
    """The batches in which what is answered within it runs, for the request that asks where its time went."""
    batches: list[Batch] = []
    before = _batches.set(batches)
    try:
        yield batches
    finally:
        _batches.reset(before)


class Answering:
    """Puts requests into the event loop's turn and awaits their answers; every one is counted, once."""

    def __init__(self, service: Service, turn: LoopTurn) -> None:
        self._service, self.turn = service, turn
        self._waiting: set[asyncio.Task[Any] | None] = set()
        self._stopped = False

    async def infer(
        self, model: ServedModel, request: InferRequest, protocol: str, headers: Mapping[bytes, bytes] = NO_HEADERS
    ) -> Answered:
        """The outputs for `request`. Raises RequestError. Logs and traces look at `headers`, which may say how long the
        client waits.
        """
        self._service.check_serving()
        if headers:
            request.timeout_s = patience_s(request.timeout_s, headers)
        with self._wait(), noting_runs(model.batcher, _batches.get()):
            return await run(model.batcher, request, model.signature, self.turn, protocol, headers)

    async def ask(self, model: ServedModel, asked: Asked, protocol: str) -> list[TaskAnswer]:
        """One answer for each value of `asked`. Raises RequestError, InvalidRequest for a model without a task."""
        self._service.check_serving()
        arrived_s = time.perf_counter()
        try:
            if model.task is None:
                takes = ", ".join(f"{field.name} ({field.datatype})" for field in model.signature.inputs.values())
                raise InvalidRequest(
                    f"model '{model.signature.name}' carries no tokenizer and reads no images; it takes {takes}"
                )
            with self._wait(), noting_runs(model.batcher, _batches.get()):
                answers = await model.task.answer(asked.values)
        except RequestError as error:
            model.meter.failed(protocol, error)
            raise
        model.meter.asked(protocol, time.perf_counter() - arrived_s, asked.id)
        return answers

    def abandon(self) -> None:
        """Fails with NotServing every request that still waits, and every one to come."""
        self._stopped = True
        for task in self._waiting:
            if task is not None:
                task.cancel()

    @contextmanager
    def _wait(self) -> Iterator[None]:
        task = asyncio.current_task()
        self._waiting.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if self._stopped:
                raise NotServing("the server stopped before this request was answered; send it again") from None
            raise
        finally:
            self._waiting.discard(task)
