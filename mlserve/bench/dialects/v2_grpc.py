"""The Open Inference Protocol (V2) over gRPC."""

from collections.abc import Mapping, Sequence

from mlserve.bench.clients.client import Request
from mlserve.bench.dialects.asking import reading
from mlserve.bench.dialects.dialect import ModelDescription, Transport
from mlserve.bench.dialects.v2_metadata import described_by_grpc
from mlserve.bench.target import Target
from mlserve.model.tensors import Tensors, TensorSpec
from mlserve.wire import grpc, messages

__all__ = ["V2Grpc"]


class V2Grpc:
    """Tensors as raw bytes."""

    transport: Transport = "grpc"
    needs_model = True

    def path(self, target: Target) -> str:  # the seam's; a model is named in the message
        return f"/{messages.SERVICE}/ModelInfer"

    def encode(self, target: Target, tensors: Tensors, specs: Sequence[TensorSpec]) -> Request:
        body = grpc.encode_request(target.model, target.version, tensors, specs)
        return Request(body, target.headers, len(next(iter(tensors.values()))))

    def decode(self, content: bytes, outputs: Mapping[str, TensorSpec]) -> Tensors:
        with reading():
            return grpc.decode_response(content, outputs)

    def version(self, content: bytes) -> str:
        """Fields 1 and 2, `model_name` and `model_version`: they come first and are short; "" where it is not so."""
        name_end = _text_end(content, 0, b"\x0a")
        end = _text_end(content, name_end, b"\x12")
        return content[name_end + 2 : end].decode("utf-8", "replace")

    def describe(self, target: Target) -> ModelDescription:
        return described_by_grpc(target)

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
