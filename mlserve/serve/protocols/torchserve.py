"""TorchServe's inference API: `/ping`, `/predictions/{model}[/{version}]`, and the description at `OPTIONS /`.

A body is what a handler of TorchServe gets: JSON, a text, an image, or a form with one of them under `data` or `body`.
One input is answered by one answer, several by a list:

    [0.1, 0.2, ...]               a row of the model's only input     -> its answer
    {"x": [...], "n": 3}          a row of several inputs             -> its answer
    [[...], [...]]                rows                                -> a list of answers
    {"data": ...}                 any of these                        -> as if it stood alone
    {"instances": [...]}          rows in TorchServe's JSON envelope  -> {"predictions": [...]}

`OPTIONS /` describes these pages and `OPTIONS /` of the management port the others.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mlserve import __version__
from mlserve.errors import InvalidRequest, NotServing, RequestError
from mlserve.model.tensors import Tensors
from mlserve.serve.answering import Answering
from mlserve.serve.protocols import rows
from mlserve.serve.protocols.dialect import (
    ENCODING,
    Content,
    Dialect,
    Documentation,
    Headers,
    Inference,
    InferPage,
    Page,
    check_encoding,
    find_by_path,
)
from mlserve.serve.protocols.multipart import MULTIPART, read_part
from mlserve.serve.protocols.rows import RowsRequest
from mlserve.serve.service import ServedModel, Service
from mlserve.serve.tasks.task import Asked, TaskAnswer
from mlserve.wire.plain import is_b64, parse_json, write_json
from mlserve.wire.signature import InferRequest
from mlserve.wire.tables import read_csv

__all__ = ["INFERENCE", "description", "dialect", "error_body"]

# How a request was asked, and so how it is answered.
_ONE, _SEVERAL, _ENVELOPE = "one", "several", "envelope"

_UNDER = ("data", "body")

_ERROR_TYPES = {
    400: "BadRequestException",
    401: "InvalidKeyException",
    403: "ForbiddenException",
    404: "ModelNotFoundException",
    405: "MethodNotAllowedException",
    409: "ConflictStatusException",
    413: "RequestEntityTooLargeException",
    415: "BadRequestException",
    503: "ServiceUnavailableException",
    504: "RequestTimeoutException",
}


def dialect(service: Service, answering: Answering) -> Dialect:
    """Its pages."""

    async def ping(_: Request) -> Response:
        if not service.ready:
            raise NotServing("the server is shutting down")
        return Response(b'{"status":"Healthy"}', media_type="application/json")

    async def describe(_: Request) -> Response:
        return description("Inference APIs", pages)

    async def put(request: Request) -> Response:
        service.check_serving()
        return await _answer(answering, find_by_path(service, request), request)

    summary = "Inference as TorchServe's clients ask for it: JSON, a text, an image, or a form with one"
    paths = ("/predictions/{name}", "/predictions/{name}/{version}")
    pages: list[Page | InferPage] = [
        Page("/ping", ("GET",), None, ping, "Does the server take requests? (TorchServe, SageMaker, MLflow)", _HEALTHY),
        Page("/", ("OPTIONS",), "metadata", describe, "TorchServe's pages as OpenAPI", Documentation(response={})),
        *(InferPage(path, INFERENCE, summary, _PREDICTION) for path in paths),
        *(Page(path, ("PUT",), "infer", put, "The same, as `curl -T FILE` sends it", _PREDICTION) for path in paths),
    ]
    return Dialect("torchserve", tuple(pages), error_body)


def error_body(status: int, message: str) -> bytes:
    """`{"code": ..., "type": ..., "message": ...}`, at most a kilobyte of it."""
    kind = _ERROR_TYPES.get(status, "InternalServerException")
    return msgspec.json.encode({"code": status, "type": kind, "message": message[:900]})


def description(title: str, pages: Sequence[Page | InferPage]) -> Response:
    """`pages` as the OpenAPI document that TorchServe gives to `OPTIONS /`."""
    paths: dict[str, dict[str, Any]] = {}
    for page in pages:
        operation = {"summary": page.summary, "responses": {"200": {"description": "done"}}}
        for method in page.methods if isinstance(page, Page) else ("POST",):
            paths.setdefault(page.path, {})[method.lower()] = operation
    document = {"openapi": "3.0.1", "info": {"title": title, "version": __version__}, "paths": paths}
    return Response(msgspec.json.encode(document), media_type="application/json")


async def _answer(answering: Answering, model: ServedModel, request: Request) -> Response:
    """What the application does for a POST, for a PUT."""
    headers = dict(request.scope["headers"])
    try:
        check_encoding(headers.get(ENCODING))
        wanted = _decode(await request.body(), model, headers)
    except RequestError as error:
        model.meter.failed(INFERENCE.protocol, error)
        raise
    if isinstance(wanted, Asked):
        content = _encode_answers(model, wanted, await answering.ask(model, wanted, INFERENCE.protocol))
    else:
        answered = await answering.infer(model, wanted, INFERENCE.protocol)
        content = _encode(model, wanted, answered.outputs)
    return Response(content.body, media_type="application/json")


def _decode(body: bytes, model: ServedModel, headers: Headers) -> InferRequest | Asked:
    content_type = headers.get(b"content-type", b"")
    if rows.media_type(content_type) == MULTIPART:
        part = read_part(body, content_type, _UNDER)
        body, headers = part.body, {b"content-type": part.content_type}
    match rows.content_kind(body, headers, json_first=False):
        case rows.JSON:
            return _of_document(parse_json(body), model)
        case rows.IMAGE:
            return rows.of_image(body, model, _ONE)
        case rows.CSV:
            return rows.of_table(read_csv(body), model, _SEVERAL)
        case rows.NPY:
            return rows.of_array(body, model, _SEVERAL)
    return rows.of_text(body, model, _ONE)


def _of_document(document: Any, model: ServedModel) -> InferRequest | Asked:
    inputs = model.signature.inputs
    if not isinstance(document, dict) or document.keys() == inputs.keys():
        return _of_value(document, model)
    if "instances" in document and "instances" not in inputs:
        return rows.of_rows(document["instances"], model, _ENVELOPE)
    under = next((name for name in _UNDER if document.keys() == {name} and name not in inputs), None)
    return _of_value(document if under is None else document[under], model)


def _of_value(value: Any, model: ServedModel) -> InferRequest | Asked:
    """One row or several, told apart by how deep they are nested."""
    inputs = model.signature.inputs
    if isinstance(value, dict) and value.keys() == inputs.keys():
        name, field = next(iter(inputs.items()))
        if _depth(value[name]) == len(field.dims):
            return rows.of_columns(value, model, _SEVERAL)
        return rows.of_rows([value], model, _ONE)
    if not isinstance(value, list):
        return rows.of_rows([value], model, _ONE)
    if not value:
        raise InvalidRequest("the request holds no rows; send at least one")
    if len(inputs) == 1 and _is_row(value, model):
        return rows.of_rows([value], model, _ONE)
    return rows.of_rows(value, model, _SEVERAL)


def _is_row(value: list[Any], model: ServedModel) -> bool:
    """Whether a list is one row of the model's only input; rows as objects and a person's texts never are."""
    (field,) = model.signature.inputs.values()
    named = isinstance(value[0], dict) and not is_b64(value[0])
    persons = model.task is not None and isinstance(value[0], str | dict)
    return not named and not persons and _depth(value) == len(field.dims) - 1


def _depth(value: Any) -> int:
    depth = 0
    while isinstance(value, list):
        depth += 1
        value = value[0] if value else None
    return depth


def _encode(model: ServedModel, request: InferRequest, outputs: Tensors) -> Content:
    assert isinstance(request, RowsRequest)
    return _framed(rows.answer_rows(outputs, model.signature), request.form)


def _encode_answers(_: ServedModel, asked: Asked, answers: Sequence[TaskAnswer]) -> Content:
    return _framed(list(answers), asked.form)


def _framed(answers: Any, form: str) -> Content:
    if form == _ENVELOPE:
        return Content(write_json({"predictions": answers}))
    return Content(
        write_json(answers[0] if form == _ONE and len(answers) == 1 and isinstance(answers, list) else answers)
    )


INFERENCE = Inference("torchserve", _decode, _encode, _encode_answers, all_headers=True, error=error_body)
"""How `/predictions` reads and writes."""

_HEALTHY = Documentation(
    response={"type": "object", "required": ["status"], "properties": {"status": {"const": "Healthy"}}}
)
_PREDICTION = Documentation(
    request={},
    response={},
    example=lambda model: rows.example_rows(model)[0],
    media=(rows.JSON, rows.TEXT, rows.CSV, rows.NPY, "image/png", "image/jpeg", MULTIPART),
    statuses=(400, 404, 413, 415, 503, 504),
)
