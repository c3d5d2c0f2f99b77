"""V2 (Open Inference Protocol) over REST, and the server's own health, readiness and metrics."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mlserve import __version__
from mlserve.errors import NotServing
from mlserve.model.tensors import Tensors
from mlserve.serve.metrics import render_metrics
from mlserve.serve.pages.example import example_v2
from mlserve.serve.protocols.dialect import (
    JSON_BYTES,
    JSON_FIELDS,
    Content,
    Dialect,
    Documentation,
    Headers,
    Inference,
    InferPage,
    Page,
    json_part,
    json_response,
)
from mlserve.serve.protocols.v2_configuration import configuration_pages
from mlserve.serve.protocols.v2_refusals import refusal_pages
from mlserve.serve.protocols.v2_repository import repository_pages
from mlserve.serve.protocols.v2_statistics import statistics_pages
from mlserve.serve.service import EXTENSIONS, ServedModel, Service
from mlserve.wire import rest, rest_fast
from mlserve.wire.classification import classify
from mlserve.wire.signature import Field, InferRequest

__all__ = ["dialect"]


def dialect(service: Service) -> Dialect:
    """Its pages."""
    pages = _Pages(service)
    model, version = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
    get, server = ("GET",), "The server and its extensions"
    return Dialect(
        "v2",
        (
            Page("/health", get, None, pages.live, "Is the server alive?", _STATE),
            Page("/ready", get, None, pages.ready, "Does the server take requests?", _STATE),
            Page("/metrics", get, "metrics", pages.metrics, "Prometheus metrics of all workers"),
            Page("/v2/health/live", get, None, pages.live, "Is the server alive?", _STATE),
            Page("/v2/health/ready", get, None, pages.ready, "Does the server take requests?", _STATE),
            Page("/v2", get, "metadata", pages.server, server, _SERVER),
            Page("/v2/", get, "metadata", pages.server, server, _SERVER),
            *repository_pages(service),
            *statistics_pages(service),
            *configuration_pages(service),
            *(
                Page(path, get, "metadata", pages.model, "A model's inputs and outputs", _MODEL)
                for path in (model, version)
            ),
            *(
                Page(f"{path}/ready", get, "metadata", pages.model_ready, "Does this model take requests?", _STATE)
                for path in (model, version)
            ),
            *(InferPage(f"{path}/infer", INFERENCE, "Inference with tensors", _INFER) for path in (model, version)),
            *refusal_pages(),
        ),
    )


class _Pages:
    """One method a page."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def live(self, _: Request) -> Response:
        return json_response({"live": True})

    async def ready(self, _: Request) -> Response:
        if not self._service.ready:
            raise NotServing("the server is shutting down")
        return json_response({"ready": True})

    async def metrics(self, _: Request) -> Response:
        text = await asyncio.get_running_loop().run_in_executor(None, render_metrics)
        return Response(text, media_type="text/plain; version=0.0.4")

    async def server(self, _: Request) -> Response:
        return json_response({"name": self._service.name, "version": __version__, "extensions": EXTENSIONS})

    async def model(self, request: Request) -> Response:
        model = self._find(request)
        signature = model.signature
        return json_response(
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
        return json_response({"name": signature.name, "version": signature.version, "ready": True})

    def _find(self, request: Request) -> ServedModel:
        return self._service.find(request.path_params["name"], request.path_params.get("version", ""))


def _decode(body: bytes, model: ServedModel, headers: Headers) -> InferRequest:
    json_bytes = json_part(headers.get(JSON_BYTES)) if headers else None
    return rest_fast.decode_request(body, model.signature, json_bytes)


def _encode(model: ServedModel, request: InferRequest, outputs: Tensors) -> Content:
    signature = model.signature
    if request.classes is not None:
        signature, outputs = classify(signature, request.classes, outputs, model.facts.labels)
    body, json_bytes = rest.encode_response(signature, request, outputs)
    if json_bytes is None:
        return Content(body, JSON_FIELDS)
    return Content(body, b"content-type: application/octet-stream\r\n%b: %d\r\n" % (JSON_BYTES, json_bytes))


INFERENCE = Inference("v2-rest", _decode, _encode)


def _tensor(field: Field) -> dict[str, Any]:
    return {"name": field.name, "datatype": field.datatype, "shape": field.spec.wire_shape}


_STRING, _PARAMETERS = {"type": "string"}, {"type": "object"}
_TENSOR = {"name": _STRING, "datatype": _STRING, "shape": {"type": "array", "items": {"type": "integer"}}}
_VALUES = {**_TENSOR, "data": {"type": "array"}, "parameters": _PARAMETERS}
_NAMED = {"name": _STRING, "parameters": _PARAMETERS}


def _listed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "object", "required": required, "properties": properties}}


_STATE = Documentation(response={"type": "object"}, statuses=(503,))
_SERVER = Documentation(
    response={
        "type": "object",
        "required": ["name", "version", "extensions"],
        "properties": {"name": _STRING, "version": _STRING, "extensions": {"type": "array", "items": _STRING}},
    }
)
_MODEL = Documentation(
    response={
        "type": "object",
        "required": ["name", "versions", "platform", "inputs", "outputs"],
        "properties": {
            "name": _STRING,
            "versions": {"type": "array", "items": _STRING},
            "platform": _STRING,
            "inputs": _listed(_TENSOR, *_TENSOR),
            "outputs": _listed(_TENSOR, *_TENSOR),
        },
    }
)
_INFER = Documentation(
    request={
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": _STRING,
            "inputs": _listed(_VALUES, *_TENSOR),
            "outputs": _listed(_NAMED, "name"),
            "parameters": _PARAMETERS,
        },
    },
    response={
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": _STRING,
            "model_version": _STRING,
            "id": _STRING,
            "outputs": _listed(_VALUES, *_TENSOR),
        },
    },
    media=("application/json", "application/octet-stream"),
    example=example_v2,
)
