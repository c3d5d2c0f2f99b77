"""The inputs of a PyTorch model: as the user said, as its file says, or as its first layers suggest."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from mlserve.errors import DataFileError, UnknownInputError, UsageError
from mlserve.model.rows import LABEL_NAMES, as_matrix, read_columns
from mlserve.model.tensors import DATATYPE_OF, Dims, TensorSpec
from mlserve.optimize.importers.original import TorchOriginal
from mlserve.optimize.importers.request import ImportRequest
from mlserve.optimize.importers.shapes import Sizes, Unfit, default_sizes, fix_rigid_dims, rows_mix
from mlserve.optimize.importers.traced import traced_inputs
from mlserve.optimize.users_code import call_named

__all__ = ["Inputs", "find_inputs"]

_IMAGE_SIDES = (224, 32, 28, 64, 8, 96, 128, 256, 299, 384, 512, 16)
_LENGTHS = (16, 8, 32, 64, 128, 256, 512, 10, 20, 50, 100)
_LAST_TRY = 320
_LAYERS_LOOKED_AT = 6


class Inputs(msgspec.Struct, frozen=True):
    """Specs that the model was run with, sizes for their dynamic dimensions, and what of it was assumed."""

    specs: tuple[TensorSpec, ...]
    sizes: Sizes
    assumed: tuple[str, ...] = ()


def find_inputs(original: TorchOriginal, request: ImportRequest) -> Inputs:
    """Inputs that `original` really takes; it was run with them.

    What the user stated comes first, then what the file holds, then guesses. Raises UnknownInputError naming the flags
    when nothing fits, and UsageError or DataFileError when what the user stated does not.
    """
    if request.inputs:
        return _stated(original, request.inputs)
    if request.example:
        return _accept(original, _from_example(original, request.example), f"--example {request.example}")
    if original.program is not None:
        return _from_program(original)
    if request.data and not Path(request.data).is_dir():  # images come in any size, and fit what is found here
        return _from_data(original, Path(request.data))
    if request.kind == "torchscript" and (traced := traced_inputs(Path(request.source))):
        shapes = [(item.dtype, item.shape) for item in traced]
        return _accept(original, _of_shapes(original, shapes), "the shapes it was traced with")
    return _guess(original)


class _Candidate(msgspec.Struct, frozen=True):
    specs: tuple[TensorSpec, ...]
    sizes: Sizes
    why: str = ""


def _stated(original: TorchOriginal, specs: Sequence[TensorSpec]) -> Inputs:
    """The user's word: run as it stands, nothing changed."""
    by_name = {spec.name: spec for spec in specs}
    if len(by_name) < len(specs):
        raise UsageError("--input names one input twice; every input has a name of its own")
    ordered = tuple(by_name[name] for name in original.bind(list(by_name)))
    bounded = tuple(_bounded(original, spec) for spec in ordered)
    sizes = default_sizes(bounded)
    try:
        settled = fix_rigid_dims(original.run, bounded, sizes)
    except Unfit as error:
        raise UsageError(f"the model does not run with --input {' --input '.join(map(str, specs))}: {error}") from error
    rigid = [
        str(dim)
        for before, after in zip(bounded, settled, strict=True)
        for dim, now in zip(before.shape, after.shape, strict=True)
        if dim != now
    ]
    if rigid:
        raise UsageError(
            f"--input: {', '.join(dict.fromkeys(rigid))} cannot stay open: with another size the model does not run, "
            f"or not every output has a row for each; it runs with --input {' --input '.join(map(str, settled))}"
        )
    return Inputs(bounded, sizes)


def _accept(original: TorchOriginal, candidate: _Candidate, source: str) -> Inputs:
    """A candidate that must fit, with its rigid dimensions fixed."""
    original.bind([spec.name for spec in candidate.specs])
    try:
        specs = fix_rigid_dims(original.run, candidate.specs, candidate.sizes)
    except Unfit as error:
        raise UnknownInputError(
            f"the model does not run on inputs like {source} ({', '.join(map(str, candidate.specs))}): {error}. "
            "State them with --input name:dtype:dims"
        ) from error
    return Inputs(specs, candidate.sizes)


def _from_example(original: TorchOriginal, example: str) -> _Candidate:
    value = call_named(example, "--example")
    if isinstance(value, torch.Tensor):
        value = (value,)
    if not isinstance(value, dict):
        names = [*original.parameters, *(f"input_{position}" for position in range(len(value)))]
        value = dict(zip(names, value, strict=False))
    for name, tensor in value.items():
        if not isinstance(tensor, torch.Tensor):
            raise UsageError(f"--example {example}: input '{name}' is a {type(tensor).__name__}, not a tensor")
    return _of_named_shapes(
        original, {name: (_dtype(tensor.dtype), tuple(tensor.shape)) for name, tensor in value.items()}
    )


def _from_program(original: TorchOriginal) -> Inputs:
    """A torch.export program knows its inputs, and which of their dimensions were left open."""
    names = set(original.parameters)
    specs: list[TensorSpec] = []
    sizes: Sizes = {}
    for node in original.program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            value = node.meta["val"]
            if not isinstance(value, torch.Tensor):
                raise UnknownInputError(f"input '{node.name}' of the program is no tensor; export it with tensors only")
            dims: list[int | str] = []
            for axis, dim in enumerate(value.shape):
                word = "batch" if axis == 0 else str(dim)
                dims.append(dim if isinstance(dim, int) else word)
            specs.append(_bounded(original, TensorSpec(node.name, _dtype(value.dtype), tuple(dims))))
    original.bind([spec.name for spec in specs])
    sizes = default_sizes(specs)
    assumed: tuple[str, ...] = ()
    if not any(isinstance(dim, str) for spec in specs for dim in spec.shape):
        assumed = ("the program was exported for these shapes only; torch.export with dynamic_shapes opens the batch",)
    return Inputs(tuple(specs), sizes, assumed)


def _from_data(original: TorchOriginal, path: Path) -> Inputs:
    columns = {name: array for name, array in read_columns(path).items() if name not in LABEL_NAMES}
    wanted = [name for name in original.parameters if name in columns]
    if len(wanted) >= max(original.required, 1):
        arrays = {name: columns[name] for name in wanted}
    else:
        matrix = as_matrix(columns) if len(columns) > 1 else next(iter(columns.values()), None)
        if matrix is None or matrix.dtype == object:
            raise DataFileError(
                f"{path} has the columns {', '.join(columns)}; the model takes {', '.join(original.parameters)}"
            )
        arrays = {(original.parameters or ["input"])[0]: matrix}
    faults: list[str] = []
    for dtypes in ("as they are", "float32", "int64"):
        shapes = {
            name: (array.dtype.name if dtypes == "as they are" else dtypes, array.shape)
            for name, array in arrays.items()
        }
        try:
            return _accept(original, _of_named_shapes(original, shapes), f"the rows of {path.name}")
        except UnknownInputError as error:
            faults.append(str(error))
    numbers = any(array.dtype.kind == "f" for array in arrays.values())
    raise UnknownInputError(faults[1] if numbers else faults[0])  # files keep float64, models seldom take it


def _of_shapes(original: TorchOriginal, shapes: Sequence[tuple[str, tuple[int, ...]]]) -> _Candidate:
    names = [*original.parameters, *(f"input_{position}" for position in range(len(shapes)))]
    return _of_named_shapes(original, dict(zip(names, shapes, strict=False)))


def _of_named_shapes(original: TorchOriginal, shapes: dict[str, tuple[str, tuple[int, ...]]]) -> _Candidate:
    """Specs of these shapes with the rows open, and the length too where the values are token numbers."""
    specs: list[TensorSpec] = []
    sizes: Sizes = {}
    for name, (kept, shape) in shapes.items():
        dtype = "float32" if original.widened_from and kept == original.widened_from else kept
        dims: list[int | str] = list(shape)
        if dims:
            dims[0] = "batch"
            sizes["batch"] = 3
        if len(dims) == 2 and dtype in ("int64", "int32"):
            word = f"sequence_{shape[1]}" if sizes.get("sequence", shape[1]) != shape[1] else "sequence"
            dims[1], sizes[word] = word, shape[1]
        specs.append(_bounded(original, TensorSpec(name, dtype, tuple(dims))))
    return _Candidate(tuple(specs), sizes)


def _guess(original: TorchOriginal) -> Inputs:
    """The first candidate that runs with rows that do not mix; failing that, the first that runs at all."""
    mixing: Inputs | None = None
    rowless = ""
    for candidate in _candidates(original):
        original.bind([spec.name for spec in candidate.specs])
        try:
            specs = fix_rigid_dims(original.run, candidate.specs, candidate.sizes)
        except Unfit:
            continue
        found = Inputs(specs, candidate.sizes, (f"{', '.join(map(str, specs))}: {candidate.why}",))
        rows = specs[0].shape[0]
        if isinstance(rows, int) and rows > 1:
            rowless = rowless or (
                f"It runs on {', '.join(map(str, specs))}, but only with so many rows, or not every output has a row "
                "for each of them. "
            )
            continue
        if rows == 1 or not rows_mix(original.run, specs, candidate.sizes):
            return found
        mixing = mixing or found
    if mixing is None:
        raise UnknownInputError(
            f"what the model takes cannot be told from its file. {rowless}State it with --input name:dtype:dims for "
            f"each of {', '.join(original.parameters) or 'its inputs'} (numbers are fixed, words are dynamic: "
            "--input tokens:int64:batch,20), or with --example module:function, or with --data FILE"
        )
    original.bind([spec.name for spec in mixing.specs])
    return mixing


def _candidates(original: TorchOriginal) -> Iterator[_Candidate]:
    """Inputs the first layers suggest, likeliest first. Layers come in the order they were made."""
    names = original.parameters[: max(original.required, 1)] or ["input"]
    if any("mask" not in name and "type" not in name for name in names[1:]):
        return
    layers = [layer for layer in _layers(original.module) if layer.shape][:_LAYERS_LOOKED_AT]
    for thorough in (False, True):
        for layer in layers:
            for dims, dtype, sizes in _shapes_for(layer, thorough=thorough):
                specs = [_bounded(original, TensorSpec(names[0], dtype, dims))]
                specs += [TensorSpec(name, "int64", dims) for name in names[1:]]
                why = f"the layer '{layer.name}' ({layer.kind}) takes such values; --input states others"
                yield _Candidate(tuple(specs), {"batch": 3} | sizes, why)


class _Layer(msgspec.Struct, frozen=True):
    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str


def _layers(module: Any) -> Iterator[_Layer]:
    for name, layer in module.named_modules():
        parameters = dict(layer.named_parameters(recurse=False))
        weight = parameters.get("weight", parameters.get("weight_ih_l0", parameters.get("in_proj_weight")))
        kind = getattr(layer, "original_name", type(layer).__name__)
        if weight is not None:
            groups = getattr(layer, "groups", 1)
            shape = tuple(weight.shape)
            if kind.startswith("Conv") and isinstance(groups, int):
                shape = (shape[0], shape[1] * groups, *shape[2:])
            yield _Layer(name or "model", kind, shape, str(weight.dtype).removeprefix("torch."))


def _shapes_for(layer: _Layer, *, thorough: bool) -> Iterator[tuple[Dims, str, Sizes]]:
    """Input shapes that would fit `layer`; `thorough`: every size instead of the usual ones."""
    shape = layer.shape
    lengths = range(1, _LAST_TRY) if thorough else _LENGTHS
    if len(shape) == 4:
        for side in range(4, _LAST_TRY) if thorough else _IMAGE_SIDES:
            yield ("batch", shape[1], side, side), layer.dtype, {}
    elif layer.kind.startswith("Embedding"):
        for length in lengths:
            yield ("batch", "sequence"), "int64", {"sequence": length}
    elif len(shape) == 3:
        for length in lengths:
            yield ("batch", shape[1], "length"), layer.dtype, {"length": length}
    elif layer.kind == "BatchNorm2d":
        for side in _IMAGE_SIDES:
            yield ("batch", shape[0], side, side), layer.dtype, {}
    elif not thorough:
        yield ("batch", shape[-1]), layer.dtype, {}
        yield ("batch", "sequence", shape[-1]), layer.dtype, {"sequence": 16}


def _bounded(original: TorchOriginal, spec: TensorSpec) -> TensorSpec:
    """`spec`, integers held below the size of the model's first table, so that made-up tokens exist in it."""
    if not spec.dtype.startswith("int") or spec.below is not None:
        return spec
    if original.program is not None:
        tables = list(_program_tables(original.program))
    else:
        tables = [layer.shape[0] for layer in _layers(original.module) if layer.kind.startswith("Embedding")]
    return TensorSpec(spec.name, spec.dtype, spec.shape, tables[0] if tables else None)


def _program_tables(program: Any) -> Iterator[int]:
    """How many rows each table has that a torch.export program looks values up in."""
    for node in program.graph.nodes:
        if node.target == torch.ops.aten.embedding.default:
            yield int(node.args[0].meta["val"].shape[0])


def _dtype(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DATATYPE_OF:
        raise UnknownInputError(f"the model takes {name}, which no serving protocol carries; export it with float32")
    return name
