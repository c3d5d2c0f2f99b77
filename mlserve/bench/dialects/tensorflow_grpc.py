"""TensorFlow Serving over gRPC: PredictionService.

https://github.com/tensorflow/serving, tensorflow_serving/apis/prediction_service.proto
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from mlserve.bench.clients.client import Request
from mlserve.bench.dialects.asking import call, reading
from mlserve.bench.dialects.dialect import ModelDescription, Transport
from mlserve.bench.dialects.tensorflow_metadata import SIGNATURES, SignatureMap, described_by_signature
from mlserve.bench.dialects.v2_metadata import execution_by_grpc
from mlserve.bench.target import Target
from mlserve.model.tensors import Tensors, TensorSpec
from mlserve.wire.tensorflow import decode_predicted, encode_predict
from mlserve.wire.tensorflow_messages import (
    PREDICTION_SERVICE,
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    SignatureDefMap,
)

__all__ = ["TensorflowGrpc"]

# PredictResponse.model_spec and ModelSpec.version are fields 2, of bytes; Int64Value.value is field 1, a number.
_OF_BYTES, _NUMBER = 2, 0
_MODEL_SPEC, _VERSION, _VALUE = 2, 2, b"\x08"


class TensorflowGrpc:
    """Tensors as raw bytes (`tensor_content`)."""

    transport: Transport = "grpc"
    needs_model = True

    def path(self, target: Target) -> str:  # the seam's; a model is named in the message
        return f"/{PREDICTION_SERVICE}/Predict"

    def encode(self, target: Target, tensors: Tensors, specs: Sequence[TensorSpec]) -> Request:
        body = encode_predict(target.model, target.version, tensors, specs)
        return Request(body, target.headers, len(next(iter(tensors.values()))))

    def decode(self, content: bytes, outputs: Mapping[str, TensorSpec]) -> Tensors:
        with reading():
            return decode_predicted(content, outputs)

    def version(self, content: bytes) -> str:
        """Reads past the tensors, without looking into them, to the model's version; "" where there is none."""
        spec = _field(content, _MODEL_SPEC)
        value = _field(spec, _VERSION)
        return str(_varint(value, 1)[0]) if value[:1] == _VALUE else ""

    def describe(self, target: Target) -> ModelDescription:
        from google.protobuf.json_format import MessageToDict

        spec: dict[str, Any] = {"name": target.model}
        if target.version:
            spec["version"] = {"value": int(target.version)}
        request = GetModelMetadataRequest(model_spec=spec, metadata_field=[SIGNATURES])
        answer = call(target, f"/{PREDICTION_SERVICE}/GetModelMetadata", request.SerializeToString())
        said = GetModelMetadataResponse.FromString(answer)
        signatures = SignatureDefMap.FromString(said.metadata[SIGNATURES].value)
        document = MessageToDict(signatures, preserving_proto_field_name=True)
        found = msgspec.convert(document, SignatureMap, strict=False).signature_def
        version = str(said.model_spec.version.value) if said.model_spec.HasField("version") else ""
        provider, precision = execution_by_grpc(target)
        described = described_by_signature(target, version, found)
        return msgspec.structs.replace(described, provider=provider, precision=precision)

    def models(self, target: Target) -> None:  # there is no call for it
        return None


def _field(message: bytes, number: int) -> bytes:
    """The bytes of field `number`; empty where the message has none.

    https://protobuf.dev/programming-guides/encoding/
    """
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag & 7 == _NUMBER:
            _, position = _varint(message, position)
        elif tag & 7 == _OF_BYTES:
            length, position = _varint(message, position)
            if tag >> 3 == number:
                return message[position : position + length]
            position += length
        else:
            return b""
    return b""


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where it ends."""
    value = shift = 0
    while position < len(message):
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            break
    return value, position
