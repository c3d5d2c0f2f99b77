"""gRPC by pygrpc-native: HTTP/2 and gRPC framing in Rust outside the interpreter lock, calls handed over in batches.

The calls of one hand-over are one turn: they run as one batch.
"""

import logging
import threading

from pygrpc_native import EVENT_CALL, NativeGrpcFront

from mlserve.errors import PayloadTooLarge, RequestError
from mlserve.serve.batching.turn import Turn
from mlserve.serve.protocols import v2_grpc
from mlserve.serve.service import Service
from mlserve.serve.settings import Limits

__all__ = ["NativeGrpcServer"]

_MOST_CALLS_A_TURN = 256

_log = logging.getLogger("mlserve.serve")


class NativeGrpcServer:
    """Serves on `target` (host:port), sharing the port with the other workers. OSError when it cannot be bound."""

    def __init__(self, service: Service, target: str, limits: Limits) -> None:
        self._service, self._limits = service, limits
        self._turn = Turn()
        self._unary = list(v2_grpc.UNARY.values())
        methods = [(path, False) for path in (*v2_grpc.UNARY, v2_grpc.INFER)]
        self._front = NativeGrpcFront(target, methods, io_threads=1, reuse_port=True)
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
        infer = len(self._unary)
        while (events := self._front.recv_batch(_MOST_CALLS_A_TURN)) is not None:
            for kind, call_id, method, payload, _ in events:
                if kind != EVENT_CALL or payload is None:
                    continue
                call = _Call(self._front, call_id)
                try:
                    if len(payload) > self._limits.max_request_bytes:
                        raise PayloadTooLarge(
                            f"the message has {len(payload)} bytes, which exceeds the maximum allowed input size of "
                            f"{self._limits.max_request_bytes}"
                        )
                    if method == infer:
                        v2_grpc.infer(self._service, payload, call, self._turn)
                    else:
                        call.respond(self._unary[method](self._service, payload).SerializeToString())
                except RequestError as error:
                    call.fail(error)
                except Exception:  # one call's bug must not end the thread that serves all
                    _log.exception("a gRPC call failed")
                    self._front.fail(call_id, 13, "the server made a mistake; its log says which")
            self._turn.run()


class _Call:
    __slots__ = ("_call_id", "_front")

    def __init__(self, front: NativeGrpcFront, call_id: int) -> None:
        self._front, self._call_id = front, call_id

    def respond(self, payload: bytes) -> None:
        self._front.respond(self._call_id, payload)

    def fail(self, error: RequestError) -> None:
        self._front.fail(self._call_id, error.grpc_code, str(error)[:900])
