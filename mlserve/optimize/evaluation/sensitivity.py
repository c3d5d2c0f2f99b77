"""Which layers of a model suffer most from int8."""

import contextlib
import glob
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np

from mlserve.engines.engine import EngineSettings
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import Refused
from mlserve.model.artifact import MODEL_FILE, Artifact
from mlserve.model.onnx_file import inspect_onnx
from mlserve.model.rows import Rows
from mlserve.model.tensors import Array, Tensors
from mlserve.optimize.evaluation.fake_quantization import add_switches
from mlserve.optimize.importers.onnx_model import INLINE_LIMIT_BYTES

__all__ = ["Sensitivity", "rank_layers"]

_ROWS = 16
_LONGEST_S = 60.0


class Sensitivity(msgspec.Struct, frozen=True):
    """How much the model's output changes, relative to its size, when only operator `node` computes in int8.

    Noise over signal: the inverse of the ratio that onnxruntime's quantization debugger gives (`qdq_loss_debug`).
    """

    node: str
    operator: str
    error: float

    @property
    def pattern(self) -> str:
        """What a pass's `exclude` takes for exactly this operator."""
        return glob.escape(self.node)


def rank_layers(
    artifact: Artifact,
    rows: Rows,
    *,
    threads: int = 1,
    on_step: Callable[[str], None] = lambda _: None,
    operators: tuple[str, ...] = (),
    output: str = "",
) -> list[Sensitivity]:
    """The layers of a float32 ONNX `artifact`, the most sensitive first.

    Each layer in turn, its weights are rounded to int8 for each output channel and its activations to 8 bits over their
    range, and the model is run on up to 16 of `rows`, fewer where that would take more than a minute. `operators` are
    the types that a pass quantizes, by default all with weights; `output` is the one judged, by default the first of
    floats. Raises Refused for an artifact that is no ONNX file.
    """
    import onnx

    if artifact.manifest.format != "onnx":
        raise Refused(f"layers are ranked in an ONNX file, and {artifact.directory.name} is {artifact.manifest.format}")
    model = onnx.load(artifact.model_path)
    layers = add_switches(model, operators)
    if not layers:
        return []
    with TemporaryDirectory(prefix="mlserve-") as folder:
        path = Path(folder) / MODEL_FILE
        onnx.save(model, path, save_as_external_data=artifact.size_bytes > INLINE_LIMIT_BYTES, location="model.data")
        inspect_onnx(path)
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        with contextlib.closing(OnnxEngine(path, EngineSettings(threads=threads))) as engine:
            trial = _Trial(engine, _few_rows(engine, rows, len(layers)), output or _first_of_floats(engine))
            ranked = []
            for number, layer in enumerate(layers, 1):
                on_step(f"sensitivity of layer {number} of {len(layers)}")
                error = trial.error(layer.as_int8(weights, path.parent))
                ranked.append(Sensitivity(layer.node, layer.operator, error))
    return sorted(ranked, key=lambda layer: layer.error, reverse=True)


class _Trial:
    """The same rows again and again, and how far the answers are from those of the model as it is."""

    def __init__(self, engine: OnnxEngine, inputs: Tensors, output: str) -> None:
        self._engine, self._inputs, self._output = engine, inputs, output
        self._expected = engine.run(inputs)[output]

    def error(self, replaced: Tensors) -> float:
        return _relative_error(self._engine.run(self._inputs | replaced)[self._output], self._expected)


def _first_of_floats(engine: OnnxEngine) -> str:
    return next((spec for spec in engine.outputs if spec.dtype.startswith("float")), engine.outputs[0]).name


def _few_rows(engine: OnnxEngine, rows: Rows, layers: int) -> Tensors:
    """Rows from all over the data, as many as the time allows."""
    first = engine.inputs[0].shape
    fixed = first[0] if first and isinstance(first[0], int) else None
    count = fixed or min(_ROWS, len(rows))
    inputs = _spread(rows, count)
    started_s = time.perf_counter()
    engine.run(inputs)
    expected_s = (time.perf_counter() - started_s) * layers
    if fixed or expected_s <= _LONGEST_S:
        return inputs
    return _spread(rows, max(1, int(count * _LONGEST_S / expected_s)))


def _spread(rows: Rows, count: int) -> Tensors:
    return rows.take(np.linspace(0, len(rows) - 1, count).round().astype(int).tolist()).batch(0, count)


def _relative_error(found: Array, expected: Array) -> float:
    """|found - expected| / |expected| of finite numbers; the share of values that differ for labels and texts."""
    if expected.dtype.kind != "f":
        return float(np.mean(found != expected))
    finite = np.isfinite(expected)
    one, other = found[finite].astype(np.float64), expected[finite].astype(np.float64)
    if not np.isfinite(one).all():
        return float("inf")
    size = float(np.linalg.norm(other))
    return float(np.linalg.norm(one - other)) / (size or 1.0)
