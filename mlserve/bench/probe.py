"""One question before the load: is there a server, which model, what does it take, and does it answer?

So that a wrong address, name, or tensor costs one clear line and no load. Everything raises BenchError.
"""

from pathlib import Path

import msgspec

from mlserve.bench.clients.client import Request
from mlserve.bench.dialects.asking import ask, call
from mlserve.bench.dialects.dialect import ModelDescription
from mlserve.bench.dialects.find import find_dialect
from mlserve.bench.target import Target
from mlserve.errors import BenchError
from mlserve.model.tensors import TensorSpec

__all__ = ["ask_once", "describe_model", "find_model", "inputs_of"]


def find_model(target: Target) -> Target:
    """`target` with its model named: the only one the server has, where it names none.

    It stays without a name where the server tells none and its protocol needs none.
    """
    if target.model:
        return target
    dialect = find_dialect(target.protocol)
    names = dialect.models(target)
    if names is None:
        if not dialect.needs_model:
            return target
        raise BenchError(
            f"{target.url} names no model, and servers of this kind do not list theirs; choose one with --model NAME"
        )
    if len(names) != 1:
        which = f"it serves {', '.join(names)}" if names else "it serves none"
        raise BenchError(f"{target.url} names no model, and {which}; choose one with --model NAME")
    return msgspec.structs.replace(target, model=names[0])


def describe_model(target: Target) -> ModelDescription:
    """What the server says of the target's model."""
    found = find_dialect(target.protocol).describe(target)
    if found is None:
        raise BenchError(
            f"{target.url} does not say what '{target.title}' takes; say it with --inputs FILE.onnx or --inputs NAME"
        )
    return found


def inputs_of(ref: str, store: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of the ONNX file or of the store's model that `ref` means, for a server that tells none.

    Raises ModelFileError or EngineError for a file that is no such model, StoreError for an unknown one.
    """
    path = Path(ref)
    if ref.endswith(".onnx") or path.is_file():
        from mlserve.engines.opening import open_onnx_file

        engine = open_onnx_file(path)
        engine.close()
        return engine.inputs, engine.outputs
    from mlserve.model.store import Store

    manifest = Store(store).resolve(ref).manifest
    return manifest.inputs, manifest.outputs


def ask_once(target: Target, request: Request) -> bytes:
    """Sends one inference request; its answer."""
    dialect = find_dialect(target.protocol)
    path = dialect.path(target)
    if dialect.transport == "grpc":
        return call(target, path, request.body, request.headers)
    return ask(target, "POST", path, request.body, request.headers)
