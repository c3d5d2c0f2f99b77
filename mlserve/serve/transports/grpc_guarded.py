"""gRPC by pygrpc-native behind a guard."""

from mlserve.serve.transports.grpc_guard import GrpcGuard
from mlserve.serve.transports.grpc_native import NativeGrpcServer

__all__ = ["GuardedGrpcServer"]


class GuardedGrpcServer:
    """`guard` listens, and passes on to `native` what keeps to the limits."""

    def __init__(self, native: NativeGrpcServer, guard: GrpcGuard) -> None:
        self._native, self._guard = native, guard

    async def start(self) -> None:
        """Begins to accept calls."""
        await self._native.start()
        await self._guard.start()

    async def stop(self) -> None:
        """Closes every connection, once what was answered is sent; a call still unanswered gets UNAVAILABLE."""
        self._guard.stop_listening()
        self._guard.abandon()
        await self._native.stop()
        await self._guard.stop()
