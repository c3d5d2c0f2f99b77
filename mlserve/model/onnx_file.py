"""Reading an ONNX file before anything executes it.

**Law:** no onnxruntime session opens a file that did not pass `inspect_onnx`. An ONNX file names other files to load
("external data"); a hostile one names yours. The rules are those of onnx's docs/ExternalDataSecurity.md: one relative
location inside the model's folder, no link on the way, a regular file with one name, a range that lies within it.
"""

import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from mlserve.errors import ModelFileError

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

__all__ = ["OnnxFile", "every_graph", "external_files", "inspect_onnx"]

_EXTERNAL_KEYS = {"location", "offset", "length", "checksum", "basepath"}
# int() refuses thousands of digits with an error of its own.
_MOST_DIGITS = 18


class OnnxFile(msgspec.Struct, frozen=True):
    """What an ONNX file says of itself. `bounds`: integer input -> exclusive upper bound of its values."""

    opset: int
    operators: frozenset[str]
    external_files: tuple[str, ...]
    bounds: dict[str, int]


def inspect_onnx(path: Path) -> OnnxFile:
    """Parses `path` without loading external data and checks every reference it makes.

    Raises ModelFileError when it is no ONNX model, is damaged, or refers to data outside its own folder.
    """
    model = _parse(path)
    operators = frozenset(node.op_type for graph in every_graph(model) for node in graph.node)
    if "EPContext" in operators:
        raise ModelFileError(
            f"{path} holds code compiled for one device (EPContext); export the model again without compiling it"
        )
    return OnnxFile(
        opset=max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0),
        operators=operators,
        external_files=external_files(model, path),
        bounds=_integer_bounds(model.graph),
    )


def external_files(model: "ModelProto", path: Path) -> tuple[str, ...]:
    """The files beside `path` that `model` keeps weights in; ModelFileError for one it must not read."""
    names: set[str] = set()
    for tensor in _tensors(model):
        if tensor.data_location == tensor.EXTERNAL or len(tensor.external_data):
            names.add(_check_external(tensor, path))
    return tuple(sorted(names))


def _parse(path: Path) -> "ModelProto":
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise ModelFileError(f"{path} is no ONNX model, or it is damaged; export it again") from error
    if not model.graph.node or not model.opset_import:
        raise ModelFileError(f"{path} holds no ONNX graph; it is empty, damaged or another kind of file")
    return model


def _check_external(tensor: "TensorProto", path: Path) -> str:
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key not in _EXTERNAL_KEYS or entry.key in entries:
            raise _refuse(path, tensor, f"has an unknown or repeated key {entry.key!r}")
        entries[entry.key] = entry.value
    location = PurePosixPath(entries.get("location", ""))
    if not location.name or location.is_absolute() or ".." in location.parts or "\\" in str(location):
        raise _refuse(path, tensor, f"lies outside the model's folder ({entries.get('location')!r})")
    file = _regular_file(path, tensor, location)
    offset, length = (_natural(entries.get(key, "0"), path, tensor, key) for key in ("offset", "length"))
    size = file.stat().st_size
    if offset + length > size:
        raise _refuse(path, tensor, f"needs bytes {offset} to {offset + length} of {location}, which has {size}")
    return str(location)


def _regular_file(path: Path, tensor: "TensorProto", location: PurePosixPath) -> Path:
    file = path.parent
    for part in location.parts:
        file = file / part
        if file.is_symlink():
            raise _refuse(path, tensor, f"is reached through a link ({location})")
    try:
        status = file.lstat()
    except OSError as error:
        raise _refuse(path, tensor, f"is kept in {location}, which is missing; copy it beside the model") from error
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise _refuse(path, tensor, f"is kept in {location}, which is not a plain file with one name")
    return file


def _natural(text: str, path: Path, tensor: "TensorProto", key: str) -> int:
    if not text.isdecimal() or len(text) > _MOST_DIGITS:
        raise _refuse(path, tensor, f"has {key} {text[:32]!r}")
    return int(text)


def _refuse(path: Path, tensor: "TensorProto", fault: str) -> ModelFileError:
    return ModelFileError(f"{path} is refused: the external data of tensor {tensor.name!r} {fault}")


def every_graph(model: "ModelProto") -> Iterator["GraphProto"]:
    """Every graph of the file: the main one, training graphs, and those inside nodes' attributes at any depth."""
    waiting = [model.graph]
    for training in model.training_info:
        waiting += [training.initialization, training.algorithm]
    for function in model.functions:
        waiting += _subgraphs(function.node)
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += _subgraphs(graph.node)


def _tensors(model: "ModelProto") -> Iterator["TensorProto"]:
    nodes: list[NodeProto] = [node for function in model.functions for node in function.node]
    for graph in every_graph(model):
        nodes += graph.node
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for attribute in _attributes(nodes):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)


def _subgraphs(nodes: "Iterable[NodeProto]") -> list["GraphProto"]:
    return [
        graph
        for attribute in _attributes(nodes)
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)
    ]


def _attributes(nodes: "Iterable[NodeProto]") -> Iterator["AttributeProto"]:
    for node in nodes:
        yield from node.attribute


def _integer_bounds(graph: "GraphProto") -> dict[str, int]:
    """Inputs that select rows of a table (an embedding): their values must stay below its number of rows."""
    tables = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    source = {value.name: value.name for value in graph.input}
    bounds: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in ("Cast", "Identity") and node.input[0] in source:
            source[node.output[0]] = source[node.input[0]]
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        if node.op_type == "Gather" and axis == 0 and node.input[0] in tables and node.input[1] in source:
            name = source[node.input[1]]
            bounds[name] = min(tables[node.input[0]], bounds.get(name, tables[node.input[0]]))
    return bounds
