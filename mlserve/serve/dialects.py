"""Every dialect the server speaks. What each says differently stays in its own file under `protocols/`."""

from grpc_health.v1.health_pb2 import HealthCheckRequest

from mlserve.serve.answering import Answering
from mlserve.serve.pages import site
from mlserve.serve.protocols import (
    azure,
    friendly,
    graphql,
    grpc_health,
    grpc_reflection,
    invocations,
    mlflow,
    named_routes,
    recordings,
    sagemaker,
    tensorflow_grpc,
    tensorflow_rest,
    torchserve,
    torchserve_management,
    v2_grpc,
    v2_rest,
    vertex,
)
from mlserve.serve.protocols.dialect import AsyncCall, Call, Dialect, InferCall, StreamCall
from mlserve.serve.protocols.named_routes import Spoken
from mlserve.serve.service import Service
from mlserve.serve.settings import ServeSettings
from mlserve.wire.messages import ModelInferRequest
from mlserve.wire.tensorflow_messages import PredictRequest

__all__ = ["CALLS", "SLOW_CALLS", "http_dialects"]


def http_dialects(
    service: Service,
    answering: Answering,
    settings: ServeSettings,
) -> list[Dialect]:
    """Everything that is spoken over HTTP; of two dialects with the same path, the one named first has it.

    Raises UsageError for a route of the user's choice that cannot be served.
    """
    spoken = [
        v2_rest.dialect(service),
        tensorflow_rest.dialect(service),
        friendly.dialect(service, answering),
        graphql.dialect(service, answering),
        torchserve.dialect(service, answering),
        torchserve_management.dialect(service, settings),
        invocations.dialect(),
        sagemaker.dialect(service),
        mlflow.dialect(),
        azure.dialect(),
        vertex.dialect(service, settings.health_paths),
        recordings.dialect(settings),
    ]
    # It tells of every dialect of the list, itself and those that are added after it, too.
    spoken.append(site.dialect(service, settings, spoken, (*CALLS, *SLOW_CALLS)))
    routed = {
        "predict": Spoken(friendly.INFERENCE, friendly.PREDICT),
        "vertex": Spoken(vertex.INFERENCE, vertex.DOCUMENTATION),
        "sagemaker": Spoken(sagemaker.INFERENCE, invocations.DOCUMENTATION),
        "azure": Spoken(azure.INFERENCE, azure.DOCUMENTATION),
    }
    spoken.append(named_routes.dialect(settings.routes, spoken, routed))
    return spoken


CALLS: tuple[Call | InferCall, ...] = (*v2_grpc.CALLS, *grpc_health.CALLS, *tensorflow_grpc.CALLS)
"""gRPC calls that are answered at once, or by inference."""

SLOW_CALLS: tuple[AsyncCall | StreamCall, ...] = (
    *v2_grpc.SLOW_CALLS,
    *grpc_health.SLOW_CALLS,
    *grpc_reflection.reflection_calls(
        [call.path for call in CALLS], [ModelInferRequest, PredictRequest, HealthCheckRequest]
    ),
)
"""gRPC calls that take their time or stream."""
