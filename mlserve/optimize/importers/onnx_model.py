"""ONNX files as an artifact keeps them, and the import of a model that is one already."""

import contextlib
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

from mlserve.engines.engine import EngineSettings
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import EngineError, ModelFileError
from mlserve.model.artifact import MODEL_FILE
from mlserve.model.onnx_file import every_graph, inspect_onnx
from mlserve.model.private_copy import private_onnx
from mlserve.model.rows import TOKENIZER_FILE, read_rows
from mlserve.model.tensors import Dims, TensorSpec
from mlserve.optimize.importers.onnx_upgrade import infer_shapes, open_batch, upgrade_opset
from mlserve.optimize.importers.request import Imported
from mlserve.optimize.importers.shapes import Unfit, default_sizes, output_specs

__all__ = ["INLINE_LIMIT_BYTES", "import_onnx", "keep_outputs", "known_specs", "name_values", "write_model"]

# A protobuf message cannot exceed 2 GiB; weights beyond this go into one file beside it.
INLINE_LIMIT_BYTES = 1_500_000_000


def import_onnx(source: Path, out: Path, data: Path | None, on_step: Callable[[str], None]) -> Imported:
    """Writes `source` to `out/model.onnx` and says what it takes and gives.

    An old opset is made a recent one, a batch that is fixed at one row is opened, and inner shapes are written down,
    each only where the answers stay the same. Raises ModelFileError when it is no ONNX model or refers to data outside
    its folder, EngineError when onnxruntime cannot load it, DataFileError when the rows in `data` do not fit.
    """
    with private_onnx(source) as (copy, file):
        return _import_copy(source, copy, file.opset, out, data, on_step)


def _import_copy(
    source: Path, copy: Path, opset: int, out: Path, data: Path | None, on_step: Callable[[str], None]
) -> Imported:
    original = OnnxEngine(copy, EngineSettings())
    if not original.inputs or not original.outputs:
        raise ModelFileError(
            f"{source} has {len(original.inputs)} inputs and {len(original.outputs)} outputs; a model that is served "
            "takes and gives something"
        )
    write_model(copy, out, source.stem)
    path = out / MODEL_FILE
    notes = [f"opset {opset}"]
    if (source.parent / TOKENIZER_FILE).is_file():
        shutil.copyfile(source.parent / TOKENIZER_FILE, out / TOKENIZER_FILE)
        notes.append(f"{TOKENIZER_FILE} beside it was kept")
    specs = known_specs(copy, original.inputs)
    rows = read_rows(data, specs, out / TOKENIZER_FILE) if data else None
    with contextlib.closing(original):
        on_step("trying a newer opset and an open batch")
        notes += [upgrade_opset(path, original, specs, rows), open_batch(path, original, rows)]
    infer_shapes(path)
    with contextlib.closing(OnnxEngine(path, EngineSettings())) as engine:
        inputs = known_specs(path, engine.inputs)
        outputs = engine.outputs
        try:
            outputs = output_specs(engine.run, inputs, default_sizes(inputs))
        except Unfit as error:
            notes.append(f"made-up inputs do not run ({error}); give real rows with --data")
    return Imported(inputs=inputs, outputs=outputs, notes=tuple(note for note in notes if note))


def known_specs(path: Path, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """`specs` with what the graph's weights imply: upper bounds of integer inputs, and an image's channels."""
    bounds, channels = inspect_onnx(path).bounds, _channels(path)
    return tuple(
        TensorSpec(spec.name, spec.dtype, _with_channels(spec.shape, channels.get(spec.name)), bounds.get(spec.name))
        for spec in specs
    )


def _channels(path: Path) -> dict[str, int]:
    """How many channels a convolution takes of each input that goes straight into one."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    kernels = {tensor.name: tensor.dims for tensor in graph.initializer}
    inputs = {value.name for value in graph.input}
    channels: dict[str, int] = {}
    for node in graph.node:
        if node.op_type == "Conv" and node.input[0] in inputs and node.input[1] in kernels:
            groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
            channels[node.input[0]] = kernels[node.input[1]][1] * groups
    return channels


def _with_channels(shape: Dims, channels: int | None) -> Dims:
    """An image's shape [rows, channels, ...]; exporters may leave open what the first kernel fixes."""
    return shape if channels is None or len(shape) < 3 else (shape[0], channels, *shape[2:])


def keep_outputs(path: Path, names: list[str]) -> None:
    """Drops every other output of the model in `path`, and with it the work only they needed."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    kept = [output for output in model.graph.output if output.name in names]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, path)


def name_values(path: Path, names: dict[str, str]) -> None:
    """Renames values of the model in `path`, old name -> new; a value inside that has a new name already makes way."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    graphs = list(every_graph(model))
    nodes = [node for graph in graphs for node in graph.node]
    used = {name for node in nodes for name in (*node.input, *node.output)}
    used |= {tensor.name for graph in graphs for tensor in graph.initializer}
    renamed = {name: _unused(name, used) for name in set(names.values()) & used} | names
    for node in nodes:
        for values in (node.input, node.output):
            values[:] = [renamed.get(name, name) for name in values]
    for graph in graphs:
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            value.name = renamed.get(value.name, value.name)
    onnx.save(model, path)


def _unused(name: str, used: set[str]) -> str:
    return next(candidate for number in itertools.count(1) if (candidate := f"{name}_{number}") not in used)


def write_model(source: Path, out: Path, name: str = "") -> None:
    """Writes `source` as `out/model.onnx`, its weights inside or, beyond what a message holds, in one file beside it.

    `source` must have passed `inspect_onnx`. A graph without a name is called `name`, or as the file.
    """
    import onnx

    model = onnx.load(source)
    size_bytes = source.stat().st_size + sum(
        (source.parent / name).stat().st_size for name in inspect_onnx(source).external_files
    )
    if not model.graph.name:
        model.graph.name = name or source.stem
    if size_bytes < INLINE_LIMIT_BYTES:
        onnx.save(model, out / MODEL_FILE)
    else:
        onnx.save(model, out / MODEL_FILE, save_as_external_data=True, location=f"{MODEL_FILE}.data")
    try:
        onnx.checker.check_model(str(out / MODEL_FILE))
    except onnx.checker.ValidationError as error:
        raise EngineError(f"{source} is no valid ONNX model: {str(error).strip().splitlines()[0]}") from error
