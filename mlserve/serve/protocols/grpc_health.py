"""grpc.health.v1: what load balancers and Kubernetes ask a gRPC server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2

from mlserve.errors import UnknownModelError
from mlserve.serve.answering import Answering
from mlserve.serve.protocols.dialect import Call, StreamCall
from mlserve.serve.service import Service
from mlserve.wire import messages

__all__ = ["CALLS", "SLOW_CALLS"]

_SERVICE = "/grpc.health.v1.Health"
_NAMES = ("", messages.SERVICE)
_LOOK_EVERY_S = 0.1


def _check(service: Service, payload: bytes) -> Any:
    name = messages.parse_message(health_pb2.HealthCheckRequest, payload).service
    if name not in _NAMES:
        raise UnknownModelError(f"no service {name[:64]!r}; there are '' and '{messages.SERVICE}'")
    return health_pb2.HealthCheckResponse(status=_status(service))


async def _watch(service: Service, _: Answering, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The present status, and every later one, for as long as the client listens."""
    async for payload in requests:
        name = messages.parse_message(health_pb2.HealthCheckRequest, payload).service
        told = None
        while True:
            status = _status(service) if name in _NAMES else health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status).SerializeToString()
            await asyncio.sleep(_LOOK_EVERY_S)


def _status(service: Service) -> Any:
    return health_pb2.HealthCheckResponse.SERVING if service.ready else health_pb2.HealthCheckResponse.NOT_SERVING


CALLS = (Call(f"{_SERVICE}/Check", None, _check),)
SLOW_CALLS = (StreamCall(f"{_SERVICE}/Watch", None, _watch, client_streams=False),)
