"""Fusion: groups of operators replaced by one that onnxruntime has a kernel for."""

from pathlib import Path

import msgspec

from mlserve.model.artifact import MODEL_FILE, Artifact
from mlserve.optimize.passes.step import copy_companions, stepped

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


class Fuse(msgspec.Struct, frozen=True, tag_field="pass", tag="fuse", forbid_unknown_fields=True):
    """onnxruntime's transformer fusions (attention, normalization, GELU), found by their pattern in the graph.

    A model without such patterns comes out as it went in.
    """

    def __call__(self, source: Artifact, out: Path) -> Artifact:
        import onnx
        from onnxruntime.transformers.fusion_options import FusionOptions
        from onnxruntime.transformers.optimizer import optimize_model

        options = FusionOptions("bert")
        options.enable_gelu_approximation = False  # it would change the answers
        fused = optimize_model(str(source.model_path), "bert", opt_level=0, optimization_options=options)
        counts = {name: count for name, count in fused.get_fused_operator_statistics().items() if count}
        size_bytes = source.size_bytes
        if any(name in _FUSED_OPERATORS for name in counts):
            fused.save_model_to_file(str(out / MODEL_FILE), use_external_data_format=size_bytes > 1 << 30)
        else:
            onnx.save(
                onnx.load(source.model_path), out / MODEL_FILE, save_as_external_data=size_bytes > 1 << 30,
                location=f"{MODEL_FILE}.data",
            )  # fmt: skip
        copy_companions(source, out)
        notes = tuple(f"{count} {name}" for name, count in sorted(counts.items()) if name in _FUSED_OPERATORS)
        return stepped(source, out, self, notes or ("nothing to fuse",))
