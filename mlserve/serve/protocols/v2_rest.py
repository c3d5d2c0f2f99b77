"""V2 (Open Inference Protocol) over REST, and the server's own health, readiness and metrics."""

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mlserve import __version__
from mlserve.errors import NotServing
from mlserve.model.tensors import Tensors
from mlserve.serve.metrics import render_metrics
from mlserve.serve.protocols.dialect import (
    JSON_BYTES,
    JSON_FIELDS,
    Content,
    Dialect,
    Headers,
    Inference,
    InferPage,
    Page,
    json_part,
)
from mlserve.serve.service import EXTENSIONS, ServedModel, Service
from mlserve.wire import rest
from mlserve.wire.signature import Field, InferRequest

__all__ = ["dialect"]


def dialect(service: Service) -> Dialect:
    """Its pages."""
    pages = _Pages(service)
    model, version = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
    get = ("GET",)
    return Dialect(
        "v2",
        (
            Page("/health", get, None, pages.live, "Is the server alive?"),
            Page("/ready", get, None, pages.ready, "Does the server take requests?"),
            Page("/metrics", get, "metrics", pages.metrics, "Prometheus metrics of all workers"),
            Page("/v2/health/live", get, None, pages.live, "Is the server alive?"),
            Page("/v2/health/ready", get, None, pages.ready, "Does the server take requests?"),
            Page("/v2", get, "metadata", pages.server, "The server and its extensions"),
            Page("/v2/repository/index", ("POST",), "metadata", pages.index, "Every version and its state"),
            *(Page(path, get, "metadata", pages.model, "A model's inputs and outputs") for path in (model, version)),
            *(
                Page(f"{path}/ready", get, "metadata", pages.model_ready, "Does this model take requests?")
                for path in (model, version)
            ),
            *(InferPage(f"{path}/infer", INFERENCE, "Inference with tensors") for path in (model, version)),
        ),
    )


class _Pages:
    """One method a page."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def live(self, _: Request) -> Response:
        return _json({"live": True})

    async def ready(self, _: Request) -> Response:
        if not self._service.ready:
            raise NotServing("the server is shutting down")
        return _json({"ready": True})

    async def metrics(self, _: Request) -> Response:
        text = await asyncio.get_running_loop().run_in_executor(None, render_metrics)
        return Response(text, media_type="text/plain; version=0.0.4")

    async def server(self, _: Request) -> Response:
        return _json({"name": self._service.name, "version": __version__, "extensions": EXTENSIONS})

    async def index(self, _: Request) -> Response:
        return _json(self._service.catalog.index)

    async def model(self, request: Request) -> Response:
        model = self._find(request)
        signature = model.signature
        return _json(
            {
                "name": signature.name,
                "versions": self._service.versions(signature.name),
                "platform": model.facts.platform,
                "inputs": [_tensor(field) for field in signature.inputs.values()],
                "outputs": [_tensor(field) for field in signature.outputs.values()],
            }
        )

    async def model_ready(self, request: Request) -> Response:
        self._service.check_serving()
        signature = self._find(request).signature
        return _json({"name": signature.name, "version": signature.version, "ready": True})

    def _find(self, request: Request) -> ServedModel:
        return self._service.find(request.path_params["name"], request.path_params.get("version", ""))


def _decode(body: bytes, model: ServedModel, headers: Headers) -> InferRequest:
    json_bytes = json_part(headers.get(JSON_BYTES)) if headers else None
    return rest.decode_request(body, model.signature, json_bytes)


def _encode(model: ServedModel, request: InferRequest, outputs: Tensors) -> Content:
    body, json_bytes = rest.encode_response(model.signature, request, outputs)
    if json_bytes is None:
        return Content(body, JSON_FIELDS)
    return Content(body, b"content-type: application/octet-stream\r\n%b: %d\r\n" % (JSON_BYTES, json_bytes))


INFERENCE = Inference("v2-rest", _decode, _encode)


def _tensor(field: Field) -> dict[str, Any]:
    return {"name": field.name, "datatype": field.datatype, "shape": field.spec.wire_shape}


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
