"""V2's model repository extension: what there is, and loading and unloading, where the server was started for it."""

from collections.abc import Collection
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mlserve.errors import InvalidRequest, ModelFailed
from mlserve.serve.catalog import IndexEntry
from mlserve.serve.protocols.dialect import AsyncCall, Call, Documentation, Page, json_response
from mlserve.serve.service import Service
from mlserve.wire import messages

__all__ = ["CALLS", "SLOW_CALLS", "repository_pages"]

Change = Literal["load", "unload"]

_PARAMETERS = {"type": "object", "properties": {"parameters": {"type": "object"}}}
_INDEX = Documentation(
    request={"type": "object", "properties": {"ready": {"type": "boolean"}}},
    response={
        "type": "array",
        "items": {
            "type": "object",
            "required": ["name", "version", "state"],
            "properties": {
                "name": {"type": "string"},
                "version": {"type": "string"},
                "state": {"enum": ["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]},
                "reason": {"type": "string"},
            },
        },
    },
    statuses=(400,),
)
_CHANGE = Documentation(request=_PARAMETERS, response={"type": "object"}, statuses=(400, 403, 404))


class _IndexRequest(msgspec.Struct):
    ready: bool = False


class _ChangeRequest(msgspec.Struct):
    parameters: dict[str, Any] = {}


def repository_pages(service: Service) -> tuple[Page, ...]:
    """The index, and the pages that load and unload."""

    async def index(request: Request) -> Response:
        wanted = _parse(await request.body(), _IndexRequest)
        return json_response(_index(service, ready=wanted.ready))

    async def load(request: Request) -> Response:
        wanted = _parse(await request.body(), _ChangeRequest)
        await _change(service, "load", request.path_params["name"], wanted.parameters)
        return json_response({})

    async def unload(request: Request) -> Response:
        wanted = _parse(await request.body(), _ChangeRequest)
        await _change(service, "unload", request.path_params["name"], wanted.parameters)
        return json_response({})

    post, path = ("POST",), "/v2/repository/models/{name}"
    return (
        Page("/v2/repository/index", post, "metadata", index, "Every version and its state", _INDEX),
        Page(f"{path}/load", post, "admin", load, "Load a model, or load it again", _CHANGE),
        Page(f"{path}/unload", post, "admin", unload, "Stop serving a model", _CHANGE),
    )


def _index_call(service: Service, payload: bytes) -> Any:
    request = messages.parse_message(messages.RepositoryIndexRequest, payload)
    _check_repository(request.repository_name)
    entries = _index(service, ready=request.ready)
    return messages.RepositoryIndexResponse(models=[msgspec.structs.asdict(entry) for entry in entries])


async def _load_call(service: Service, payload: bytes) -> Any:
    request = messages.parse_message(messages.RepositoryModelLoadRequest, payload)
    _check_repository(request.repository_name)
    await _change(service, "load", request.model_name, request.parameters)
    return messages.RepositoryModelLoadResponse()


async def _unload_call(service: Service, payload: bytes) -> Any:
    request = messages.parse_message(messages.RepositoryModelUnloadRequest, payload)
    _check_repository(request.repository_name)
    await _change(service, "unload", request.model_name, request.parameters)
    return messages.RepositoryModelUnloadResponse()


def _index(service: Service, *, ready: bool) -> list[IndexEntry]:
    return [entry for entry in service.catalog.index if not ready or entry.state == "READY"]


async def _change(service: Service, change: Change, name: str, parameters: Collection[str]) -> None:
    """Loads or unloads `name` in every worker.

    Raises Forbidden where clients may not, UnknownModelError, and InvalidRequest for a name that no model can have,
    for parameters that would change the model on its way, and for a model that does not load: as Triton has it.
    """
    control = service.control
    _check_name(name)
    for parameter in parameters:
        if parameter == "config" or parameter.startswith("file:"):
            raise InvalidRequest(
                f"parameter '{parameter[:64]}' is refused: a model is loaded as it was published; add another version "
                "to the store"
            )
    try:
        await (control.load(name) if change == "load" else control.unload(name))
    except ModelFailed as error:  # what was asked for cannot be had; the server is as well as before
        raise InvalidRequest(str(error)) from error


def _check_name(name: str) -> None:
    if not name:
        raise InvalidRequest("Model name cannot be empty")
    if "/" in name or "\\" in name:
        raise InvalidRequest("model name must not contain path traversal characters")


def _check_repository(name: str) -> None:
    if name:
        raise InvalidRequest("'repository_name' specification is not supported: there is one store")


def _parse(body: bytes, form: type[Any]) -> Any:
    """`body` as a `form`; an empty one asks for nothing special. Raises InvalidRequest."""
    try:
        return msgspec.json.decode(body or b"{}", type=form)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the request body is not what this page takes: {error}") from error


CALLS = (Call(f"/{messages.SERVICE}/RepositoryIndex", "metadata", _index_call),)
SLOW_CALLS = (
    AsyncCall(f"/{messages.SERVICE}/RepositoryModelLoad", "admin", _load_call),
    AsyncCall(f"/{messages.SERVICE}/RepositoryModelUnload", "admin", _unload_call),
)
