"""A converted model of a table: checked against its original, and kept."""

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mlserve.engines.engine import EngineSettings
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import EngineError, ModelFileError
from mlserve.model.artifact import MODEL_FILE
from mlserve.model.tensors import TensorSpec
from mlserve.optimize.importers.agreement import check_agreement
from mlserve.optimize.importers.onnx_model import known_specs, write_model
from mlserve.optimize.importers.request import Imported, ImportRequest
from mlserve.optimize.importers.shapes import Run, default_sizes, output_specs
from mlserve.optimize.importers.tabular import Ranges, ranges_of, read_wide, trials

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["Converted", "keep_converted", "open_converted"]


class Converted(msgspec.Struct, frozen=True):
    """An ONNX `model` and `original`, which it must answer like; `inputs` are what the original takes.

    `feature_names` are the columns of a matrix, `choices` the categories of an input, `ranges` where to try numbers.
    """

    model: "ModelProto"
    original: Run
    inputs: tuple[TensorSpec, ...]
    feature_names: Sequence[str] = ()
    choices: Mapping[str, Sequence[Any]] = {}
    ranges: Ranges = {}
    task: str = "unknown"
    labels: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def keep_converted(converted: Converted, request: ImportRequest, on_step: Callable[[str], None]) -> Imported:
    """Writes it to `request.out`, once it answered like the original to made-up rows and to those of `request.data`.

    Raises Refused when it does not, ModelFileError when onnxruntime cannot load it, DataFileError for unfit rows.
    """
    import onnx

    out = Path(request.out)
    rows = read_wide(Path(request.data), converted.inputs, converted.feature_names) if request.data else None
    on_step("comparing the answers with the original's")
    with tempfile.TemporaryDirectory(dir=out) as folder:
        path = Path(folder) / "converted.onnx"
        onnx.save(converted.model, path)
        with contextlib.closing(open_converted(path, request.source)) as engine:
            ranges = ranges_of(converted.model) | converted.ranges
            agreement = check_agreement(
                converted.original, engine, trials(converted.inputs, ranges, converted.choices, rows)
            )
            inputs = engine.inputs
            outputs = output_specs(engine.run, inputs, default_sizes(inputs))
        write_model(path, out)
    warning = (agreement.warning,) if agreement.warning else ()
    return Imported(
        inputs=known_specs(out / MODEL_FILE, inputs),
        outputs=outputs,
        task=converted.task,
        labels=converted.labels,
        assumed=(*converted.assumed, *warning),
        notes=(*converted.notes, str(agreement)),
    )


def open_converted(path: Path, source: str) -> OnnxEngine:
    """The converted file in `path`. Raises ModelFileError, which names `source`, when onnxruntime cannot load it."""
    try:
        return OnnxEngine(path, EngineSettings())
    except EngineError as error:
        reason = str(error).removeprefix(f"{path} cannot be loaded: ")
        raise ModelFileError(
            f"{source} was converted, but onnxruntime does not load what came of it: {reason}"
        ) from error
