"""The friendly dialect: a person's text, image or numbers in, the answer itself out.

    POST /v1/predict  {"model": "spam", "text": "Win a prize!"}   -> {"label": "spam", "score": 0.95, "model": ...}
    POST /v1/predict  {"model": "spam", "text": ["a", "b"]}       -> {"model": ..., "predictions": [{...}, {...}]}
    POST /v1/predict  {"model": "iris", "inputs": {"x": [[...]]}} -> {"model": ..., "outputs": {"scores": [[...]]}}
    POST /v1/predict  {"model": "iris", "rows": [[...], [...]]}   -> {"model": ..., "predictions": [[...], [...]]}

A body may also be the text or the image itself, by its content type. Where one name is served, `model` may be left out.
"""

import asyncio
import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from mlserve.errors import InvalidRequest, RequestError, UnsupportedContent
from mlserve.model.tensors import Tensors
from mlserve.serve.answering import Answering
from mlserve.serve.pages.description import ModelDescription, describe_models
from mlserve.serve.pages.example import example_question
from mlserve.serve.protocols.dialect import (
    Content,
    Dialect,
    Documentation,
    Headers,
    Inference,
    InferPage,
    Page,
)
from mlserve.serve.service import ServedModel, Service
from mlserve.serve.tasks.task import Asked, TaskAnswer, TaskKind
from mlserve.wire.plain import from_columns, from_rows, to_columns, to_rows, write_json
from mlserve.wire.signature import InferRequest

__all__ = ["INFERENCE", "PREDICT", "Question", "dialect", "find_model", "predict"]

# What bodies may be beside JSON. curl calls what `-d` sends a form, whatever it is.
_JSON = frozenset(("", "application/json", "application/x-www-form-urlencoded"))
_TEXT = "text/plain"
_IMAGES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp")

_ONE_VALUE, _MANY_VALUES = "one", "many"


class Question(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON body of a prediction. One of `text`, `image`, `inputs` and `rows` says what to predict from."""

    model: str = ""
    version: str | int = ""
    alias: str = ""
    text: str | list[str] | UnsetType = UNSET
    image: str | list[str] | UnsetType = UNSET
    inputs: dict[str, Any] | UnsetType = UNSET
    rows: list[Any] | UnsetType = UNSET

    @property
    def which(self) -> str:
        """The version or alias it is for; empty for the default one. Raises InvalidRequest for both."""
        if self.alias and self.version != "":
            raise InvalidRequest("a prediction names a version or an alias, not both")
        return self.alias or str(self.version)


def _one_or_many(one: dict[str, str], description: str) -> dict[str, Any]:
    return {"description": description, "oneOf": [one, {"type": "array", "items": one, "minItems": 1}]}


class _ImageItself(Question):
    """A body that is the image."""

    content: bytes = b""


_question_json = msgspec.json.Decoder(Question)


class _ByRow(InferRequest):
    """Tensors that were sent row by row, and are answered so."""


_WHICH = {
    "model": {"type": "string", "description": "The model's name; may be left out where one name is served."},
    "version": {"type": ["string", "integer"], "description": "A version or an alias; left out for the default one."},
    "alias": {"type": "string", "description": "An alias, such as production."},
}
_FROM = {
    "text": _one_or_many({"type": "string"}, "A text, or a list of texts."),
    "image": _one_or_many({"type": "string", "contentEncoding": "base64"}, "An image file in base64, or a list."),
    "inputs": {"type": "object", "description": "Tensors by column: every input by name, each [rows, ...]."},
    "rows": {"type": "array", "minItems": 1, "description": "Tensors by row: objects by input name, or plain values."},
}
_ANSWER = {
    "type": "object",
    "properties": {
        "model": {"type": "string"},
        "version": {"type": "string"},
        "label": {"type": "string", "description": "For one value: its most likely class."},
        "score": {"type": "number", "description": "How sure the model is of it, 0 to 1 where it says so."},
        "embedding": {
            "type": "array",
            "items": {"type": "number"},
            "description": "For one value, by a model that embeds.",
        },
        "predictions": {"type": "array", "description": "For a list: one answer for each value or row, in order."},
        "outputs": {"type": "object", "description": "For inputs by column: every output by name, each [rows, ...]."},
    },
    "required": ["model", "version"],
}
PREDICT = Documentation(
    request={
        "type": "object",
        "additionalProperties": False,
        "properties": {**_WHICH, **_FROM},
        "oneOf": [{"required": [name]} for name in _FROM],
    },
    response=_ANSWER,
    media=("application/json", _TEXT, *_IMAGES),
    example=example_question,
)
"""What `/openapi.json` says of a page that is spoken with so."""

_PREDICT_ANY = msgspec.structs.replace(
    PREDICT,
    query={name: {"type": "string"} for name in _WHICH},
    example=lambda model: {"model": model.signature.name, **example_question(model)},
)
_MODELS = Documentation(response=msgspec.json.schema(dict[str, list[ModelDescription]]))
_EXAMPLE = Documentation(response={"type": "object", "description": "The body of a POST to .../predict."})


def dialect(service: Service, answering: Answering) -> Dialect:
    """Its pages."""
    pages = _Pages(service, answering)
    model = "/v1/models/{name}"
    return Dialect(
        "friendly",
        (
            Page("/v1/predict", ("POST",), "infer", pages.predict, "Predict, by a model the body names", _PREDICT_ANY),
            InferPage(f"{model}/predict", INFERENCE, "Predict", PREDICT),
            InferPage(f"{model}/versions/{{version}}/predict", INFERENCE, "Predict, by one version or alias", PREDICT),
            Page("/v1/models", ("GET",), "metadata", pages.models, "What is served, and what it takes", _MODELS),
            Page(f"{model}/example", ("GET",), "metadata", pages.example, "A request this model answers", _EXAMPLE),
        ),
    )


class _Pages:
    def __init__(self, service: Service, answering: Answering) -> None:
        self._service, self._answering = service, answering

    async def predict(self, request: Request) -> Response:
        body, headers = await request.body(), dict(request.scope["headers"])
        self._service.check_serving()
        question = _read(body, headers)
        asked_for = request.query_params
        name = _agreed("model", question.model, asked_for.get("model", ""))
        which = _agreed("version", question.which, asked_for.get("version", "") or asked_for.get("alias", ""))
        model = find_model(self._service, name, which)
        content = await predict(self._answering, model, question, INFERENCE.protocol, headers)
        return Response(content.body, media_type="application/json")

    async def models(self, _: Request) -> Response:
        return Response(msgspec.json.encode(describe_models(self._service.catalog)), media_type="application/json")

    async def example(self, request: Request) -> Response:
        model = self._service.find(request.path_params["name"])
        question = await asyncio.to_thread(example_question, model)
        return Response(msgspec.json.encode(question), media_type="application/json")


def find_model(service: Service, name: str, which: str) -> ServedModel:
    """The version or alias `which` of `name`; an empty `name` means the only one. Raises RequestError."""
    names = [name] if name else service.catalog.names
    if len(names) == 1:
        return service.find(names[0], which)
    service.catalog.check_any()
    some = ", ".join(f"'{each}'" for each in names[:8]) + (", ..." if len(names) > 8 else "")
    raise InvalidRequest(f"say which model: 'model' is one of {some}")


async def predict(
    answering: Answering, model: ServedModel, question: Question, protocol: str, headers: Headers
) -> Content:
    """The answer to `question` by `model`; `headers` are those it came with. Raises RequestError."""
    try:
        request = _wanted(question, model)
    except RequestError as error:
        model.meter.failed(protocol, error)
        raise
    if isinstance(request, Asked):
        return _encode_answers(model, request, await answering.ask(model, request, protocol))
    answered = await answering.infer(model, request, protocol, headers)
    return _encode(model, request, answered.outputs)


def _decode(body: bytes, model: ServedModel, headers: Headers) -> InferRequest | Asked:
    question = _read(body, headers)
    signature = model.signature
    if question.model not in ("", signature.name):
        raise InvalidRequest(f"the path names model '{signature.name}', the body '{question.model[:64]}'")
    if question.which not in ("", signature.version):
        raise InvalidRequest(
            f"the path means version {signature.version}, the body '{question.which[:64]}'; "
            "name a version or an alias in the path: /v1/models/NAME/versions/VERSION/predict"
        )
    return _wanted(question, model)


def _read(body: bytes, headers: Headers) -> Question:
    """The question in `body`, JSON or the value itself. Raises InvalidRequest or UnsupportedContent."""
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
    if kind in _JSON or kind.endswith("+json"):
        try:
            return _question_json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest(f"the request body is no prediction: {error}") from error
    if kind == _TEXT:
        try:
            return Question(text=body.decode())
        except UnicodeDecodeError as error:
            raise InvalidRequest("the text is not UTF-8") from error
    if kind in _IMAGES:
        return _ImageItself(content=body)
    raise UnsupportedContent(f"content-type {kind[:64]!r} is not read here; send application/json, {_TEXT} or an image")


def _agreed(what: str, in_body: str, in_query: str) -> str:
    if in_body and in_query and in_body != in_query:
        raise InvalidRequest(f"the body says {what} '{in_body[:64]}', the query '{in_query[:64]}'")
    return in_body or in_query


def _wanted(question: Question, model: ServedModel) -> InferRequest | Asked:
    """What is to be predicted from. Raises InvalidRequest."""
    if isinstance(question, _ImageItself):
        return _asked("image", [question.content], _ONE_VALUE, model)
    given = [name for name in ("text", "image", "inputs", "rows") if getattr(question, name) is not UNSET]
    if len(given) != 1:
        found = " and ".join(f"'{name}'" for name in given) or "none of them"
        raise InvalidRequest(f"send one of 'text', 'image', 'inputs' and 'rows'; this request has {found}")
    if not isinstance(question.text, UnsetType):
        values, form = _values(question.text)
        return _asked("text", values, form, model)
    if not isinstance(question.image, UnsetType):
        values, form = _values(question.image)
        return _asked("image", [_image(value) for value in values], form, model)
    signature = model.signature
    if not isinstance(question.inputs, UnsetType):
        tensors = from_columns(question.inputs, signature)
        return InferRequest(tensors, signature.rows(tensors))
    assert not isinstance(question.rows, UnsetType)
    tensors = from_rows(question.rows, signature)
    return _ByRow(tensors, signature.rows(tensors))


def _values(value: str | list[str]) -> tuple[list[str], str]:
    return ([value], _ONE_VALUE) if isinstance(value, str) else (value, _MANY_VALUES)


def _asked(kind: TaskKind, values: Sequence[str] | Sequence[bytes], form: str, model: ServedModel) -> Asked:
    if not values:
        raise InvalidRequest(f"the list of '{kind}' is empty; send at least one")
    if model.task is not None and model.task.kind != kind:
        raise InvalidRequest(f"model '{model.signature.name}' takes '{model.task.kind}', not '{kind}'")
    return Asked(values, form=form)


def _image(text: str) -> bytes:
    """The file that `text` encodes: base64, or a `data:` URL of it."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"an 'image' is not base64 of an image file: {error}") from error


def _encode(model: ServedModel, request: InferRequest, outputs: Tensors) -> Content:
    signature = model.signature
    names = list(signature.outputs)
    answer: Mapping[str, Any] = (
        {"predictions": to_rows(outputs, names)}
        if isinstance(request, _ByRow)
        else {"outputs": to_columns(outputs, names)}
    )
    return Content(write_json({"model": signature.name, "version": signature.version, **answer}))


def _encode_answers(model: ServedModel, asked: Asked, answers: Sequence[TaskAnswer]) -> Content:
    source = {"model": model.signature.name, "version": model.signature.version}
    if asked.form == _ONE_VALUE:
        return Content(write_json({**answers[0], **source}))
    return Content(write_json({**source, "predictions": answers}))


INFERENCE = Inference("friendly", _decode, _encode, _encode_answers, all_headers=True)
"""How a prediction is read and written where the path says which model it is for."""
