"""V2 (Open Inference Protocol) over REST, and the server's own pages: health, readiness, metrics."""

import asyncio
import time
from collections.abc import Hashable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from mlserve import __version__
from mlserve.errors import RequestError
from mlserve.model.tensors import Tensors
from mlserve.serve.batching.batcher import Batch, Ticket
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.metrics import render_metrics
from mlserve.serve.protocols.infer_route import ENCODING, JSON_BYTES, InferRoute, error_body, json_part
from mlserve.serve.service import EXTENSIONS, PLATFORM, SERVER_NAME, ServedModel, Service
from mlserve.wire import rest
from mlserve.wire.signature import Field, InferRequest

__all__ = ["application", "infer_routes"]

PROTOCOL = "v2-rest"


def infer_routes(service: Service) -> dict[bytes, InferRoute]:
    """Every path that means inference, as its bytes appear on the wire, for the fast lane."""
    routes: dict[bytes, InferRoute] = {}
    for model in service.models:
        name, version = model.signature.name, model.signature.version
        route = InferRoute(model, PROTOCOL, rest.decode_request, rest.encode_response)
        routes[f"/v2/models/{name}/versions/{version}/infer".encode()] = route
        if service.default_version(name) == version:
            routes[f"/v2/models/{name}/infer".encode()] = route
    return routes


def application(service: Service, turn: LoopTurn) -> Starlette:
    """Everything that is not the fast lane, as an ASGI application."""
    pages = _Pages(service, turn)
    model, version = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
    routes = [
        Route("/health", pages.live),
        Route("/ready", pages.ready),
        Route("/metrics", pages.metrics),
        Route("/v2/health/live", pages.live),
        Route("/v2/health/ready", pages.ready),
        Route("/v2", pages.server),
        Route("/v2/repository/index", pages.index, methods=["POST"]),
        *(Route(path, pages.model) for path in (model, version)),
        *(Route(f"{path}/ready", pages.model_ready) for path in (model, version)),
        *(Route(f"{path}/infer", pages.infer, methods=["POST"]) for path in (model, version)),
    ]
    handlers = {
        RequestError: _request_error,
        HTTPException: _http_error,
        ClientDisconnect: _nobody_waits,
        Exception: _bug,
    }
    return Starlette(routes=routes, exception_handlers=handlers)


class _Pages:
    """One method a page."""

    def __init__(self, service: Service, turn: LoopTurn) -> None:
        self._service, self._turn = service, turn

    async def live(self, _: Request) -> Response:
        return _json({"live": True})

    async def ready(self, _: Request) -> Response:
        if self._service.ready:
            return _json({"ready": True})
        return Response(error_body("the server is shutting down"), 503, {"retry-after": "1"}, "application/json")

    async def metrics(self, _: Request) -> Response:
        text = await asyncio.get_running_loop().run_in_executor(None, render_metrics)
        return Response(text, media_type="text/plain; version=0.0.4")

    async def server(self, _: Request) -> Response:
        return _json({"name": SERVER_NAME, "version": __version__, "extensions": EXTENSIONS})

    async def index(self, _: Request) -> Response:
        return _json(
            [
                {"name": model.signature.name, "version": model.signature.version, "state": "READY", "reason": ""}
                for model in self._service.models
            ]
        )

    async def model(self, request: Request) -> Response:
        signature = self._find(request).signature
        return _json(
            {
                "name": signature.name,
                "versions": self._service.versions(signature.name),
                "platform": PLATFORM,
                "inputs": [_tensor(field) for field in signature.inputs.values()],
                "outputs": [_tensor(field) for field in signature.outputs.values()],
            }
        )

    async def model_ready(self, request: Request) -> Response:
        self._service.check_serving()
        signature = self._find(request).signature
        return _json({"name": signature.name, "version": signature.version, "ready": True})

    async def infer(self, request: Request) -> Response:
        """Inference for requests that the fast lane passed on: another spelling of the path, or a busy pipeline."""
        self._service.check_serving()
        model = self._find(request)
        headers = dict(request.scope["headers"])
        body = await request.body()
        try:
            json_bytes = json_part(headers.get(JSON_BYTES), headers.get(ENCODING))
            wanted = rest.decode_request(body, model.signature, json_bytes)
        except RequestError as error:
            model.meter.failed(PROTOCOL, error)
            raise
        ticket = _FutureTicket(wanted, model.signature.batch_key(wanted.inputs), self._turn.loop)
        self._turn.add(model.batcher, ticket)
        content, json_bytes = rest.encode_response(model.signature, wanted, await ticket.outputs)
        if json_bytes is None:
            return Response(content, media_type="application/json")
        extra = {JSON_BYTES.decode(): str(json_bytes)}
        return Response(content, headers=extra, media_type="application/octet-stream")

    def _find(self, request: Request) -> ServedModel:
        return self._service.find(request.path_params["name"], request.path_params.get("version", ""))


class _FutureTicket(Ticket):
    """A request whose answer a coroutine awaits."""

    __slots__ = ("outputs",)

    def __init__(self, request: InferRequest, key: Hashable, loop: asyncio.AbstractEventLoop) -> None:
        self.inputs, self.rows, self.key, self.loop = request.inputs, request.rows, key, loop
        self.protocol = PROTOCOL
        self.arrived_s = time.perf_counter()
        self.outputs: asyncio.Future[Tensors] = loop.create_future()

    def answer(self, outputs: Tensors, batch: Batch) -> None:
        if not self.outputs.done():
            self.outputs.set_result(outputs)

    def fail(self, error: RequestError) -> None:
        if not self.outputs.done():
            self.outputs.set_exception(error)


def _tensor(field: Field) -> dict[str, Any]:
    return {"name": field.name, "datatype": field.datatype, "shape": field.spec.wire_shape}


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def _request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {"retry-after": "1"} if error.http_status == 503 else None
    return Response(error_body(str(error)), error.http_status, headers, "application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {
        404: "no such page; the paths are /v2/..., /health, /ready and /metrics",
        405: f"{request.method} is not what this path takes; see the header allow",
    }.get(error.status_code, error.detail)
    return Response(error_body(message), error.status_code, error.headers, "application/json")


async def _nobody_waits(_: Request, __: Exception) -> Response:
    return Response(status_code=400)


async def _bug(_: Request, __: Exception) -> Response:
    return Response(error_body("the server made a mistake; its log says which"), 500, None, "application/json")
