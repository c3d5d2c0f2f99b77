"""Every dialect the server speaks. What each says differently stays in its own file under `protocols/`."""

from mlserve.serve.answering import Answering
from mlserve.serve.protocols import v2_grpc, v2_rest
from mlserve.serve.protocols.dialect import AsyncCall, Call, Dialect, InferCall, StreamCall
from mlserve.serve.service import Service
from mlserve.serve.settings import ServeSettings

__all__ = ["CALLS", "SLOW_CALLS", "http_dialects"]


def http_dialects(
    service: Service,
    answering: Answering,  # noqa: ARG001  # for dialects that infer in their own pages
    settings: ServeSettings,  # noqa: ARG001  # for dialects with routes of the user's choice
) -> list[Dialect]:
    """Everything that is spoken over HTTP; of two dialects with the same path, the one named first has it."""
    return [
        v2_rest.dialect(service),
    ]


CALLS: tuple[Call | InferCall, ...] = (*v2_grpc.CALLS,)
"""gRPC calls that are answered at once, or by inference."""

SLOW_CALLS: tuple[AsyncCall | StreamCall, ...] = ()
"""gRPC calls that take their time or stream."""
