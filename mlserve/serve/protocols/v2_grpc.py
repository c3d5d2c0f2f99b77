"""V2 (Open Inference Protocol) over gRPC, and grpc.health.v1.

Both gRPC transports call the same two things: `UNARY`, the calls that are answered at once, and `infer`.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from mlserve import __version__
from mlserve.errors import InvalidRequest, RequestError, UnknownModelError
from mlserve.model.tensors import Tensors
from mlserve.serve.batching.batcher import Batch, Ticket
from mlserve.serve.batching.turn import Turn
from mlserve.serve.service import EXTENSIONS, PLATFORM, SERVER_NAME, ServedModel, Service
from mlserve.wire import grpc, messages
from mlserve.wire.signature import Field, InferRequest

__all__ = ["INFER", "UNARY", "GrpcCall", "GrpcTicket", "infer"]

INFER = f"/{messages.SERVICE}/ModelInfer"
PROTOCOL = "v2-grpc"

_HEALTH = "/grpc.health.v1.Health/Check"


class GrpcCall(Protocol):
    """One call that waits for its reply; a transport's."""

    def respond(self, payload: bytes) -> None: ...

    def fail(self, error: RequestError) -> None: ...


class GrpcTicket(Ticket):
    """One ModelInfer call on its way through the batcher."""

    __slots__ = ("call", "model", "request")

    def __init__(self, call: GrpcCall, model: ServedModel, request: InferRequest, loop: Any) -> None:
        self.inputs, self.rows = request.inputs, request.rows
        self.key, self.loop = model.signature.batch_key(request.inputs), loop
        self.call, self.model, self.request = call, model, request
        self.protocol = PROTOCOL
        self.arrived_s = time.perf_counter()

    def answer(self, outputs: Tensors, batch: Batch) -> None:
        self.call.respond(grpc.encode_response(self.model.signature, self.request, outputs))

    def fail(self, error: RequestError) -> None:
        self.call.fail(error)


def infer(service: Service, payload: bytes, call: GrpcCall, turn: Turn, loop: Any = None) -> None:
    """Puts one ModelInfer call into the transport's turn, or fails it at once."""
    model = None
    try:
        service.check_serving()
        message = grpc.parse_request(payload)
        model = service.find(message.model_name, message.model_version)
        request = grpc.decode_request(message, model.signature)
    except RequestError as error:
        if model is not None:
            model.meter.failed(PROTOCOL, error)
        call.fail(error)
        return
    turn.add(model.batcher, GrpcTicket(call, model, request, loop))


def _server_live(_: Service, __: bytes) -> Any:
    return messages.ServerLiveResponse(live=True)


def _server_ready(service: Service, _: bytes) -> Any:
    return messages.ServerReadyResponse(ready=service.ready)


def _model_ready(service: Service, payload: bytes) -> Any:
    request = _parse(messages.ModelReadyRequest, payload)
    service.find(request.name, request.version)
    return messages.ModelReadyResponse(ready=service.ready)


def _server_metadata(_: Service, __: bytes) -> Any:
    return messages.ServerMetadataResponse(name=SERVER_NAME, version=__version__, extensions=EXTENSIONS)


def _model_metadata(service: Service, payload: bytes) -> Any:
    request = _parse(messages.ModelMetadataRequest, payload)
    signature = service.find(request.name, request.version).signature
    return messages.ModelMetadataResponse(
        name=signature.name,
        versions=service.versions(signature.name),
        platform=PLATFORM,
        inputs=[_tensor(field) for field in signature.inputs.values()],
        outputs=[_tensor(field) for field in signature.outputs.values()],
    )


def _health(service: Service, payload: bytes) -> Any:
    name = _parse(health_pb2.HealthCheckRequest, payload).service
    if name not in ("", messages.SERVICE):
        raise UnknownModelError(f"no service {name[:64]!r}; there are '' and '{messages.SERVICE}'")
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    return health_pb2.HealthCheckResponse(status=serving if service.ready else not_serving)


def _parse(message: Any, payload: bytes) -> Any:
    try:
        return message.FromString(payload)
    except DecodeError as error:
        raise InvalidRequest(f"the message is no {message.DESCRIPTOR.name}") from error


def _tensor(field: Field) -> dict[str, Any]:
    return {"name": field.name, "datatype": field.datatype, "shape": field.spec.wire_shape}


UNARY: dict[str, Callable[[Service, bytes], Any]] = {
    f"/{messages.SERVICE}/ServerLive": _server_live,
    f"/{messages.SERVICE}/ServerReady": _server_ready,
    f"/{messages.SERVICE}/ModelReady": _model_ready,
    f"/{messages.SERVICE}/ServerMetadata": _server_metadata,
    f"/{messages.SERVICE}/ModelMetadata": _model_metadata,
    _HEALTH: _health,
}
"""gRPC path -> what answers it: (service, request bytes) -> response message. Raises RequestError."""
