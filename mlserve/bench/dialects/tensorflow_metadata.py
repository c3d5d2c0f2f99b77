"""A model's default signature, as TensorFlow Serving describes it."""

from collections.abc import Mapping

import msgspec

from mlserve.bench.dialects.dialect import ModelDescription
from mlserve.bench.dialects.v2_metadata import to_specs
from mlserve.bench.target import Target
from mlserve.errors import BenchError
from mlserve.wire.tensorflow import TYPE_OF

__all__ = ["SIGNATURES", "Metadata", "SignatureMap", "described_by_signature"]

SIGNATURES = "signature_def"
"""The one kind of metadata that TensorFlow Serving has."""

_DEFAULT = "serving_default"
_DATATYPE = {theirs: ours for ours, theirs in TYPE_OF.items()}


class _Dim(msgspec.Struct):
    size: int = 0


class _Shape(msgspec.Struct):
    dim: list[_Dim] = []
    unknown_rank: bool = False


class _TensorInfo(msgspec.Struct):
    dtype: str = "DT_INVALID"
    tensor_shape: _Shape = msgspec.field(default_factory=_Shape)


class _Signature(msgspec.Struct):
    inputs: dict[str, _TensorInfo] = {}
    outputs: dict[str, _TensorInfo] = {}


class SignatureMap(msgspec.Struct):
    """protobuf's SignatureDefMap in JSON: sizes may be texts."""

    signature_def: dict[str, _Signature] = {}


class _ModelSpec(msgspec.Struct):
    name: str = ""
    version: str = ""


class Metadata(msgspec.Struct):
    """The answer to `GET /v1/models/NAME/metadata`."""

    metadata: dict[str, SignatureMap]
    model_spec: _ModelSpec = msgspec.field(default_factory=_ModelSpec)


def described_by_signature(target: Target, version: str, signatures: Mapping[str, _Signature]) -> ModelDescription:
    """The inputs and outputs of the signature that a request without a name of one means.

    Raises BenchError where there is none, and for a tensor without a shape or of a type that cannot be sent.
    """
    signature = signatures.get(_DEFAULT)
    if signature is None:
        known = ", ".join(signatures) or "none"
        raise BenchError(f"{target.url}: model '{target.model}' has no signature '{_DEFAULT}', only {known}")
    inputs, outputs = (
        [(name, _datatype(info), _shape(name, info, target)) for name, info in sorted(tensors.items())]
        for tensors in (signature.inputs, signature.outputs)
    )
    return ModelDescription(
        name=target.model,
        versions=(version,) if version else (),
        inputs=to_specs(inputs, target),
        outputs=to_specs(outputs, target) if outputs else (),
    )


def _datatype(info: _TensorInfo) -> str:
    return _DATATYPE.get(info.dtype, info.dtype)


def _shape(name: str, info: _TensorInfo, target: Target) -> list[int]:
    if info.tensor_shape.unknown_rank:
        raise BenchError(
            f"{target.url}: tensor '{name}' of model '{target.model}' has no shape; say what it takes with --inputs"
        )
    return [dim.size for dim in info.tensor_shape.dim]
