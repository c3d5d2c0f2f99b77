"""What an ONNX file gains when it is imported: a recent opset, an open batch, the shapes of its inner values.

**Law:** each is kept only when the changed file answers as the original; else the file stays as it was, and the note
says why. The batch is opened when eight rows at once come out as eight rows one at a time: a `Reshape` that counts on
one row, or an operator that mixes rows, shows.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlserve.engines.engine import Engine, EngineSettings
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import EngineError, InvalidRequest
from mlserve.model.onnx_file import inspect_onnx
from mlserve.model.rows import Rows
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import Tensors, TensorSpec, batchable
from mlserve.optimize.evaluation.parity import largest_difference
from mlserve.optimize.importers.agreement import first_line
from mlserve.optimize.importers.interface import ROWS
from mlserve.optimize.importers.shapes import default_sizes, fix, words

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["OLDEST_OPSET", "infer_shapes", "open_batch", "upgrade_opset"]

OLDEST_OPSET = 13
"""The first in which all that our passes write exists: quantization by channel, among others."""

_OPSET = 17
_CONVERTED_BYTES = 1_500_000_000  # the converter takes a model as one message
_ROWS_COMPARED = 16
_BATCHES = (1, 3, 8)
# The same operators in the same order: only sums may come out otherwise, by a few bits.
_TOLERANCE = 1e-5


def upgrade_opset(path: Path, original: Engine, specs: Sequence[TensorSpec], rows: Rows | None) -> str:
    """Rewrites the file in `path` in a recent opset; returns what came of it, in words; empty when it was recent."""
    import onnx
    from onnx import version_converter

    file = inspect_onnx(path)
    if file.opset >= OLDEST_OPSET:
        return ""
    kept = f"opset {file.opset} was kept"
    if file.external_files or path.stat().st_size > _CONVERTED_BYTES:
        return f"{kept}: the file is too large to convert"
    try:
        converted = version_converter.convert_version(onnx.load(path), _OPSET)
    except Exception as error:  # the converter raises anything for an operator it has no rule for
        return f"{kept}: {first_line(error)}"
    trials = list(_same_trials(original, specs, rows))
    if not trials:
        return f"{kept}: made-up inputs do not run; give real rows with --data"
    fault = _replace(path, converted, lambda engine: _difference(engine, trials))
    return f"{kept}: {fault}" if fault else f"opset {file.opset} became {_OPSET}"


def open_batch(path: Path, original: Engine, rows: Rows | None) -> str:
    """Lets the file in `path` take any number of rows if it takes one; returns what came of it, in words.

    Empty when the rows are open already, or fixed at another number.
    """
    import onnx

    fixed = [spec for spec in (*original.inputs, *original.outputs) if not batchable([spec])]
    if not fixed:
        return ""
    if any(not spec.shape or spec.shape[0] != 1 for spec in (*original.inputs, *original.outputs)):
        return ""
    kept = "the batch stays fixed at 1"
    specs = [TensorSpec(spec.name, spec.dtype, (ROWS, *spec.shape[1:]), spec.below) for spec in original.inputs]
    if ROWS in words(original.inputs):
        return f"{kept}: another dimension is called {ROWS}"
    model = onnx.load(path, load_external_data=False)
    held = {tensor.name for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        if value.name not in held:
            value.type.tensor_type.shape.dim[0].dim_param = ROWS
    del model.graph.value_info[:]
    trials = list(_batch_trials(original, specs, rows))
    if not trials:
        return f"{kept}: made-up inputs do not run; give real rows with --data"
    fault = _replace(path, model, lambda engine: _difference(engine, trials))
    return f"{kept}: {fault}" if fault else "the batch was fixed at 1 and is open now: rows together answer as alone"


def infer_shapes(path: Path) -> None:
    """Writes the shapes of inner values into the file, as far as they follow; tools that optimize it look there."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    inferred = _symbolic_shapes(model) or onnx.shape_inference.infer_shapes(model, data_prop=True)
    _replace(path, inferred, lambda _: "")


def _symbolic_shapes(model: "ModelProto") -> "ModelProto | None":
    """With words for open dimensions, where onnxruntime's tool knows every operator."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it cannot infer
            found: ModelProto | None = _shape_inference().infer_shapes(copy, auto_merge=False)
    except Exception:  # it raises anything for what it does not know; the plain inference then does
        return None
    return found


def _shape_inference() -> Any:
    """The symbolic inference of onnxruntime, by its file: the package around it imports torch, for 1.5 seconds."""
    import onnxruntime

    path = Path(onnxruntime.__file__).parent / "tools" / "symbolic_shape_infer.py"
    spec = spec_from_file_location("onnxruntime_symbolic_shape_infer", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SymbolicShapeInference


def _replace(path: Path, model: "ModelProto", check: Callable[[Engine], str]) -> str:
    """Puts `model` in the place of the file in `path` if `check` finds no fault in it; returns the fault."""
    import onnx

    candidate = path.with_name(f"{path.stem}.candidate{path.suffix}")  # beside it: weights may lie in a file there
    onnx.save(model, candidate)
    try:
        inspect_onnx(candidate)
        with contextlib.closing(OnnxEngine(candidate, EngineSettings())) as engine:
            fault = check(engine)
        if not fault:
            candidate.replace(path)
        return fault
    except EngineError:
        return "onnxruntime does not load it"
    finally:
        candidate.unlink(missing_ok=True)


Trial = tuple[Tensors, Tensors]
"""Inputs, and what the original answers."""


def _same_trials(original: Engine, specs: Sequence[TensorSpec], rows: Rows | None) -> Iterator[Trial]:
    sizes = default_sizes(specs)
    for number, count in enumerate(_BATCHES if words(specs) else (1,)):
        varied = {word: count if axis == 0 else max(1, sizes[word] - number) for axis, word in enumerate(words(specs))}
        inputs = synthesize([fix(spec, varied) for spec in specs], count, np.random.default_rng(number))
        yield from _answered(original, inputs)
    if rows is not None:
        step = _ROWS_COMPARED if batchable(specs) else 1
        for start in range(0, min(len(rows), _ROWS_COMPARED), step):
            yield from _answered(original, rows.batch(start, min(start + step, len(rows))))


def _answered(original: Engine, inputs: Tensors) -> Iterator[Trial]:
    """Nothing when the original itself does not run on made-up values."""
    with contextlib.suppress(EngineError, InvalidRequest):
        yield inputs, original.run(inputs)


def _batch_trials(original: Engine, specs: Sequence[TensorSpec], rows: Rows | None) -> Iterator[Trial]:
    """Batches of rows, and the answers the original gives one by one."""
    sizes = default_sizes(specs)
    batches = []
    for count in _BATCHES:
        fixed = [fix(spec, sizes | {ROWS: count}) for spec in specs]
        batches.append(synthesize(fixed, count, np.random.default_rng(count)))
    if rows is not None:
        single = [rows.batch(position, position + 1) for position in range(min(len(rows), _ROWS_COMPARED))]
        if len({array.shape for row in single for array in row.values()}) <= len(specs):
            batches.append(_together(single))
    for batch in batches:
        count = len(next(iter(batch.values())))
        with contextlib.suppress(EngineError, InvalidRequest):
            alone = [
                original.run({name: array[row : row + 1] for name, array in batch.items()}) for row in range(count)
            ]
            yield batch, _together(alone)


def _together(rows: Sequence[Tensors]) -> Tensors:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _difference(engine: Engine, trials: Sequence[Trial]) -> str:
    """Why `engine` does not answer as the original did; empty when it does."""
    for inputs, expected in trials:
        count = len(next(iter(inputs.values())))
        try:
            difference = largest_difference(expected, engine.run(inputs))
        except (EngineError, InvalidRequest):
            return f"it does not run with {count} rows: something inside counts on another number"
        if difference.relative > _TOLERANCE:
            return difference.reason or (
                f"with {count} rows output '{difference.output}' differs by {difference.relative:.2g} of its size"
            )
    return ""
