"""gRPC by pygrpc-native: HTTP/2 and gRPC framing in Rust outside the interpreter lock, calls handed over in batches.

The calls of one hand-over are one turn: they run as one batch. What takes its time or streams in both directions goes
on to grpcio, which listens on a Unix socket of this worker's own.
"""

import logging
import threading
from collections.abc import Sequence

from pygrpc_native import EVENT_CALL, NativeGrpcFront

from mlserve.errors import PayloadTooLarge, RequestError
from mlserve.serve.batching.turn import Turn
from mlserve.serve.protocols.dialect import Call, InferCall
from mlserve.serve.service import Service
from mlserve.serve.settings import Limits
from mlserve.serve.transports.grpc_ticket import infer

__all__ = ["NativeGrpcServer"]

_MOST_CALLS_A_TURN = 256

_log = logging.getLogger("mlserve.serve")


class NativeGrpcServer:
    """Serves on `target` (host:port), sharing the port with the other workers. OSError when it cannot be bound."""

    def __init__(self, service: Service, calls: Sequence[Call | InferCall], target: str, limits: Limits) -> None:
        self._service, self._limits, self._calls = service, limits, list(calls)
        self._turn = Turn()
        self._front = NativeGrpcFront(
            target,
            [(call.path, False) for call in calls],
            io_threads=1,
            reuse_port=True,
            client_key_metadata="authorization",
        )
        self._thread = threading.Thread(target=self._receive, name="grpc", daemon=True)

    async def start(self) -> None:
        """Begins to accept calls."""
        self._front.start()
        self._thread.start()

    async def stop(self) -> None:
        """Closes every connection; a call still unanswered gets UNAVAILABLE."""
        self._front.close()
        self._thread.join()

    def _receive(self) -> None:
        while (events := self._front.recv_batch(_MOST_CALLS_A_TURN)) is not None:
            for kind, call_id, method, payload, key in events:
                if kind == EVENT_CALL and payload is not None:
                    self._take(call_id, self._calls[method], payload, key)
            self._turn.run()

    def _take(self, call_id: int, call: Call | InferCall, payload: bytes, key: bytes | str | None) -> None:
        caller = _Caller(self._front, call_id)
        try:
            if not self._service.access.open:
                scope = "infer" if isinstance(call, InferCall) else call.scope
                # The front gives a string, the peer's address, where there is no such metadata.
                self._service.access.check(scope, key if isinstance(key, bytes) else None)
            if len(payload) > self._limits.max_request_bytes:
                raise PayloadTooLarge(
                    f"the message has {len(payload)} bytes, which exceeds the maximum allowed input size of "
                    f"{self._limits.max_request_bytes}"
                )
            if isinstance(call, InferCall):
                infer(self._service, call, payload, caller, self._turn)
            else:
                caller.respond(call.answer(self._service, payload).SerializeToString())
        except RequestError as error:
            caller.fail(error)
        except Exception:  # one call's bug must not end the thread that serves all
            _log.exception("a gRPC call failed")
            self._front.fail(call_id, 13, "the server made a mistake; its log says which")


class _Caller:
    __slots__ = ("_call_id", "_front")

    def __init__(self, front: NativeGrpcFront, call_id: int) -> None:
        self._front, self._call_id = front, call_id

    def respond(self, payload: bytes) -> None:
        self._front.respond(self._call_id, payload)

    def fail(self, error: RequestError) -> None:
        self._front.fail(self._call_id, error.grpc_code, str(error)[:900])
