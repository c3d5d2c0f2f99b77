"""gRPC by grpcio, where pygrpc-native has no wheel. Slower by far, and otherwise the same."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from mlserve.errors import RequestError
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.protocols.dialect import Call, InferCall
from mlserve.serve.service import Service
from mlserve.serve.settings import Limits
from mlserve.serve.transports.grpc_ticket import infer

__all__ = ["FallbackGrpcServer"]

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class FallbackGrpcServer:
    """Serves on `target` (host:port) from the event loop. Raises OSError when it cannot be bound."""

    def __init__(
        self, service: Service, calls: Sequence[Call | InferCall], target: str, limits: Limits, turn: LoopTurn
    ) -> None:
        self._service, self._turn = service, turn
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", limits.max_request_bytes),
                ("grpc.max_send_message_length", -1),
            ]
        )
        self._server.add_generic_rpc_handlers([_Handlers(self, calls)])
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

    def handler(self, call: Call | InferCall) -> Callable[[bytes, Any], Any]:
        """What answers `call`."""

        async def answer(payload: bytes, context: Any) -> bytes:
            try:
                scope = "infer" if isinstance(call, InferCall) else call.scope
                self._service.access.check(scope, _credential(context))
                if isinstance(call, InferCall):
                    caller = _Caller(self._turn.loop)
                    infer(self._service, call, payload, caller, self._turn, self._turn.loop)
                    return await caller.reply
                found: bytes = call.answer(self._service, payload).SerializeToString()
                return found
            except RequestError as error:
                await context.abort(_CODES[error.grpc_code], str(error)[:900])
                raise

        return answer


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """Finds a handler by path; requests and responses stay bytes."""

    def __init__(self, server: FallbackGrpcServer, calls: Sequence[Call | InferCall]) -> None:
        self._methods = {call.path: grpc.unary_unary_rpc_method_handler(server.handler(call)) for call in calls}

    def service(self, handler_call_details: Any) -> Any:
        return self._methods.get(handler_call_details.method)


def _credential(context: Any) -> bytes | None:
    found = dict(context.invocation_metadata() or ()).get("authorization")
    return found.encode() if isinstance(found, str) else found


class _Caller:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.reply: asyncio.Future[bytes] = loop.create_future()

    def respond(self, payload: bytes) -> None:
        if not self.reply.done():
            self.reply.set_result(payload)

    def fail(self, error: RequestError) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)
