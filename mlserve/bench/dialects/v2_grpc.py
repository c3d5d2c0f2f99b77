"""The Open Inference Protocol (V2) over gRPC."""

from collections.abc import Mapping, Sequence

from mlserve.bench.clients.client import Request
from mlserve.bench.dialects.asking import call
from mlserve.bench.dialects.dialect import ModelDescription, Transport
from mlserve.bench.dialects.v2_metadata import to_specs
from mlserve.bench.target import Target
from mlserve.model.tensors import Tensors, TensorSpec
from mlserve.wire import grpc, messages

__all__ = ["V2Grpc"]


class V2Grpc:
    """Tensors as raw bytes."""

    transport: Transport = "grpc"

    def path(self, target: Target) -> str:  # the seam's; a model is named in the message
        return f"/{messages.SERVICE}/ModelInfer"

    def encode(self, target: Target, tensors: Tensors, specs: Sequence[TensorSpec]) -> Request:
        body = grpc.encode_request(target.model, target.version, tensors, specs)
        return Request(body, (), len(next(iter(tensors.values()))))

    def decode(self, content: bytes, outputs: Mapping[str, TensorSpec]) -> Tensors:
        return grpc.decode_response(content, outputs)

    def version(self, content: bytes) -> str:
        """Fields 1 and 2, `model_name` and `model_version`, come first and are short; "" where they do not or are not."""
        name_end = _text_end(content, 0, b"\x0a")
        end = _text_end(content, name_end, b"\x12")
        return content[name_end + 2 : end].decode("utf-8", "replace")

    def describe(self, target: Target) -> ModelDescription:
        request = messages.ModelMetadataRequest(name=target.model, version=target.version)
        answer = call(target, f"/{messages.SERVICE}/ModelMetadata", request.SerializeToString())
        said = messages.ModelMetadataResponse.FromString(answer)
        inputs, outputs = (
            [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in tensors]
            for tensors in (said.inputs, said.outputs)
        )
        return ModelDescription(
            name=said.name,
            versions=tuple(said.versions),
            inputs=to_specs(inputs, target),
            outputs=to_specs(outputs, target) if outputs else (),
        )

    def models(self, target: Target) -> None:  # the protocol's core has no call for it
        return None


def _text_end(message: bytes, start: int, tag: bytes) -> int:
    """Where the text field with `tag` that begins at `start` ends; `start` itself when none begins there.

    Field: tag, length (one byte up to 127), text. https://protobuf.dev/programming-guides/encoding/
    """
    length = message[start + 1 : start + 2]
    if message[start : start + 1] != tag or not b"\x00" < length < b"\x80":
        return start
    return start + 2 + length[0]
