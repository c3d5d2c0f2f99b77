"""GraphQL over HTTP, an extra: `POST /graphql`. The library is imported by the first request that needs it."""

import asyncio
from importlib.util import find_spec
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mlserve.errors import InvalidRequest, UnsupportedContent
from mlserve.serve.answering import Answering
from mlserve.serve.catalog import ServedModel
from mlserve.serve.pages.example import example_question
from mlserve.serve.protocols.dialect import CREDENTIAL, Dialect, Documentation, Page
from mlserve.serve.service import Service

__all__ = ["dialect"]

_JSON = "application/json"
# The media type that says of the status, too, whether a request was understood (GraphQL over HTTP, section 6.4).
_GRAPHQL = "application/graphql-response+json"


class _Question(msgspec.Struct):
    """The body of a request, as GraphQL over HTTP defines it (section 5.4); what else it holds is passed over."""

    query: str
    operation_name: str | None = msgspec.field(name="operationName", default=None)
    variables: dict[str, Any] | None = None


_question_json = msgspec.json.Decoder(_Question)


def dialect(service: Service, answering: Answering) -> Dialect:
    """Its page. Reading the schema and the models needs the scope `metadata`; `predict` asks for `infer` beside it."""
    page = _GraphQl(service, answering)
    summary = "Models and predictions by GraphQL"
    pages = (Page("/graphql", ("POST",), "metadata", page.answer, summary, _DOCUMENTATION, infers=True),)
    return Dialect("graphql", pages, _error)


class _GraphQl:
    def __init__(self, service: Service, answering: Answering) -> None:
        self._service, self._answering = service, answering

    async def answer(self, request: Request) -> Response:
        if find_spec("graphql") is None:
            what = "GraphQL is an extra of mlserve that is not installed here: pip install 'mlserve[graphql]'"
            return Response(_error(501, what), 501, media_type=_JSON)
        headers = dict(request.scope["headers"])
        question = _read(await request.body(), headers)
        # The first import takes a good tenth of a second, which the event loop has not.
        asking = await asyncio.get_running_loop().run_in_executor(None, _import_asking)
        context = asking.Asking(self._service, self._answering, headers, request.scope[CREDENTIAL])
        result = await asking.ask(question.query, question.variables or {}, question.operation_name, context)
        wants_status = _GRAPHQL.encode() in headers.get(b"accept", b"").lower()
        status = 400 if wants_status and "data" not in result else 200
        return Response(msgspec.json.encode(result), status, media_type=_GRAPHQL if wants_status else _JSON)


def _import_asking() -> Any:
    from mlserve.serve.protocols import graphql_schema

    return graphql_schema


def _read(body: bytes, headers: dict[bytes, bytes]) -> _Question:
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
    if kind != _JSON:
        raise UnsupportedContent(
            f"content-type {kind[:64]!r} is not read here; send the header 'content-type: {_JSON}'"
        )
    try:
        return _question_json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the request body is no GraphQL request: {error}") from error


def _error(_: int, message: str) -> bytes:
    """An answer without data, as GraphQL writes it."""
    return msgspec.json.encode({"errors": [{"message": message[:900]}]})


def _example(model: ServedModel) -> dict[str, Any]:
    """A request that predicts, its values in variables."""
    question = example_question(model)
    name, value = next(iter(question.items()))
    kind = "JSON" if name == "inputs" else "[String!]"
    fields = "outputs" if name == "inputs" else "predictions"
    query = f"query ($model: String, $of: {kind}) {{ predict(model: $model, {name}: $of) {{ version {fields} }} }}"
    return {"query": query, "variables": {"model": model.signature.name, "of": value}}


_DOCUMENTATION = Documentation(
    request={
        "type": "object",
        "properties": {
            "query": {"type": "string"},
            "operationName": {"type": ["string", "null"]},
            "variables": {"type": ["object", "null"]},
        },
        "required": ["query"],
    },
    response={
        "type": "object",
        "properties": {"data": {"type": ["object", "null"]}, "errors": {"type": "array", "items": {"type": "object"}}},
    },
    example=_example,
    statuses=(415,),
)
