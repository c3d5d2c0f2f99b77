"""V2's statistics extension: `GET /v2/models/stats` and its likes, and the gRPC call ModelStatistics.

Two counters say less than Triton's. A run's gathering of its requests' rows, and the splitting of its outputs, are part
of `compute_infer`. And sizes of batches are counted in ranges, which `/metrics` has and `batch_stats` has no form for.
"""

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mlserve.serve.protocols.dialect import AsyncCall, Documentation, Page
from mlserve.serve.service import ServedModel, Service
from mlserve.serve.statistics import Spent, Statistics, read_statistics
from mlserve.wire import messages

__all__ = ["SLOW_CALLS", "statistics_pages"]

_DURATION = {"type": "object", "required": ["count", "ns"], "properties": {"count": {}, "ns": {}}}
_DOCUMENTATION = Documentation(
    response={
        "type": "object",
        "required": ["model_stats"],
        "properties": {
            "model_stats": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "version", "inference_count", "execution_count", "inference_stats"],
                    "properties": {
                        "name": {"type": "string"},
                        "version": {"type": "string"},
                        "last_inference": {"type": "integer"},
                        "inference_count": {"type": "integer"},
                        "execution_count": {"type": "integer"},
                        "inference_stats": {"type": "object", "additionalProperties": _DURATION},
                    },
                },
            }
        },
    },
    statuses=(404,),
)


def statistics_pages(service: Service) -> tuple[Page, ...]:
    """The statistics of all models, of one, and of one version."""

    async def answer(request: Request) -> Response:
        path = request.path_params
        document = await _statistics(service, path.get("name", ""), path.get("version", ""))
        return Response(msgspec.json.encode(document), media_type="application/json")

    return tuple(
        Page(path, ("GET",), "metrics", answer, summary, _DOCUMENTATION)
        for path, summary in (
            ("/v2/models/stats", "How often every model was asked, and how long it took"),
            ("/v2/models/{name}/stats", "The same for every version of one model"),
            ("/v2/models/{name}/versions/{version}/stats", "The same for one version"),
        )
    )


async def _answer_call(service: Service, payload: bytes) -> Any:
    request = messages.parse_message(messages.ModelStatisticsRequest, payload)
    return messages.ModelStatisticsResponse(**await _statistics(service, request.name, request.version))


async def _statistics(service: Service, name: str, version: str) -> dict[str, Any]:
    """V2's document for every served version, those of `name`, or one. Raises UnknownModelError."""
    models = _models(service, name, version)
    found = await asyncio.get_running_loop().run_in_executor(None, read_statistics)
    empty = Statistics()
    keys = [(model.signature.name, model.signature.version) for model in models]
    return {"model_stats": [_document(key, found.get(key, empty)) for key in keys]}


def _models(service: Service, name: str, version: str) -> list[ServedModel]:
    if not name:
        return service.models
    found = service.find(name, version)
    return [found] if version else [model for model in service.models if model.signature.name == name]


def _document(key: tuple[str, str], statistics: Statistics) -> dict[str, Any]:
    nothing, compute = {"count": 0, "ns": 0}, _duration(statistics.compute)
    return {
        "name": key[0],
        "version": key[1],
        "last_inference": statistics.last_inference_ms,
        "inference_count": statistics.inference_count,
        "execution_count": statistics.execution_count,
        "inference_stats": {
            "success": _duration(statistics.success),
            "fail": _duration(statistics.fail),
            "queue": _duration(statistics.queue),
            "compute_input": {"count": statistics.compute.count, "ns": 0},
            "compute_infer": compute,
            "compute_output": {"count": statistics.compute.count, "ns": 0},
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [],
        "memory_usage": [],
        "response_stats": {},
    }


def _duration(spent: Spent) -> dict[str, int]:
    return {"count": spent.count, "ns": spent.ns}


SLOW_CALLS = (AsyncCall(f"/{messages.SERVICE}/ModelStatistics", "metrics", _answer_call),)
