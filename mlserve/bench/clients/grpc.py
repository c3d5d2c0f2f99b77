"""gRPC, by grpcio on gevent's event loop."""

import itertools
from collections.abc import Sequence

import gevent
import grpc
from grpc.experimental.gevent import init_gevent

from mlserve.bench.clients.client import Answered, Reply, Request
from mlserve.runs.samples import OK

__all__ = ["GrpcClient"]

# One connection's flow control and ordering would couple requests that have nothing to do with each other.
_CHANNELS = 4
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]


class GrpcClient:
    """Spreads requests over a few channels. grpcio does not tell when an answer began."""

    def __init__(self, host: str, port: int, path: str, requests: Sequence[Request], timeout_s: float) -> None:
        init_gevent()
        self._requests, self._timeout_s = requests, timeout_s
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._channels = [grpc.insecure_channel(authority, options=_OPTIONS) for _ in range(_CHANNELS)]
        self._calls = itertools.cycle([channel.unary_unary(path) for channel in self._channels])

    def send(self, number: int, answered: Answered) -> None:
        gevent.spawn(lambda: answered(self._ask(self._requests[number])))

    def _ask(self, request: Request) -> Reply:
        try:
            return Reply(OK, next(self._calls)(request.body, timeout=self._timeout_s, metadata=request.headers))
        except grpc.RpcError as error:
            return Reply(error.code().name)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
