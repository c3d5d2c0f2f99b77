"""gRPC by grpcio, where pygrpc-native has no wheel. Slower by far, and otherwise the same."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from mlserve.errors import RequestError
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.protocols import v2_grpc
from mlserve.serve.service import Service
from mlserve.serve.settings import Limits

__all__ = ["FallbackGrpcServer"]

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class FallbackGrpcServer:
    """Serves on `target` (host:port) from the event loop. Raises OSError when it cannot be bound."""

    def __init__(self, service: Service, target: str, limits: Limits, turn: LoopTurn) -> None:
        self._service, self._turn = service, turn
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", limits.max_request_bytes),
                ("grpc.max_send_message_length", -1),
            ]
        )
        self._server.add_generic_rpc_handlers([_Handlers(self)])
        try:
            self._server.add_insecure_port(target)
        except RuntimeError as error:
            raise OSError(str(error)) from error

    async def start(self) -> None:
        """Begins to accept calls."""
        await self._server.start()

    async def stop(self) -> None:
        """Closes every connection; a call still unanswered gets UNAVAILABLE."""
        await self._server.stop(0)

    async def infer(self, payload: bytes, context: Any) -> bytes:
        """One ModelInfer call."""
        call = _Call(self._turn.loop)
        v2_grpc.infer(self._service, payload, call, self._turn, self._turn.loop)
        try:
            return await call.reply
        except RequestError as error:
            await context.abort(_CODES[error.grpc_code], str(error)[:900])
            raise

    def unary(self, path: str) -> Callable[[bytes, Any], Any]:
        """What answers the calls to `path`."""
        handle = v2_grpc.UNARY[path]

        async def answer(payload: bytes, context: Any) -> Any:
            try:
                return handle(self._service, payload).SerializeToString()
            except RequestError as error:
                await context.abort(_CODES[error.grpc_code], str(error)[:900])

        return answer


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """Finds a handler by path; requests and responses stay bytes."""

    def __init__(self, server: FallbackGrpcServer) -> None:
        self._methods = {path: grpc.unary_unary_rpc_method_handler(server.unary(path)) for path in v2_grpc.UNARY}
        self._methods[v2_grpc.INFER] = grpc.unary_unary_rpc_method_handler(server.infer)

    def service(self, handler_call_details: Any) -> Any:
        return self._methods.get(handler_call_details.method)


class _Call:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.reply: asyncio.Future[bytes] = loop.create_future()

    def respond(self, payload: bytes) -> None:
        if not self.reply.done():
            self.reply.set_result(payload)

    def fail(self, error: RequestError) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)
