"""SageMaker's container contract: several models behind one endpoint (`/models`), each asked by its name.

Health (`/ping`) is TorchServe's page, too; `/invocations`, for one model or one that a header names, MLflow's.

SageMaker itself names a folder on the container's disk when it loads a model. Here no caller names a path: models come
from the store that the server was started with, by name, and any other `url` is refused.
"""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mlserve.errors import InvalidRequest
from mlserve.serve.protocols import invocations
from mlserve.serve.protocols.dialect import (
    Dialect,
    Documentation,
    InferPage,
    Page,
    error_body,
    find_by_path,
    json_response,
)
from mlserve.serve.protocols.rows import example_rows
from mlserve.serve.protocols.stored import ListPage, parse_reference, reference_of
from mlserve.serve.service import ServedModel, Service

__all__ = ["INFERENCE", "dialect"]

INFERENCE = msgspec.structs.replace(invocations.INFERENCE, protocol="sagemaker", error=error_body)
"""How one model of several is asked: as at `/invocations`."""


class _Load(msgspec.Struct):
    """The body of `POST /models`."""

    model_name: str
    url: str = ""


_load_json = msgspec.json.Decoder(_Load)

_DESCRIBED: dict[str, Any] = {
    "type": "object",
    "required": ["modelName", "modelUrl"],
    "properties": {"modelName": {"type": "string"}, "modelUrl": {"type": "string"}},
}
_LISTED = Documentation(
    response={
        "type": "object",
        "required": ["models"],
        "properties": {"models": {"type": "array", "items": _DESCRIBED}},
    },
    query={"limit": {"type": "integer", "minimum": 1}, "next_page_token": {"type": "string"}},
)
_LOADED = Documentation(
    request={
        "type": "object",
        "required": ["model_name"],
        "properties": {"model_name": {"type": "string"}, "url": {"type": "string"}},
    },
    response=_DESCRIBED,
    statuses=(400, 403, 404, 409),
)

# `/invocations` has no such example: where several models are served, it needs a header beside it.
_INVOKED = msgspec.structs.replace(invocations.DOCUMENTATION, example=lambda model: {"instances": example_rows(model)})


def dialect(service: Service) -> Dialect:
    """Its pages."""
    pages = _Pages(service)
    one = "/models/{name}"
    return Dialect(
        "sagemaker",
        (
            Page("/models", ("GET",), "metadata", pages.list_models, "The served models", _LISTED),
            Page("/models", ("POST",), "admin", pages.load, "Loads a model of the store", _LOADED),
            Page(one, ("GET",), "metadata", pages.describe, "One model", Documentation(response=_DESCRIBED)),
            Page(one, ("DELETE",), "admin", pages.unload, "Stops serving a model", Documentation(response={})),
            InferPage(f"{one}/invoke", INFERENCE, "Inference with one model of several", _INVOKED),
        ),
    )


class _Pages:
    """One method a page."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def list_models(self, request: Request) -> Response:
        page = ListPage.of(self._service.catalog.by_default, request)
        token = {"nextPageToken": page.next_token} if page.next_token else {}
        return json_response({"models": [_described(model) for model in page.models], **token})

    async def describe(self, request: Request) -> Response:
        return json_response(_described(find_by_path(self._service, request)))

    async def load(self, request: Request) -> Response:
        control = self._service.control
        try:
            wanted = _load_json.decode(await request.body())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest(f"the request is no JSON object with 'model_name': {error}") from error
        name, version = parse_reference(wanted.url or wanted.model_name)
        if name != parse_reference(wanted.model_name).name:
            raise InvalidRequest("a model is served under the name it has in the store: 'url' names another one")
        if name in self._service.catalog.names:
            return json_response({"error": f"model '{name}' is loaded already"}, 409)
        await control.load(name, version)
        return json_response(_described(self._service.find(name, version)))

    async def unload(self, request: Request) -> Response:
        control = self._service.control
        name = find_by_path(self._service, request).signature.name
        await control.unload(name)
        return json_response({"status": f"model '{name}' is unloaded"})


def _described(model: ServedModel) -> dict[str, str]:
    return {"modelName": model.signature.name, "modelUrl": reference_of(model)}
