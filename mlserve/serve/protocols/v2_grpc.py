"""V2 (Open Inference Protocol) over gRPC, and grpc.health.v1."""

from typing import Any

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from mlserve import __version__
from mlserve.errors import InvalidRequest, UnknownModelError
from mlserve.model.tensors import Tensors
from mlserve.serve.protocols.dialect import Call, InferCall
from mlserve.serve.service import EXTENSIONS, ServedModel, Service
from mlserve.wire import grpc, messages
from mlserve.wire.signature import Field, InferRequest

__all__ = ["CALLS"]

_HEALTH = "/grpc.health.v1.Health/Check"


def _server_live(_: Service, __: bytes) -> Any:
    return messages.ServerLiveResponse(live=True)


def _server_ready(service: Service, _: bytes) -> Any:
    return messages.ServerReadyResponse(ready=service.ready)


def _model_ready(service: Service, payload: bytes) -> Any:
    request = _parse(messages.ModelReadyRequest, payload)
    service.find(request.name, request.version)
    return messages.ModelReadyResponse(ready=service.ready)


def _server_metadata(service: Service, __: bytes) -> Any:
    return messages.ServerMetadataResponse(name=service.name, version=__version__, extensions=EXTENSIONS)


def _model_metadata(service: Service, payload: bytes) -> Any:
    request = _parse(messages.ModelMetadataRequest, payload)
    model = service.find(request.name, request.version)
    signature = model.signature
    return messages.ModelMetadataResponse(
        name=signature.name,
        versions=service.versions(signature.name),
        platform=model.facts.platform,
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


def _find(service: Service, message: Any) -> ServedModel:
    return service.find(message.model_name, message.model_version)


def _decode(message: Any, model: ServedModel) -> InferRequest:
    return grpc.decode_request(message, model.signature)


def _encode(model: ServedModel, request: InferRequest, outputs: Tensors) -> bytes:
    return grpc.encode_response(model.signature, request, outputs)


CALLS = (
    InferCall(f"/{messages.SERVICE}/ModelInfer", "v2-grpc", grpc.parse_request, _find, _decode, _encode),
    Call(f"/{messages.SERVICE}/ServerLive", None, _server_live),
    Call(f"/{messages.SERVICE}/ServerReady", None, _server_ready),
    Call(f"/{messages.SERVICE}/ModelReady", "metadata", _model_ready),
    Call(f"/{messages.SERVICE}/ServerMetadata", "metadata", _server_metadata),
    Call(f"/{messages.SERVICE}/ModelMetadata", "metadata", _model_metadata),
    Call(_HEALTH, None, _health),
)
