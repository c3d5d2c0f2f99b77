"""V2's ModelStreamInfer: many inferences over one stream, each with its answer or its error.

Requests of a stream run at the same time, in batches with all others, and are answered in the order in which they came,
as Triton answers them. A request that fails costs an `error_message`; the stream goes on.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from mlserve.errors import RequestError
from mlserve.serve.answering import Answering
from mlserve.serve.protocols.dialect import InferCall, StreamCall
from mlserve.serve.service import Service
from mlserve.wire.messages import SERVICE, ModelStreamInferResponse

__all__ = ["stream_of"]

# Of one stream so many requests, or so many bytes of them, are read before the first of them is answered; the rest
# waits at the client.
_MOST_AT_ONCE, _MOST_BYTES = 64, 64 << 20
_ASKS_FOR_FINAL, _IS_FINAL = "triton_enable_empty_final_response", "triton_final_response"


def stream_of(call: InferCall) -> StreamCall:
    """The stream whose messages are read and written as those of `call`."""
    return StreamCall(f"/{SERVICE}/ModelStreamInfer", "infer", partial(_answer_all, call))


async def _answer_all(
    call: InferCall, service: Service, answering: Answering, requests: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    stream = _Stream(call, service, answering)
    reading = asyncio.create_task(stream.read(requests))
    try:
        while (response := await stream.next()) is not None:
            yield response
        await reading
    finally:
        reading.cancel()
        stream.cancel()


class _Stream:
    """The requests of one stream that are not answered yet, the oldest first."""

    def __init__(self, call: InferCall, service: Service, answering: Answering) -> None:
        self._call, self._service, self._answering = call, service, answering
        self._started: deque[tuple[asyncio.Task[bytes], int]] = deque()
        self._bytes = 0
        self._complete = False
        self._changed = asyncio.Event()

    async def read(self, requests: AsyncIterator[bytes]) -> None:
        """Starts every request as it comes, as many at once as are allowed."""
        try:
            async for payload in requests:
                while self._started and self._full(len(payload)):
                    await self._change()
                self._started.append((asyncio.create_task(self._answer(payload)), len(payload)))
                self._bytes += len(payload)
                self._changed.set()
        finally:
            self._complete = True
            self._changed.set()

    async def next(self) -> bytes | None:
        """The answer to the oldest request; None when all are answered and no more will come."""
        while not self._started:
            if self._complete:
                return None
            await self._change()
        task, size = self._started[0]
        response = await task
        self._started.popleft()
        self._bytes -= size
        self._changed.set()
        return response

    def _full(self, size: int) -> bool:
        return len(self._started) >= _MOST_AT_ONCE or self._bytes + size > _MOST_BYTES

    async def _change(self) -> None:
        """Waits for a request to come, or an answer to go."""
        self._changed.clear()
        await self._changed.wait()

    def cancel(self) -> None:
        """Nobody waits for the answers any more."""
        for task, _ in self._started:
            task.cancel()

    async def _answer(self, payload: bytes) -> bytes:
        response = ModelStreamInferResponse()
        message = model = None
        try:
            self._service.check_serving()
            message = self._call.parse(payload)
            model = self._call.find(self._service, message)
            request = self._call.decode(message, model)
        except RequestError as error:
            if model is not None:
                model.meter.failed(self._call.protocol, error)
            return _failure(response, message, error)
        try:
            answered = await self._answering.infer(model, request, self._call.protocol)
        except RequestError as error:
            return _failure(response, message, error)
        response.infer_response.MergeFromString(self._call.encode(model, request, answered.outputs))
        if message.parameters and message.parameters[_ASKS_FOR_FINAL].bool_param:
            response.infer_response.parameters[_IS_FINAL].bool_param = True
        serialized: bytes = response.SerializeToString()
        return serialized


def _failure(response: Any, message: Any, error: RequestError) -> bytes:
    """The error, and the id that says whose it is."""
    response.error_message = str(error)[:900]
    if message is not None:
        response.infer_response.id = message.id
    serialized: bytes = response.SerializeToString()
    return serialized
