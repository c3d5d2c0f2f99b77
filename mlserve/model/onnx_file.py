"""Reading an ONNX file before anything executes it.

**Law:** no onnxruntime session opens a file that did not pass `inspect_onnx`. An ONNX file names other files to load
("external data"); a hostile one names yours. The rules are those of onnx's docs/ExternalDataSecurity.md: one relative
location inside the model's folder, no link on the way, a regular file with one name, a range that lies within it. Nor
may it hold operators that are code: of another library, of a process, or compiled for one device.

What was read may be another file a moment later: `mlserve.model.private_copy` is for files that others can write.
"""

import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from mlserve.errors import ModelFileError

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

__all__ = ["OnnxFile", "every_graph", "external_files", "inspect_onnx"]

_EXTERNAL_KEYS = {"location", "offset", "length", "checksum", "basepath"}
# int() refuses thousands of digits with an error of its own.
_MOST_DIGITS = 18

# The operators of ONNX and of onnxruntime. Any other comes from a library that is code of its own, unless the file
# defines it as a function of these.
_DOMAINS = frozenset(
    {
        "", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training", "ai.onnx.training",
        "com.microsoft", "com.microsoft.experimental", "com.microsoft.nchwc", "com.ms.internal.nhwc",
    }
)  # fmt: skip
_CODE = {
    "EPContext": "code compiled for one device",
    "PyOp": "Python code",
    "PythonOp": "Python code",
    "PythonOpGrad": "Python code",
}


class OnnxFile(msgspec.Struct, frozen=True):
    """What an ONNX file says of itself. `bounds`: integer input -> exclusive upper bound of its values."""

    opset: int
    operators: frozenset[str]
    external_files: tuple[str, ...]
    bounds: dict[str, int]


def inspect_onnx(path: Path, beside: Path | None = None) -> OnnxFile:
    """Parses `path` without loading external data and checks every reference it makes, to files in the folder `beside`
    (None for its own).

    Raises ModelFileError when it is no ONNX model, is damaged, or refers to data outside its own folder.
    """
    model = _parse(path)
    _check_operators(model, path)
    return OnnxFile(
        opset=max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0),
        operators=frozenset(node.op_type for graph in every_graph(model) for node in graph.node),
        external_files=external_files(model, path if beside is None else beside / path.name),
        bounds=_integer_bounds(model.graph),
    )


def external_files(model: "ModelProto", path: Path) -> tuple[str, ...]:
    """The files beside `path` that `model` keeps weights in; ModelFileError for one it must not read."""
    names: set[str] = set()
    for tensor in _tensors(model):
        if tensor.data_location == tensor.EXTERNAL or len(tensor.external_data):
            names.add(_check_external(tensor, path))
    return tuple(sorted(names))


def _check_operators(model: "ModelProto", path: Path) -> None:
    defined = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(model):
        if node.op_type in _CODE:
            raise ModelFileError(
                f"{path} holds {_CODE[node.op_type]} ({node.op_type}); export the model again without compiling it"
            )
        if node.domain not in _DOMAINS and (node.domain, node.op_type) not in defined:
            raise ModelFileError(
                f"{path} needs the operator {node.op_type[:64]!r} of {node.domain[:64]!r}, which is a library of its "
                "own; export the model with the operators of ONNX"
            )


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
    named = entries.get("location", "")
    location = PurePosixPath(named)
    if not location.name or location.is_absolute() or ".." in location.parts or set(named) & {"\\", "\0"}:
        raise _refuse(path, tensor, f"lies outside the model's folder ({named[:128]!r})")
    file = _regular_file(path, tensor, location)
    offset, length = (_natural(entries.get(key, "0"), path, tensor, key) for key in ("offset", "length"))
    size = file.stat().st_size
    if offset + length > size:
        raise _refuse(path, tensor, f"needs bytes {offset} to {offset + length} of {location}, which has {size}")
    return str(location)


def _regular_file(path: Path, tensor: "TensorProto", location: PurePosixPath) -> Path:
    file = path.parent
    try:
        for part in location.parts:
            file = file / part
            if file.is_symlink():
                raise _refuse(path, tensor, f"is reached through a link ({location})")
        status = file.lstat()
    except OSError as error:
        raise _refuse(path, tensor, f"is kept in {location}, which is missing; copy it beside the model") from error
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise _refuse(path, tensor, f"is kept in {location}, which is not a plain file with one name")
    return file


def _natural(text: str, path: Path, tensor: "TensorProto", key: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > _MOST_DIGITS:
        raise _refuse(path, tensor, f"has {key} {text[:32]!r}")
    return int(text)


def _refuse(path: Path, tensor: "TensorProto", fault: str) -> ModelFileError:
    return ModelFileError(f"{path} is refused: the external data of tensor {tensor.name[:64]!r} {fault}")


def every_graph(model: "ModelProto") -> Iterator["GraphProto"]:
    """Every graph of the file: the main one, training graphs, and those inside nodes' attributes at any depth."""
    waiting = [model.graph]
    for training in model.training_info:
        waiting += [training.initialization, training.algorithm]
    for function in model.functions:
        waiting += _subgraphs(_function_attributes(function))
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += _subgraphs(_attributes(graph.node))


def _tensors(model: "ModelProto") -> Iterator["TensorProto"]:
    attributes: list[AttributeProto] = []
    for function in model.functions:
        attributes += _function_attributes(function)
    for graph in every_graph(model):
        attributes += _attributes(graph.node)
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for attribute in attributes:
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)


def _nodes(model: "ModelProto") -> Iterator["NodeProto"]:
    """Every operator of the file, wherever it stands."""
    for function in model.functions:
        yield from function.node
    for graph in every_graph(model):
        yield from graph.node


def _subgraphs(attributes: "Iterable[AttributeProto]") -> list["GraphProto"]:
    return [
        graph
        for attribute in attributes
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)
    ]


def _function_attributes(function: "FunctionProto") -> Iterator["AttributeProto"]:
    """Those of its operators, and the values its own have where a caller gives none."""
    yield from function.attribute_proto
    yield from _attributes(function.node)


def _attributes(nodes: "Iterable[NodeProto]") -> Iterator["AttributeProto"]:
    for node in nodes:
        yield from node.attribute


def _integer_bounds(graph: "GraphProto") -> dict[str, int]:
    """Inputs that select rows of a table (an embedding): their values must stay below its number of rows."""
    tables = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims and tensor.dims[0] > 0}
    source = {value.name: value.name for value in graph.input}
    bounds: dict[str, int] = {}
    for node in graph.node:
        # A damaged file may have a node with too few of either.
        given, made = (*node.input, "", ""), (*node.output, "")
        if node.op_type in ("Cast", "Identity") and given[0] in source:
            source[made[0]] = source[given[0]]
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        if node.op_type == "Gather" and axis == 0 and given[0] in tables and given[1] in source:
            name = source[given[1]]
            bounds[name] = min(tables[given[0]], bounds.get(name, tables[given[0]]))
    return bounds
