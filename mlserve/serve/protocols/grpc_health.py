"""grpc.health.v1: what load balancers and Kubernetes ask a gRPC server."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from grpc_health.v1 import health_pb2

from mlserve.errors import Overloaded, UnknownModelError
from mlserve.serve.answering import Answering
from mlserve.serve.protocols.dialect import Call, StreamCall
from mlserve.serve.service import Service
from mlserve.wire import messages

__all__ = ["CALLS", "SLOW_CALLS"]

_SERVICE = "/grpc.health.v1.Health"
_NAMES = ("", messages.SERVICE)
_LOOK_EVERY_S = 0.1
# So many may watch a worker at once: anybody may, and each costs memory for as long as it likes.
_MOST_WATCHERS = 1024


def _check(service: Service, payload: bytes) -> Any:
    name = messages.parse_message(health_pb2.HealthCheckRequest, payload).service
    if name not in _NAMES:
        raise UnknownModelError(f"no service {name[:64]!r}; there are '' and '{messages.SERVICE}'")
    return health_pb2.HealthCheckResponse(status=_status(service))


async def _watch(service: Service, _: Answering, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The present status, and every later one, for as long as the client listens."""
    lookout = _lookouts.setdefault(service, _Lookout())
    async for payload in requests:
        name = messages.parse_message(health_pb2.HealthCheckRequest, payload).service
        told = None
        with lookout.kept(service):
            while True:
                changed = lookout.changed
                status = _status(service) if name in _NAMES else health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
                if status != told:
                    told = status
                    yield health_pb2.HealthCheckResponse(status=status).SerializeToString()
                await changed.wait()


class _Lookout:
    """One task that looks at a server's status for all who watch it, while there are any."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        """Set at the next change; there is another one then."""
        self._watchers = 0
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def kept(self, service: Service) -> Iterator[None]:
        """For one more who watches `service`. Raises Overloaded for one too many."""
        if self._watchers >= _MOST_WATCHERS:
            raise Overloaded(f"{_MOST_WATCHERS} calls of Watch are open already; call Check, or try again later")
        self._watchers += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(service, _status(service)))
        try:
            yield
        finally:
            self._watchers -= 1
            if not self._watchers:
                self._looking.cancel()
                self._looking = None

    async def _look(self, service: Service, known: Any) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if (status := _status(service)) != known:
                known = status
                self.changed.set()
                self.changed = asyncio.Event()


_lookouts: WeakKeyDictionary[Service, _Lookout] = WeakKeyDictionary()


def _status(service: Service) -> Any:
    return health_pb2.HealthCheckResponse.SERVING if service.ready else health_pb2.HealthCheckResponse.NOT_SERVING


CALLS = (Call(f"{_SERVICE}/Check", None, _check),)
SLOW_CALLS = (StreamCall(f"{_SERVICE}/Watch", None, _watch, client_streams=False),)
