"""A model as a server of the Open Inference Protocol (V2) describes it, over REST or gRPC.

Servers of other protocols often speak V2 besides (mlserve, MLServer, KServe's): `described_besides` asks them for what
their own protocol does not tell.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from mlserve.bench.dialects.asking import NotFound, RefusedError, ask, call, parse
from mlserve.bench.dialects.dialect import ModelDescription
from mlserve.bench.target import Target
from mlserve.errors import BenchError
from mlserve.model.tensors import DTYPE_OF, TensorSpec
from mlserve.wire import messages

__all__ = [
    "described_besides",
    "described_by_grpc",
    "described_by_rest",
    "execution_by_grpc",
    "listed_by_rest",
    "to_specs",
]

_V2 = "the Open Inference Protocol (V2)"
# What an open first dimension is called: that of the requests' rows, and one of which nobody says what it counts.
_ROWS, _SOME = "batch", "some"
_INDEX = "/v2/repository/index"


def described_by_rest(target: Target) -> ModelDescription:
    """What `GET /v2/models/NAME` says, and the configuration where there is one. Raises BenchError."""
    try:
        said: Any = parse(target, ask(target, "GET", target.model_path), _Metadata, target.model_path, _V2)
    except NotFound as error:
        raise BenchError(f"{error}; {_what_there_is(target)}") from error
    return _description(said, _configured_by_rest(target), target)


def described_by_grpc(target: Target) -> ModelDescription:
    """What the call ModelMetadata says, and the configuration where there is one. Raises BenchError."""
    request = messages.ModelMetadataRequest(name=target.model, version=target.version)
    answer = call(target, f"/{messages.SERVICE}/ModelMetadata", request.SerializeToString())
    said = messages.ModelMetadataResponse.FromString(answer)
    inputs, outputs = (
        [_Tensor(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in tensors]
        for tensors in (said.inputs, said.outputs)
    )
    return _description(_Metadata(said.name, inputs, outputs, list(said.versions)), _configured_by_grpc(target), target)


def described_besides(target: Target) -> ModelDescription | None:
    """The target's model as the same address describes it by V2; None unless it speaks V2 and knows the model.

    A target without a model means the only one. Raises BenchError when nobody answers at all.
    """
    try:
        names = (target.model,) if target.model else listed_by_rest(target)
        if len(names) != 1:
            return None
        return described_by_rest(msgspec.structs.replace(target, model=names[0]))
    except BenchError:
        _check_there(target)
        return None


def listed_by_rest(target: Target) -> tuple[str, ...]:
    """The names in the repository index. Raises BenchError."""
    index: Any = parse(target, ask(target, "POST", _INDEX), list[_IndexEntry], _INDEX, _V2)
    return tuple(sorted({entry.name for entry in index}))


def execution_by_grpc(target: Target) -> tuple[str, str]:
    """(provider, precision) as the call ModelConfig says; "" where it does not."""
    return _execution(_configured_by_grpc(target))


def to_specs(
    tensors: Sequence[tuple[str, str, Sequence[int]]], target: Target, first: str = _ROWS
) -> tuple[TensorSpec, ...]:
    """(name, datatype, shape) of each tensor as specs; the protocol's -1 becomes a word, `first` where it comes first.

    Raises BenchError for an unknown datatype, or when there are none.
    """
    specs = []
    for name, datatype, shape in tensors:
        if datatype not in DTYPE_OF:
            raise BenchError(f"{target.url}: tensor '{name}' of model '{target.model}' has the type {datatype!r}")
        dims = tuple((f"dim{i}" if i else first) if size < 0 else size for i, size in enumerate(shape))
        specs.append(TensorSpec(name, DTYPE_OF[datatype], dims))
    if not specs:
        raise BenchError(f"{target.url} says that model '{target.model}' takes no inputs; there is nothing to send")
    return tuple(specs)


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


class _Instances(msgspec.Struct):
    kind: str = ""


class _Parameter(msgspec.Struct):
    string_value: str = ""


class _Configuration(msgspec.Struct):
    """What is read of Triton's ModelConfig, which mlserve writes too. `max_batch_size` above 0 says that the first
    dimension of every tensor is the batch's; 0 says nothing.
    """

    platform: str = ""
    backend: str = ""
    max_batch_size: int = 0
    instance_group: list[_Instances] = []
    parameters: dict[str, _Parameter] = {}


def _description(said: _Metadata, configuration: _Configuration, target: Target) -> ModelDescription:
    inputs, outputs = (
        [(tensor.name, tensor.datatype, tensor.shape) for tensor in tensors] for tensors in (said.inputs, said.outputs)
    )
    provider, precision = _execution(configuration)
    return ModelDescription(
        name=said.name,
        versions=tuple(said.versions),
        inputs=to_specs(inputs, target),
        outputs=to_specs(outputs, target, _ROWS if configuration.max_batch_size > 0 else _SOME) if outputs else (),
        provider=provider,
        precision=precision,
    )


def _execution(configuration: _Configuration) -> tuple[str, str]:
    """What `parameters` say of them, as mlserve writes it; else Triton's backend and kind of instance."""
    said = configuration.parameters.get("provider", _Parameter()).string_value
    if said:
        return said, configuration.parameters.get("precision", _Parameter()).string_value
    kinds = {group.kind.removeprefix("KIND_") for group in configuration.instance_group}
    runs_by = configuration.backend or configuration.platform
    return " ".join([runs_by, *sorted(kinds)]) if runs_by else "", ""


def _configured_by_rest(target: Target) -> _Configuration:
    path = f"{target.model_path}/config"
    try:
        found: _Configuration = parse(target, ask(target, "GET", path), _Configuration, path, _V2)
    except BenchError:  # an extension of V2, which many servers lack
        return _Configuration()
    return found


def _configured_by_grpc(target: Target) -> _Configuration:
    from google.protobuf.json_format import MessageToDict

    request = messages.ModelConfigRequest(name=target.model, version=target.version)
    try:
        answer = call(target, f"/{messages.SERVICE}/ModelConfig", request.SerializeToString())
    except RefusedError:  # as above
        return _Configuration()
    config = messages.ModelConfigResponse.FromString(answer).config
    return msgspec.convert(MessageToDict(config, preserving_proto_field_name=True), _Configuration, strict=False)


def _check_there(target: Target) -> None:
    """Raises BenchError unless something at the address speaks HTTP, whatever it answers."""
    try:
        ask(target, "GET", "/")
    except RefusedError:
        return


def _what_there_is(target: Target) -> str:
    try:
        return f"it serves {', '.join(listed_by_rest(target))}"
    except BenchError:  # it does not list its models: the first error says enough
        return "check the model's name and version"
