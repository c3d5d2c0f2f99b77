"""Vertex AI's custom containers: `{"instances": [...], "parameters": {...}}` -> `{"predictions": [...]}`.

Port and paths are Vertex's choice, told in environment variables (AIP_*); `vertex_routes` reads them from what it is
given. Vertex itself adds `deployedModelId` to what a container answers, and bounds a request to 1.5 MB.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mlserve.errors import InvalidRequest, NotServing, UsageError
from mlserve.model.tensors import Tensors
from mlserve.serve.protocols.dialect import Content, Dialect, Documentation, Headers, Inference, Page
from mlserve.serve.protocols.rows import answer_rows, of_rows
from mlserve.serve.service import ServedModel, Service
from mlserve.serve.settings import NamedRoute
from mlserve.serve.tasks.task import Asked, TaskAnswer
from mlserve.wire.plain import parse_json, write_json
from mlserve.wire.signature import InferRequest

__all__ = ["DOCUMENTATION", "INFERENCE", "VertexRoutes", "dialect", "vertex_routes"]

_HOST = "0.0.0.0"  # noqa: S104  # Vertex reaches a container from outside, and asks it to listen so


class VertexRoutes(msgspec.Struct, frozen=True):
    """Where Vertex wants a container to listen; `http_port` None where it does not say."""

    host: str
    http_port: int | None
    routes: tuple[NamedRoute, ...]
    health_path: str


def vertex_routes(environment: Mapping[str, str], model: str, version: str = "") -> VertexRoutes | None:
    """What the AIP_* variables of `environment` ask for, so that `model` answers; None outside Vertex AI.

    Raises UsageError, naming the variable, for a port or a path that is none.
    """
    predict, health = environment.get("AIP_PREDICT_ROUTE", ""), environment.get("AIP_HEALTH_ROUTE", "")
    port = environment.get("AIP_HTTP_PORT", "")
    if not (predict or health):
        return None
    if port and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) <= 65535):
        raise UsageError(f"AIP_HTTP_PORT is {port[:32]!r}; Vertex AI sets it to a port, 8080 by default")
    for name, path in (("AIP_PREDICT_ROUTE", predict), ("AIP_HEALTH_ROUTE", health)):
        if path and (not path.startswith("/") or set(path) & set("{}?#") or not path.isprintable()):
            raise UsageError(f"{name} is {path[:128]!r}; Vertex AI sets it to a path that begins with /")
    routes = (NamedRoute(predict, model, version, "vertex"),) if predict else ()
    return VertexRoutes(_HOST, int(port) if port else None, routes, health)


def dialect(service: Service, health_paths: Sequence[str]) -> Dialect:
    """Health under the paths that Vertex chose; inference is a named route."""

    async def healthy(_: Request) -> Response:
        if not service.ready:
            raise NotServing("the server is shutting down")
        return Response(b'{"ready":true}', media_type="application/json")

    summary = "Does the server take requests? As Vertex AI asks"
    return Dialect("vertex", tuple(Page(path, ("GET",), None, healthy, summary) for path in health_paths))


def _decode(body: bytes, model: ServedModel, _: Headers) -> InferRequest | Asked:
    document = parse_json(body)
    if not isinstance(document, dict) or "instances" not in document:
        raise InvalidRequest('the request is no object with "instances", a list of rows')
    if not isinstance(document.get("parameters") or {}, dict):
        raise InvalidRequest("'parameters' is no object")
    return of_rows(document["instances"], model, None)


def _encode(model: ServedModel, _: InferRequest, outputs: Tensors) -> Content:
    return Content(write_json({"predictions": answer_rows(outputs, model.signature)}))


def _encode_answers(_: ServedModel, __: Asked, answers: Sequence[TaskAnswer]) -> Content:
    return Content(write_json({"predictions": list(answers)}))


INFERENCE = Inference("vertex", _decode, _encode, _encode_answers)
"""How a route of Vertex AI is spoken with."""

_ROWS: dict[str, Any] = {"type": "array", "minItems": 1, "items": {}}
DOCUMENTATION = Documentation(
    request={
        "type": "object",
        "required": ["instances"],
        "properties": {"instances": _ROWS, "parameters": {"type": "object"}},
    },
    response={"type": "object", "required": ["predictions"], "properties": {"predictions": {}}},
    statuses=(400, 404, 413, 415, 503, 504),
)
