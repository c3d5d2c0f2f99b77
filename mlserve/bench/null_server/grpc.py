"""gRPC: answers every call of one method."""

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["serve_by_grpcio", "serve_grpc"]

_MOST_CALLS = 256


def serve_grpc(path: str, answer: bytes, ready: Callable[[int], None]) -> None:
    """Serves on a free port of 127.0.0.1, which `ready` is told, until the process ends. `path` is the method's."""
    try:
        from pygrpc_native import NativeGrpcFront
    except ImportError:  # there are systems that it is not built for
        asyncio.run(serve_by_grpcio(path, answer, ready))
        return
    front = NativeGrpcFront("127.0.0.1:0", [(path, False)], io_threads=1)
    front.start()
    ready(front.bound_port)
    while (events := front.recv_batch(_MOST_CALLS)) is not None:
        for _, call_id, _, payload, _ in events:
            if payload is not None:  # else a client has taken its call back
                front.respond(call_id, answer)


async def serve_by_grpcio(path: str, answer: bytes, ready: Callable[[int], None]) -> None:
    """The same by grpcio."""
    import grpc

    async def respond(_: bytes, __: Any) -> bytes:
        return answer

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)])
    service, _, method = path.removeprefix("/").rpartition("/")
    handler = grpc.method_handlers_generic_handler(service, {method: grpc.unary_unary_rpc_method_handler(respond)})
    server.add_generic_rpc_handlers([handler])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ready(port)
    await server.wait_for_termination()
