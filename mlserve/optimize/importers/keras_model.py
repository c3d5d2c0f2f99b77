"""Keras files and TensorFlow SavedModels to ONNX, by tf2onnx."""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mlserve.errors import ModelFileError
from mlserve.model.rows import Rows, read_rows
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import DATATYPE_OF, Tensors, TensorSpec
from mlserve.optimize.importers.agreement import check_agreement, first_line
from mlserve.optimize.importers.converted import open_converted
from mlserve.optimize.importers.extras import need
from mlserve.optimize.importers.interface import ROWS, name_outputs, open_dims
from mlserve.optimize.importers.onnx_model import known_specs, write_model
from mlserve.optimize.importers.request import Imported, ImportRequest
from mlserve.optimize.importers.shapes import default_sizes, fix, output_specs, words

__all__ = ["import_keras"]

_OPSET = 18
_SIGNATURE = "serving_default"
_IMAGE_DIMS = ("height", "width")
_ROWS_COMPARED = 128
_INDEX_ARITHMETIC = ("Add", "Cast", "Identity", "Mul", "Sub", "Where")


class _Original(msgspec.Struct, frozen=True):
    """A function of TensorFlow tensors by name; `call` gives its outputs by name."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    call: Callable[[dict[str, Any]], dict[str, Any]]

    def run(self, inputs: Tensors) -> Tensors:
        import tensorflow

        answers = self.call({spec.name: tensorflow.constant(inputs[spec.name]) for spec in self.inputs})
        return {name: np.asarray(answers[name]) for name in self.outputs}


def import_keras(request: ImportRequest, on_step: Callable[[str], None]) -> Imported:
    """Writes the model to `request.out` and says what it takes and gives.

    Raises ModelFileError for what cannot be loaded or converted, and Refused when the ONNX file answers otherwise.
    """
    path, out = Path(request.source), Path(request.out)
    on_step("loading TensorFlow")
    need("keras", ["tensorflow", "keras", "tf2onnx"], path)
    on_step("loading the model")
    original = _load_saved(path) if request.kind == "savedmodel" else _load_keras(path, trust=request.trust_pickle)
    rows = read_rows(Path(request.data), original.inputs) if request.data else None
    on_step("converting by tf2onnx")
    with tempfile.TemporaryDirectory(dir=out) as folder:
        converted = Path(folder) / "converted.onnx"
        _convert(original, converted, path)
        with contextlib.closing(open_converted(converted, str(path))) as engine:
            on_step("comparing the answers with the original's")
            inputs = _bounded(converted, original.inputs)
            agreement = check_agreement(original.run, engine, _trials(inputs, rows))
            outputs = output_specs(engine.run, inputs, default_sizes(inputs))
        write_model(converted, out)
    return Imported(inputs=inputs, outputs=outputs, notes=(f"tf2onnx, opset {_OPSET}", str(agreement)))


def _load_keras(path: Path, *, trust: bool) -> _Original:
    import keras

    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=not trust)
    except Exception as error:  # Keras raises anything for a damaged file
        reason = first_line(error)
        if "safe_mode" in str(error) or "Lambda" in str(error) or "unsafe" in str(error):
            raise ModelFileError(
                f"{path} has a layer that is code of its own ({reason}); if you trust who made it, pass --trust-pickle"
            ) from error
        raise ModelFileError(
            f"{path} cannot be loaded by Keras: {reason}; if layers of your own are in it, write it as a SavedModel "
            "folder with model.export(folder)"
        ) from error
    if not isinstance(getattr(model, "inputs", None), list) or not model.inputs:
        raise ModelFileError(
            f"{path} does not say what it takes; write it as a SavedModel folder: model.export(folder)"
        )
    inputs = tuple(_spec(tensor.name, tensor.dtype, tuple(tensor.shape), path) for tensor in model.inputs)
    outputs = tuple(getattr(model, "output_names", ())) or ("output",)
    if len(outputs) != len(model.outputs) or len(outputs) == 1:
        outputs = _numbered(len(model.outputs))

    def call(tensors: dict[str, Any]) -> dict[str, Any]:
        values: Any = [tensors[spec.name] for spec in inputs]
        # A functional model may take a list or a dictionary, a sequential one takes its tensor alone.
        form = getattr(model, "_inputs_struct", None)
        packed = values[0] if form is None else keras.tree.pack_sequence_as(form, values)
        answer = model(packed, training=False)
        return dict(zip(outputs, keras.tree.flatten(answer), strict=True))

    return _Original(inputs, outputs, call)


def _load_saved(path: Path) -> _Original:
    import tensorflow

    try:
        loaded = tensorflow.saved_model.load(str(path))
    except Exception as error:  # TensorFlow raises anything for a damaged folder
        raise ModelFileError(f"{path} cannot be loaded by TensorFlow: {first_line(error)}") from error
    if not loaded.signatures:
        raise ModelFileError(
            f"{path} has no signature, so it says not what it takes; write it with model.export(folder)"
        )
    name = _SIGNATURE if _SIGNATURE in loaded.signatures else min(loaded.signatures)
    function = loaded.signatures[name]
    inputs = tuple(
        _spec(key, tensor.dtype.name, tuple(tensor.shape.as_list()) if tensor.shape.rank is not None else None, path)
        for key, tensor in sorted(function.structured_input_signature[1].items())
    )
    outputs = tuple(sorted(function.structured_outputs))

    def call(tensors: dict[str, Any]) -> dict[str, Any]:
        _ = loaded  # the function holds its variables weakly
        return dict(function(**tensors))

    return _Original(inputs, outputs, call)


def _numbered(count: int) -> tuple[str, ...]:
    return ("output",) if count == 1 else tuple(f"output_{number}" for number in range(count))


def _spec(name: str, dtype: str, shape: Sequence[int | None] | None, path: Path) -> TensorSpec:
    kind = {"string": "object"}.get(dtype, dtype)
    if shape is None or kind not in DATATYPE_OF:
        raise ModelFileError(f"{path}: input '{name}' is {dtype} of shape {shape}, which cannot be served")
    image = len(shape) == 4
    dims: list[int | str] = []
    for axis, size in enumerate(shape):
        if size is not None:
            dims.append(size)
        elif axis == 0:
            dims.append(ROWS)
        else:
            dims.append(_IMAGE_DIMS[axis - 1] if image and axis < 3 else "sequence" if axis == 1 else f"{name}_{axis}")
    return TensorSpec(name, kind, tuple(dims))


def _convert(original: _Original, out: Path, path: Path) -> None:
    import onnx
    import tensorflow
    import tf2onnx

    signature = [
        tensorflow.TensorSpec(
            [dim if isinstance(dim, int) else None for dim in spec.shape],
            "string" if spec.dtype == "object" else spec.dtype,
            name=spec.name,
        )
        for spec in original.inputs
    ]
    names = [spec.name for spec in original.inputs]

    def flat(*tensors: Any) -> dict[str, Any]:
        answers = original.call(dict(zip(names, tensors, strict=True)))
        return {name: answers[name] for name in original.outputs}

    try:
        function = tensorflow.function(flat, input_signature=signature, autograph=False)
        model, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=_OPSET)
    except Exception as error:  # a converter fails in as many ways as there are models
        raise ModelFileError(f"{path} cannot be converted by tf2onnx: {first_line(error)}") from error
    name_outputs(model, {name: name for name in original.outputs})
    open_dims(model, {spec.name: spec.shape for spec in original.inputs})
    onnx.save(model, out)


def _bounded(path: Path, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """`specs` with the upper bounds of integers that select rows of a table.

    Keras first lets negative ones count from the end, by arithmetic that `known_specs` does not look through.
    """
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    tables = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    bounds: dict[str, int] = {}
    for spec in specs:
        reached = {spec.name} if "int" in spec.dtype else set()
        for node in graph.node:
            if node.op_type in _INDEX_ARITHMETIC and reached & set(node.input):
                reached |= set(node.output)
            elif node.op_type == "Gather" and node.input[1] in reached and node.input[0] in tables:
                bounds[spec.name] = min(tables[node.input[0]], bounds.get(spec.name, tables[node.input[0]]))
    known = known_specs(path, tuple(specs))
    return tuple(msgspec.structs.replace(spec, below=spec.below or bounds.get(spec.name)) for spec in known)


def _trials(specs: Sequence[TensorSpec], rows: Rows | None) -> Any:
    """Made-up inputs of several sizes, then the user's rows."""
    rng, sizes = np.random.default_rng(2), default_sizes(specs)
    for count in (3, 1, 8):
        # Other dimensions shrink as the rows grow: a size baked into the graph must show.
        varied = {word: count if word == ROWS else max(1, sizes[word] - count // 2) for word in words(specs)}
        yield synthesize([fix(spec, varied) for spec in specs], count, rng)
    if rows is not None:
        batched = bool(words(specs))
        last = min(len(rows), _ROWS_COMPARED)
        step = 32 if batched else 1
        for start in range(0, last, step):
            yield rows.batch(start, min(start + step, last))
