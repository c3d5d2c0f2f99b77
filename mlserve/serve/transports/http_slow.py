"""HTTP inference that takes its time: paths the fast lane does not know, texts and images, large packed bodies."""

import logging
import time

from mlserve.errors import ModelFailed, RequestError
from mlserve.serve.answering import Answering, noting_batches
from mlserve.serve.compression import is_packed, pack, unpack
from mlserve.serve.protocols.dialect import ENCODING, Content, Headers, Inference
from mlserve.serve.service import ServedModel
from mlserve.serve.tasks.task import Asked
from mlserve.serve.transports.http_reply import ACCEPT_ENCODING, asked_fields, failure, success
from mlserve.wire.signature import InferRequest

__all__ = ["answer", "error_reply", "read", "reply"]

_log = logging.getLogger("mlserve.serve")


async def read(
    model: ServedModel, inference: Inference, body: bytes, headers: Headers, most_bytes: int
) -> InferRequest | Asked:
    """What a request's bytes mean, unpacked first where they are packed. A failure is counted. Raises RequestError."""
    try:
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
            answers = await answering.ask(model, wanted, inference.protocol)
            body, fields = inference.encode_answers(model, wanted, answers)
        else:
            answered = await answering.infer(model, wanted, inference.protocol, headers)
            timing = wanted.timing
            body, fields = inference.encode(model, wanted, answered.outputs)
    body, packed_fields = await pack(body, headers.get(ACCEPT_ENCODING))
    return Content(body, fields + packed_fields + asked_fields(headers, arrived_s, batches, timing=timing))


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
    return failure(status, inference.error(status, str(error)), asked_fields(headers, 0.0, ()) + extra)
