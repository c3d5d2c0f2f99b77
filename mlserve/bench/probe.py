"""One question before the load: is there a server, which model, what does it take, and does it answer?

So that a wrong address, name, or tensor costs one clear line and no load. Everything raises BenchError.
"""

import http.client
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from mlserve.bench.target import Target
from mlserve.errors import BenchError
from mlserve.model.tensors import DTYPE_OF, TensorSpec
from mlserve.wire import messages

__all__ = ["ModelMetadata", "Prober", "find_model", "open_prober", "read_page"]

_WAIT_S = 30.0


class ModelMetadata(msgspec.Struct, frozen=True):
    """What a server says of one model."""

    name: str
    versions: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]


class Prober(Protocol):
    """One connection to a target, for a handful of questions."""

    def models(self) -> list[str]:
        """The models the server has; raises BenchError where it cannot say."""
        ...

    def metadata(self) -> ModelMetadata: ...

    def infer(self, body: bytes, headers: dict[str, str]) -> str:
        """Sends one inference request; the version that answered, "" where the answer does not say."""
        ...


def open_prober(target: Target) -> Prober:
    """The prober for the target's protocol."""
    return _GrpcProber(target) if target.protocol == "grpc" else _RestProber(target)


def find_model(target: Target) -> Target:
    """`target` with its model named: the only one the server has, where it names none."""
    if target.model:
        return target
    names = open_prober(target).models()
    if len(names) != 1:
        which = f"it serves {', '.join(names)}" if names else "it serves none"
        raise BenchError(f"{target.url} names no model, and {which}; choose one with --model NAME")
    return msgspec.structs.replace(target, model=names[0])


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]


class _Metadata(msgspec.Struct):
    name: str
    inputs: list[_Tensor]
    versions: list[str] = []


class _IndexEntry(msgspec.Struct):
    name: str


class _Versioned(msgspec.Struct):
    model_version: str = ""


class _Refusal(msgspec.Struct):
    error: str


class _NotFound(BenchError):
    """HTTP 404."""


class _RestProber:
    def __init__(self, target: Target) -> None:
        self._target = target

    def models(self) -> list[str]:
        index = self._ask("POST", "/v2/repository/index", list[_IndexEntry])
        return sorted({entry.name for entry in index})

    def metadata(self) -> ModelMetadata:
        try:
            said = self._ask("GET", self._target.model_path, _Metadata)
        except _NotFound as error:
            raise BenchError(f"{error}; {self._what_there_is()}") from error
        inputs = [(tensor.name, tensor.datatype, tensor.shape) for tensor in said.inputs]
        return ModelMetadata(said.name, tuple(said.versions), _specs(inputs, self._target))

    def infer(self, body: bytes, headers: dict[str, str]) -> str:
        answer = self._exchange("POST", self._target.infer_path, body, headers)
        return str(self._parse(answer, _Versioned, self._target.infer_path).model_version)

    def _what_there_is(self) -> str:
        try:
            return f"it serves {', '.join(self.models())}"
        except BenchError:  # it does not list its models: the first error says enough
            return "check the model's name and version"

    def _ask(self, method: str, path: str, kind: Any) -> Any:
        return self._parse(self._exchange(method, path, b"", {}), kind, path)

    def _parse(self, content: bytes, kind: Any, path: str) -> Any:
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BenchError(
                f"{self._target.url} does not speak the Open Inference Protocol (V2): its answer to {path} is "
                f"something else ({error}); check host and port"
            ) from error

    def _exchange(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        target = self._target
        try:
            connection = http.client.HTTPConnection(target.host, target.port, timeout=_WAIT_S)
            try:
                connection.request(method, path, body, headers)
                reply = connection.getresponse()
                answer = reply.read()
            finally:
                connection.close()
        except TimeoutError as error:
            raise BenchError(
                f"{target.url} did not answer {path} within {_WAIT_S:g} s; is it busy or stuck?"
            ) from error
        except OSError as error:
            raise BenchError(_unreachable(target, error.strerror or str(error))) from error
        except http.client.HTTPException as error:
            raise BenchError(f"{target.url} does not speak HTTP: {error!r}; check the port") from error
        if reply.status != 200:
            kind = _NotFound if reply.status == 404 else BenchError
            raise kind(f"{target.url} answered {path} with HTTP {reply.status}: {_reason(answer)}")
        return answer


class _GrpcProber:
    def __init__(self, target: Target) -> None:
        self._target = target

    def models(self) -> list[str]:
        # The protocol's core has no call for it, and servers that have one agree on no messages.
        raise BenchError(
            f"{self._target.url} names no model, and gRPC servers do not list theirs; choose one with --model NAME"
        )

    def metadata(self) -> ModelMetadata:
        target = self._target
        request = messages.ModelMetadataRequest(name=target.model, version=target.version)
        said = messages.ModelMetadataResponse.FromString(self._call("ModelMetadata", request.SerializeToString()))
        inputs = [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in said.inputs]
        return ModelMetadata(said.name, tuple(said.versions), _specs(inputs, target))

    def infer(self, body: bytes, headers: dict[str, str]) -> str:
        return str(messages.ModelInferResponse.FromString(self._call("ModelInfer", body)).model_version)

    def _call(self, method: str, payload: bytes) -> bytes:
        import grpc

        target = self._target
        with grpc.insecure_channel(target.authority, options=[("grpc.max_receive_message_length", -1)]) as channel:
            try:
                answer: bytes = channel.unary_unary(f"/{messages.SERVICE}/{method}")(payload, timeout=_WAIT_S)
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.UNAVAILABLE:
                    raise BenchError(_unreachable(target, error.details())) from error
                raise BenchError(
                    f"{target.url} answered {method} with {error.code().name}: {_short(error.details() or '')}"
                ) from error
        return answer


def read_page(url: str) -> bytes:
    """One page over plain HTTP. Raises OSError or http.client.HTTPException where there is none."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    try:
        connection.request("GET", parts.path)
        reply = connection.getresponse()
        if reply.status != 200:
            raise OSError(f"{url} answered with HTTP {reply.status}")
        return reply.read()
    finally:
        connection.close()


def _specs(inputs: list[tuple[str, str, list[int]]], target: Target) -> tuple[TensorSpec, ...]:
    """The model's inputs; the protocol's -1 becomes a word, `batch` where it comes first."""
    specs = []
    for name, datatype, shape in inputs:
        if datatype not in DTYPE_OF:
            raise BenchError(f"{target.url}: input '{name}' of model '{target.model}' has the type {datatype!r}")
        dims = tuple((f"dim{i}" if i else "batch") if size < 0 else size for i, size in enumerate(shape))
        specs.append(TensorSpec(name, DTYPE_OF[datatype], dims))
    if not specs:
        raise BenchError(f"{target.url} says that model '{target.model}' takes no inputs; there is nothing to send")
    return tuple(specs)


def _reason(answer: bytes) -> str:
    try:
        return msgspec.json.decode(answer, type=_Refusal).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _short(answer.decode("utf-8", "replace").strip()) or "it gave no reason"


def _short(text: str) -> str:
    return " ".join(text.split())[:300]


def _unreachable(target: Target, reason: str) -> str:
    return (
        f"{target.url} cannot be reached: {_short(reason)}; check host and port, or start a server with: mlserve serve"
    )
