"""gRPC by grpcio, on the event loop: calls that stream or take their time, or all where pygrpc-native cannot be.

Behind the native front it listens on a Unix socket of the worker's own, and serves what the front passes on.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, cast

import grpc
from grpc._cython import cygrpc  # where its only name for that error is

from mlserve.errors import NotServing, RequestError
from mlserve.serve.access import Scope
from mlserve.serve.answering import Answering
from mlserve.serve.protocols.dialect import AsyncCall, Call, InferCall, StreamCall
from mlserve.serve.service import Service
from mlserve.serve.settings import Limits
from mlserve.serve.transports.certificate_mark import CERTIFICATE_FIELD, find_certificate
from mlserve.serve.transports.grpc_ticket import Trailers, audited, check_size, infer, retry_trailers, scope_of

__all__ = ["MOST_METADATA_BYTES", "MOST_STREAMS", "FallbackGrpcServer"]

MOST_STREAMS = 1024
"""Calls that one connection may have open at once."""

MOST_METADATA_BYTES = 16 << 10
"""What the metadata of one call may have."""

AnyCall = Call | InferCall | AsyncCall | StreamCall

_CODES = {code.value[0]: code for code in grpc.StatusCode}
# So long streams have to end by themselves once the server stops: time to read that it does, and to say goodbye.
_LAST_WORDS_S = 0.3


def _not_about_the_gone(record: logging.LogRecord) -> bool:
    """False for grpcio's word that it could not answer a client that has gone away: that is no fault of anybody's."""
    return not (record.exc_info and isinstance(record.exc_info[1], cygrpc.ExecuteBatchError))


logging.getLogger("grpc._cython.cygrpc").addFilter(_not_about_the_gone)


_log = logging.getLogger("mlserve.serve")


class FallbackGrpcServer:
    """Serves on `target` (host:port, or unix:path) from the event loop. Raises OSError when it cannot be bound."""

    def __init__(
        self, service: Service, answering: Answering, calls: Sequence[AnyCall], target: str, limits: Limits
    ) -> None:
        self._service, self._answering, self._limits = service, answering, limits
        self._running: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", limits.max_request_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", MOST_STREAMS),
                ("grpc.max_metadata_size", MOST_METADATA_BYTES),
                ("grpc.absolute_max_metadata_size", MOST_METADATA_BYTES),
                *([] if target.startswith("unix:") else _connection_options(limits)),
            ]
        )
        self._server.add_generic_rpc_handlers([_Handlers({call.path: self._handler(call) for call in calls})])
        try:
            self._server.add_insecure_port(target)
        except RuntimeError as error:
            raise OSError(str(error)) from error

    async def start(self) -> None:
        """Begins to accept calls."""
        await self._server.start()

    async def stop(self) -> None:
        """Closes every connection; a call still unanswered gets UNAVAILABLE, and so does a stream that does not end."""
        if self._running:
            await asyncio.wait(self._running, timeout=_LAST_WORDS_S)
        self._stopping = True
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=_LAST_WORDS_S)
        await self._server.stop(0)

    def _handler(self, call: AnyCall) -> Any:
        """What answers `call`, as grpcio wants it."""
        if isinstance(call, InferCall):
            return grpc.unary_unary_rpc_method_handler(self._guarded(call, self._infers(call)))
        if isinstance(call, StreamCall):
            answer = self._guarded(call, self._streams(call))
            if call.client_streams:
                return grpc.stream_stream_rpc_method_handler(answer)
            return grpc.unary_stream_rpc_method_handler(answer)
        return grpc.unary_unary_rpc_method_handler(self._guarded(call, self._answers(call)))

    def _guarded(
        self, call: AnyCall, answer: Callable[[Any, Any], Awaitable[bytes | None]]
    ) -> Callable[[Any, Any], Awaitable[bytes | None]]:
        """`answer` for those who may ask; its errors become statuses."""
        scope, access = scope_of(call), self._service.access
        check = access.check_stream if isinstance(call, StreamCall) else access.check

        async def guarded(request: Any, context: Any) -> bytes | None:
            credential = _credential(context)
            try:
                with self._run(), audited(self._service, call, credential, context.peer):
                    check(scope, credential)
                    if isinstance(call, StreamCall) and call.client_streams:
                        # So a guard in front knows that it may take its time: see grpc_inspection.
                        await context.send_initial_metadata(())
                    return await answer(request, context)
            except RequestError as error:
                await context.abort(_CODES[error.grpc_code], str(error)[:900], retry_trailers(error))
                raise
            except Exception:  # grpcio would tell the client its text
                _log.exception("a gRPC call failed")
                await context.abort(grpc.StatusCode.INTERNAL, "the server made a mistake; its log says which")
                raise

        return guarded

    def _answers(self, call: Call | AsyncCall) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def answer(payload: bytes, _: Any) -> bytes:
            check_size(payload, self._limits.max_request_bytes)
            if isinstance(call, AsyncCall):
                message = await call.answer(self._service, payload)
            else:
                message = call.answer(self._service, payload)
            serialized: bytes = message.SerializeToString()
            return serialized

        return answer

    def _infers(self, call: InferCall) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def answer(payload: bytes, context: Any) -> bytes:
            check_size(payload, self._limits.max_request_bytes)
            turn = self._answering.turn
            caller = _Caller(turn.loop, context)
            ticket = infer(self._service, call, payload, caller, turn, turn.loop, context.time_remaining())
            try:
                return await caller.reply
            except asyncio.CancelledError:  # nobody waits any more
                if ticket is not None:
                    ticket.model.batcher.drop(ticket)
                raise

        return answer

    def _streams(self, call: StreamCall) -> Callable[[Any, Any], Awaitable[None]]:
        async def answer(request: Any, context: Any) -> None:
            requests = self._checked(request if call.client_streams else _once(request), call.scope, context)
            responses = cast("AsyncGenerator[bytes]", call.answer(self._service, self._answering, requests))
            async with aclosing(responses):
                async for payload in responses:
                    await context.write(payload)

        return answer

    async def _checked(self, requests: AsyncIterator[bytes], scope: Scope | None, context: Any) -> AsyncIterator[bytes]:
        async for payload in requests:
            self._service.access.check(scope, _credential(context))  # a key may be revoked while a stream is open
            check_size(payload, self._limits.max_request_bytes)
            yield payload

    @contextmanager
    def _run(self) -> Iterator[None]:
        """A call that `stop` ends with UNAVAILABLE when it takes too long."""
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if self._stopping:
                raise NotServing("the server stopped before this call was answered; send it again") from None
            raise
        finally:
            self._running.discard(task)


def _connection_options(limits: Limits) -> list[tuple[str, int]]:
    """What clients' own connections are held to; those of a front that stands before it are the front's business."""
    return [
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.max_connection_idle_ms", int(limits.keep_alive_s * 1000)),
    ]


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """Finds a handler by path; requests and responses stay bytes."""

    def __init__(self, methods: dict[str, Any]) -> None:
        self._methods = methods

    def service(self, handler_call_details: Any) -> Any:
        return self._methods.get(handler_call_details.method)


async def _once(payload: bytes) -> AsyncIterator[bytes]:
    yield payload


def _credential(context: Any) -> bytes | None:
    fields = dict(context.invocation_metadata() or ())
    found = fields.get("authorization") or fields.get("x-api-key")
    if found is None:
        return find_certificate(fields.get(CERTIFICATE_FIELD))
    return found.encode() if isinstance(found, str) else found


class _Caller:
    def __init__(self, loop: asyncio.AbstractEventLoop, context: Any) -> None:
        self.reply: asyncio.Future[bytes] = loop.create_future()
        self._context = context

    def respond(self, payload: bytes, trailers: Trailers = ()) -> None:
        if not self.reply.done():
            if trailers:
                self._context.set_trailing_metadata(trailers)
            self.reply.set_result(payload)

    def fail(self, error: RequestError) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)
