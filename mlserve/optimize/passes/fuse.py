"""Fusion: groups of operators replaced by one that onnxruntime has a kernel for."""

import contextlib
from pathlib import Path

import msgspec
import numpy as np

from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import EngineError, InvalidRequest
from mlserve.model.artifact import MODEL_FILE, Artifact
from mlserve.model.synthesis import synthesize
from mlserve.optimize.disk import no_space_left
from mlserve.optimize.evaluation.parity import largest_difference
from mlserve.optimize.importers.onnx_model import INLINE_LIMIT_BYTES
from mlserve.optimize.passes.step import ALONE, Resources, copy_companions, copy_model, quiet, stepped

__all__ = ["Fuse"]

_FUSED_OPERATORS = (
    "Attention",
    "BiasGelu",
    "EmbedLayerNormalization",
    "FastGelu",
    "Gelu",
    "LayerNormalization",
    "MultiHeadAttention",
    "SkipLayerNormalization",
)
_COMPARED_ROWS = 4


class Fuse(msgspec.Struct, frozen=True, tag_field="pass", tag="fuse", forbid_unknown_fields=True):
    """onnxruntime's transformer fusions (attention, normalization, GELU), found by their pattern in the graph.

    A model without such patterns, or one whose answers a fusion would change, comes out as it went in.
    """

    def __call__(self, source: Artifact, out: Path, resources: Resources = ALONE) -> Artifact:
        try:
            notes = _fuse(source, out / MODEL_FILE)
            fault = _fault(source, out / MODEL_FILE) if notes else "nothing to fuse"
        except Exception as error:  # the optimizer fails in as many ways as there are graphs
            if no_space_left(error):
                raise
            fault = f"not fused: {type(error).__name__}: {error}"
        if fault:
            for path in out.iterdir():
                path.unlink()
            copy_model(source, out)
            notes = (fault,)
        copy_companions(source, out)
        return stepped(source, out, self, notes)


def _fuse(source: Artifact, target: Path) -> tuple[str, ...]:
    """Writes the fused model to `target` and says what was fused; empty, and nothing written, when nothing was."""
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    options.enable_gelu_approximation = False  # it would change the answers
    with quiet():
        fused = optimize_model(str(source.model_path), "bert", opt_level=0, optimization_options=options)
        counts = fused.get_fused_operator_statistics()
        notes = tuple(f"{counts[name]} {name}" for name in _FUSED_OPERATORS if counts.get(name))
        if notes:
            fused.save_model_to_file(str(target), use_external_data_format=source.size_bytes > INLINE_LIMIT_BYTES)
    return notes


def _fault(source: Artifact, target: Path) -> str:
    """Why the fused model must not be used, on made-up rows; "" when it answers like the source."""
    inputs = synthesize(source.manifest.inputs, _COMPARED_ROWS, np.random.default_rng(3))
    try:
        with (
            contextlib.closing(OnnxEngine(source.model_path)) as before,
            contextlib.closing(OnnxEngine(target)) as after,
        ):
            difference = largest_difference(before.run(inputs), after.run(inputs))
    except (EngineError, InvalidRequest) as error:
        return f"not fused: the result could not be compared ({error})"
    return "" if difference.acceptable else f"not fused: it would change the answers ({difference})"
