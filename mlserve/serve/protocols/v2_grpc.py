"""V2 (Open Inference Protocol) over gRPC, with Triton's extensions to it."""

from typing import Any

from mlserve import __version__
from mlserve.model.tensors import Tensors
from mlserve.serve.protocols import v2_configuration, v2_refusals, v2_repository, v2_statistics, v2_stream
from mlserve.serve.protocols.dialect import AsyncCall, Call, InferCall, StreamCall
from mlserve.serve.service import EXTENSIONS, ServedModel, Service
from mlserve.wire import grpc, grpc_fast, messages
from mlserve.wire.classification import classify
from mlserve.wire.signature import Field, InferRequest

__all__ = ["CALLS", "SLOW_CALLS"]


def _server_live(_: Service, __: bytes) -> Any:
    return messages.ServerLiveResponse(live=True)


def _server_ready(service: Service, _: bytes) -> Any:
    return messages.ServerReadyResponse(ready=service.ready)


def _model_ready(service: Service, payload: bytes) -> Any:
    """Not ready is also what is not there, or held back: tritonclient expects no error."""
    request = messages.parse_message(messages.ModelReadyRequest, payload)
    served = service.catalog.look_up(request.name, request.version) is not None
    return messages.ModelReadyResponse(ready=served and service.ready)


def _server_metadata(service: Service, __: bytes) -> Any:
    return messages.ServerMetadataResponse(name=service.name, version=__version__, extensions=EXTENSIONS)


def _model_metadata(service: Service, payload: bytes) -> Any:
    request = messages.parse_message(messages.ModelMetadataRequest, payload)
    model = service.find(request.name, request.version)
    signature = model.signature
    return messages.ModelMetadataResponse(
        name=signature.name,
        versions=service.versions(signature.name),
        platform=model.facts.platform,
        inputs=[_tensor(field) for field in signature.inputs.values()],
        outputs=[_tensor(field) for field in signature.outputs.values()],
    )


def _tensor(field: Field) -> dict[str, Any]:
    return {"name": field.name, "datatype": field.datatype, "shape": field.spec.wire_shape}


def _find(service: Service, message: Any) -> ServedModel:
    return service.find(message.model_name, message.model_version)


def _decode(message: Any, model: ServedModel) -> InferRequest:
    return grpc.decode_request(message, model.signature)


def _encode(model: ServedModel, request: InferRequest, outputs: Tensors) -> bytes:
    signature = model.signature
    if request.classes is not None:
        signature, outputs = classify(signature, request.classes, outputs, model.facts.labels)
        return grpc.encode_response(signature, request, outputs)
    return grpc_fast.encode_response(signature, request, outputs)


def _decode_received(received: grpc_fast.Received, model: ServedModel) -> InferRequest:
    return grpc_fast.decode_request(received, model.signature)


INFER = InferCall(f"/{messages.SERVICE}/ModelInfer", "v2-grpc", grpc.parse_request, _find, _decode, _encode)
CALLS: tuple[Call | InferCall, ...] = (
    InferCall(INFER.path, INFER.protocol, grpc_fast.parse_request, _find, _decode_received, _encode),
    Call(f"/{messages.SERVICE}/ServerLive", None, _server_live),
    Call(f"/{messages.SERVICE}/ServerReady", None, _server_ready),
    Call(f"/{messages.SERVICE}/ModelReady", "metadata", _model_ready),
    Call(f"/{messages.SERVICE}/ServerMetadata", "metadata", _server_metadata),
    Call(f"/{messages.SERVICE}/ModelMetadata", "metadata", _model_metadata),
    *v2_configuration.CALLS,
    *v2_repository.CALLS,
    *v2_refusals.CALLS,
)
SLOW_CALLS: tuple[AsyncCall | StreamCall, ...] = (
    v2_stream.stream_of(INFER),
    *v2_repository.SLOW_CALLS,
    *v2_statistics.SLOW_CALLS,
)
