"""HTTP inference that takes its time: paths the fast lane does not know, texts and images, large packed bodies."""

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from mlserve.errors import DeadlineExceeded, ModelFailed, RequestError
from mlserve.serve.answering import Answering, noting_batches
from mlserve.serve.batching.future import Interest, interested
from mlserve.serve.compression import is_packed, pack, unpack
from mlserve.serve.protocols.dialect import ENCODING, Content, Headers, Inference
from mlserve.serve.service import ServedModel
from mlserve.serve.tasks.task import Asked, TaskAnswer
from mlserve.serve.transports.http_reply import ACCEPT_ENCODING, asked_fields, failure, success
from mlserve.serve.transports.http_ticket import HALF_CLOSED
from mlserve.serve.transports.patience import patience_s
from mlserve.serve.transports.room import check_room
from mlserve.wire.signature import InferRequest

__all__ = ["answer", "error_reply", "read", "reply", "unless_gone"]

T = TypeVar("T")

_log = logging.getLogger("mlserve.serve")


async def read(
    model: ServedModel, inference: Inference, body: bytes, headers: Headers, most_bytes: int
) -> InferRequest | Asked:
    """What a request's bytes mean, unpacked first where they are packed. A failure is counted. Raises RequestError."""
    try:
        if model.batcher.queues:
            check_room(model.batcher, body)
        if is_packed(headers.get(ENCODING)):
            body = await unpack(body, headers[ENCODING], most_bytes)
        return inference.decode(body, model, headers)
    except RequestError as error:
        model.meter.failed(inference.protocol, error)
        raise


async def answer(
    answering: Answering,
    model: ServedModel,
    inference: Inference,
    wanted: InferRequest | Asked,
    headers: Headers,
    arrived_s: float,
) -> Content:
    """The answer, packed where the client takes it so, with what else it asked to be told. Raises RequestError."""
    timing = False
    with noting_batches() as batches:
        if isinstance(wanted, Asked):
            answers = await _answers_in_time(answering, model, inference, wanted, headers)
            body, fields = inference.encode_answers(model, wanted, answers)
        else:
            answered = await answering.infer(model, wanted, inference.protocol, headers)
            timing = wanted.timing
            body, fields = inference.encode(model, wanted, answered.outputs)
    body, packed_fields = await pack(body, headers.get(ACCEPT_ENCODING))
    return Content(body, fields + packed_fields + asked_fields(headers, arrived_s, batches, timing=timing))


async def _answers_in_time(
    answering: Answering, model: ServedModel, inference: Inference, wanted: Asked, headers: Headers
) -> list[TaskAnswer]:
    """What a person asks, answered within the client's patience. Raises RequestError."""
    limit_s = patience_s(0.0, headers) or None
    try:
        async with asyncio.timeout(limit_s):
            return await answering.ask(model, wanted, inference.protocol)
    except TimeoutError:
        name = model.signature.name
        error = DeadlineExceeded(f"Request timeout expired: it waited {limit_s:.3g} s for model '{name}'")
        model.meter.failed(inference.protocol, error)
        raise error from None


async def unless_gone(receive: Receive, making: Coroutine[Any, Any, T]) -> T:
    """What `making` makes. When the client goes away, what of it still waits for its run is not run."""
    interest = Interest()
    with interested(interest):
        made = asyncio.ensure_future(making)
    gone = asyncio.ensure_future(receive())  # its body is read: all that can come is its end
    try:
        await asyncio.wait((made, gone), return_when=asyncio.FIRST_COMPLETED)
        if not made.done():
            interest.lose(HALF_CLOSED)
        return await made
    finally:
        made.cancel()
        gone.cancel()


async def reply(
    answering: Answering,
    model: ServedModel,
    inference: Inference,
    wanted: Asked | bytes,
    headers: Headers,
    most_bytes: int,
    defaults: list[tuple[bytes, bytes]],
    extra: bytes,
) -> bytes:
    """The bytes of a whole reply to what a person asks, or to a packed body; of an error's, too."""
    arrived_s = time.perf_counter()
    try:
        request = await read(model, inference, wanted, headers, most_bytes) if isinstance(wanted, bytes) else wanted
        return success(defaults, await answer(answering, model, inference, request, headers, arrived_s), extra)
    except RequestError as error:
        return error_reply(error, inference, headers, extra)
    except Exception:
        name = model.signature.name
        _log.exception("an answer of model %s could not be written", name)
        return error_reply(ModelFailed(f"model '{name}': its answer could not be written"), inference, headers, extra)


def error_reply(error: RequestError, inference: Inference, headers: Headers, extra: bytes) -> bytes:
    """The bytes of the reply that says `error` in the dialect's words."""
    status = error.http_status
    fields = asked_fields(headers, 0.0, ()) + extra
    return failure(status, inference.error(status, str(error)), fields, error.retry_after_s)
