"""TorchServe's management API, on the management port alone: list, describe, register, set-default, unregister.

A model is registered by its name in the server's own store (`url=spam` or `url=spam@3`): no URL is fetched and no path
is read. TorchServe gives each model workers of its own; here all workers of the server serve all models, so scaling
one model can only be answered with what there is.
"""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mlserve.errors import InvalidRequest
from mlserve.serve.protocols.dialect import Dialect, Documentation, Page, find_by_path, json_response
from mlserve.serve.protocols.stored import ListPage, parse_reference, reference_of, whole_number
from mlserve.serve.protocols.torchserve import description, error_body
from mlserve.serve.service import ServedModel, Service
from mlserve.serve.settings import ServeSettings

__all__ = ["dialect"]

_ALL = "all"

_DONE = Documentation(response={"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}})
_LIST = Documentation(
    response={"type": "object", "required": ["models"]},
    query={"limit": {"type": "integer", "minimum": 1}, "next_page_token": {"type": "string"}},
)
_DESCRIPTIONS = Documentation(response={"type": "array", "items": {"type": "object"}})
_REGISTER = msgspec.structs.replace(
    _DONE, query={"url": {"type": "string"}, "model_name": {"type": "string"}, "initial_workers": {"type": "integer"}}
)
_SCALE = msgspec.structs.replace(_DONE, query={"min_worker": {"type": "integer"}, "max_worker": {"type": "integer"}})


def dialect(service: Service, settings: ServeSettings) -> Dialect:
    """Its pages; each is for the management port and asks for the scope `admin`."""
    pages = _Pages(service, settings)

    def page(path: str, method: str, answer: Any, summary: str, documentation: Documentation) -> Page:
        return Page(path, (method,), "admin", answer, summary, documentation, admin=True)

    one, version = "/models/{name}", "/models/{name}/{version}"
    listed = (
        page("/models", "GET", pages.list_models, "The registered models", _LIST),
        page("/models", "POST", pages.register, "Registers a model of the store", _REGISTER),
        page(one, "GET", pages.describe, "The default version of a model", _DESCRIPTIONS),
        page(version, "GET", pages.describe, "One version of a model, or all", _DESCRIPTIONS),
        page(one, "PUT", pages.scale, "How many workers serve a model", _SCALE),
        page(version, "PUT", pages.scale, "How many workers serve a version", _SCALE),
        page(f"{version}/set-default", "PUT", pages.set_default, "Makes a version the default one", _DONE),
        page(one, "DELETE", pages.unregister, "Stops serving a model", _DONE),
        page(version, "DELETE", pages.unregister, "Stops serving a version", _DONE),
    )

    async def describe(_: Request) -> Response:
        return description("Management APIs", listed)

    describing = page("/", "OPTIONS", describe, "These pages as OpenAPI", Documentation(response={}))
    return Dialect("torchserve-management", (*listed, describing), error_body)


class _Pages:
    """One method a page."""

    def __init__(self, service: Service, settings: ServeSettings) -> None:
        self._service, self._settings = service, settings

    async def list_models(self, request: Request) -> Response:
        page = ListPage.of(self._service.catalog.by_default, request)
        token = {"nextPageToken": page.next_token} if page.next_token else {}
        listed = [{"modelName": model.signature.name, "modelUrl": reference_of(model)} for model in page.models]
        return json_response({**token, "models": listed})

    async def describe(self, request: Request) -> Response:
        name = request.path_params["name"]
        if request.path_params.get("version") == _ALL:
            models = [self._service.find(name, version) for version in self._service.versions(name)]
            models = models or [self._service.find(name)]  # which says why there is none
        else:
            models = [find_by_path(self._service, request)]
        return json_response([self._described(model) for model in models])

    async def register(self, request: Request) -> Response:
        control = self._service.control
        query = request.query_params
        name, version = parse_reference(query.get("url", ""))
        if query.get("model_name", name) != name:
            raise InvalidRequest("a model is served under the name it has in the store: 'model_name' is another one")
        await control.load(name, version)
        model = self._service.find(name, version)
        return _status(
            f'Model "{name}" Version: {model.signature.version} registered with {self._settings.workers} '
            "initial workers"
        )

    async def scale(self, request: Request) -> Response:
        signature = find_by_path(self._service, request).signature
        workers = self._settings.workers
        least = whole_number(request, "min_worker", 1)
        most = whole_number(request, "max_worker", max(least, workers))
        if not least <= workers <= most:
            raise InvalidRequest(
                f"the server has {workers} workers, and each serves every model: start it with another number of "
                "--workers, or unregister the model to stop it"
            )
        which = f", version: {signature.version}" if "version" in request.path_params else ""
        return _status(f"Workers scaled to {workers} for model: {signature.name}{which}")

    async def set_default(self, request: Request) -> Response:
        control = self._service.control
        signature = find_by_path(self._service, request).signature
        await control.set_default(signature.name, signature.version)
        return _status(f'Default version successfully updated for model "{signature.name}" to "{signature.version}"')

    async def unregister(self, request: Request) -> Response:
        control = self._service.control
        signature = find_by_path(self._service, request).signature
        await control.unload(signature.name, signature.version if "version" in request.path_params else "")
        return _status(f'Model "{signature.name}" unregistered')

    def _described(self, model: ServedModel) -> dict[str, Any]:
        """TorchServe's description. Its times are milliseconds; what a worker's memory holds is not told apart here."""
        settings, facts, signature = self._settings, model.facts, model.signature
        waiting_rows = model.batcher.waiting_rows
        worker = {
            "startTime": facts.loaded_at,
            "status": "READY",
            "gpu": facts.device.startswith(("cuda", "gpu", "tensorrt")),
            "memoryUsage": 0,
        }
        return {
            "modelName": signature.name,
            "modelVersion": signature.version,
            "modelUrl": reference_of(model),
            "engine": facts.engine,
            "runtime": "python",
            "minWorkers": settings.workers,
            "maxWorkers": settings.workers,
            "batchSize": facts.max_rows,
            "maxBatchDelay": round(settings.batch.max_delay_s * 1000),
            "workers": [{"id": str(number), **worker} for number in range(settings.workers)],
            "jobQueueStatus": {
                "remainingCapacity": max(settings.batch.max_waiting_rows - waiting_rows, 0),
                "pendingRequests": waiting_rows,
            },
        }


def _status(text: str) -> Response:
    return json_response({"status": text})
