"""The Open Inference Protocol (V2) over REST."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from mlserve.bench.clients.client import Request
from mlserve.bench.dialects.asking import NotFound, ask, parse
from mlserve.bench.dialects.dialect import ModelDescription, Transport
from mlserve.bench.dialects.v2_metadata import to_specs
from mlserve.bench.target import Target
from mlserve.errors import BenchError
from mlserve.model.tensors import Tensors, TensorSpec
from mlserve.wire import rest

__all__ = ["V2Rest"]

_VERSION = b'"model_version":"'
# Servers write the version before the outputs; beyond this, finding it would cost more than it tells.
_HEAD_BYTES = 256


class V2Rest:
    """Tensors as JSON."""

    transport: Transport = "http"

    def path(self, target: Target) -> str:
        return target.infer_path

    def encode(self, target: Target, tensors: Tensors, specs: Sequence[TensorSpec]) -> Request:
        body, headers = rest.encode_request(tensors, specs)
        return Request(body, tuple(headers.items()), len(next(iter(tensors.values()))))

    def decode(self, content: bytes, outputs: Mapping[str, TensorSpec]) -> Tensors:
        return rest.decode_response(content, outputs)

    def version(self, content: bytes) -> str:
        start = content.find(_VERSION, 0, _HEAD_BYTES) + len(_VERSION)
        if start < len(_VERSION):
            return ""
        return content[start : content.find(b'"', start)].decode("utf-8", "replace")

    def describe(self, target: Target) -> ModelDescription:
        try:
            said = parse(target, ask(target, "GET", target.model_path), _Metadata, target.model_path)
        except NotFound as error:
            raise BenchError(f"{error}; {self._what_there_is(target)}") from error
        inputs, outputs = (
            [(tensor.name, tensor.datatype, tensor.shape) for tensor in tensors]
            for tensors in (said.inputs, said.outputs)
        )
        return ModelDescription(
            name=said.name,
            versions=tuple(said.versions),
            inputs=to_specs(inputs, target),
            outputs=to_specs(outputs, target) if outputs else (),
        )

    def models(self, target: Target) -> tuple[str, ...]:
        index: Any = parse(
            target, ask(target, "POST", "/v2/repository/index"), list[_IndexEntry], "/v2/repository/index"
        )
        return tuple(sorted({entry.name for entry in index}))

    def _what_there_is(self, target: Target) -> str:
        try:
            return f"it serves {', '.join(self.models(target))}"
        except BenchError:  # it does not list its models: the first error says enough
            return "check the model's name and version"


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]


class _Metadata(msgspec.Struct):
    name: str
    inputs: list[_Tensor]
    outputs: list[_Tensor] = []
    versions: list[str] = []


class _IndexEntry(msgspec.Struct):
    name: str
