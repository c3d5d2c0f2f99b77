"""Which variants of a model are worth trying on this machine, and which of those that were tried is the best."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from statistics import geometric_mean

import msgspec

from mlserve.model.artifact import Artifact
from mlserve.model.onnx_file import inspect_onnx
from mlserve.optimize.passes import (
    Cast,
    Fuse,
    Quantize,
    QuantizeOpenvino,
    QuantizeStatic,
    SmoothQuant,
    WeightOnly,
)
from mlserve.optimize.recipe import Recipe, Variant
from mlserve.runs.machine import Machine

__all__ = ["best_of", "sensible_variants", "speed_of"]

_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
_PRODUCTS = {"MatMul", "Gemm", "Attention"}
_RECURRENT = {"LSTM", "GRU", "RNN"}
# Beyond this, reading the weights is what takes the time: fewer bits a weight are worth trying.
_LARGE_BYTES = 300_000_000


def sensible_variants(imported: Artifact, machine: Machine, device: str, *, has_rows: bool) -> Recipe:
    """What may be faster than the model as imported, judged by its operators, the device, and what is installed.

    `has_rows` says whether there is data to calibrate with: without, nothing static is tried.
    """
    operators = inspect_onnx(imported.model_path).operators
    heavy = operators & (_PRODUCTS | {"Conv"} | _RECURRENT)
    if not heavy:
        return Recipe("no product or convolution to make cheaper: the model as imported", ())
    variants = [Variant("fused", (Fuse(),))]
    if device != "cpu":
        variants.append(Variant("fp16", (Fuse(), Cast(to="fp16"))))
        return Recipe(f"what may be faster on {device}", tuple(variants))
    if operators & (_PRODUCTS | _RECURRENT):
        variants.append(Variant("int8", (Fuse(), Quantize())))
    if has_rows:
        smooth = (SmoothQuant(),) if "LayerNormalization" in operators else ()
        variants.append(Variant("int8-static", (Fuse(transformer=False), *smooth, QuantizeStatic())))
    if imported.size_bytes > _LARGE_BYTES and operators & _PRODUCTS:
        variants.append(Variant("int4-weights", (Fuse(separate_weights=True), WeightOnly())))
    if find_spec("openvino"):
        variants += _on_openvino(machine, has_rows=has_rows)
    return Recipe(f"what may be faster on {machine.cpu}", tuple(variants))


def _on_openvino(machine: Machine, *, has_rows: bool) -> Sequence[Variant]:
    bf16 = any(flag in machine.cpu_flags for flag in _BF16_FLAGS)
    variants = [Variant("openvino", engine="openvino")]
    if bf16:
        variants.append(Variant("openvino-bf16", engine="openvino", compute_type="bf16"))
    if has_rows and find_spec("nncf"):
        int8 = Variant("openvino-int8", (QuantizeOpenvino(),), engine="openvino", split_batches=True)
        variants.append(int8)
        if bf16:
            variants.append(msgspec.structs.replace(int8, name="openvino-int8-bf16", compute_type="bf16"))
    return variants


def best_of(measured: Sequence[Artifact], beaten: Mapping[str, str]) -> list[Artifact]:
    """The model as imported, which is the first, and the fastest of what no other variant beats in everything.

    Fastest is the geometric mean of its speed over the batch sizes. Where none is surely faster at one of them, the
    model as imported is all there is.
    """
    left = [artifact for artifact in measured[1:] if artifact.manifest.variant not in beaten]
    faster = [artifact for artifact in left if speed_of(artifact) > 1 and _surely_faster(artifact)]
    return [measured[0], *sorted(faster, key=speed_of, reverse=True)[:1]]


def _surely_faster(artifact: Artifact) -> bool:
    highs = [latency.against_fp32_high for latency in artifact.manifest.metrics.latency]
    return any(high is not None and high < 1 for high in highs)


def speed_of(artifact: Artifact) -> float:
    """How many times as fast as the model as imported, the geometric mean over the batch sizes timed."""
    ratios = [1 / latency.against_fp32 for latency in artifact.manifest.metrics.latency]
    return geometric_mean(ratios) if ratios else 1.0
