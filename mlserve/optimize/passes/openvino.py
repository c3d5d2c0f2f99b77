"""OpenVINO's own format, and NNCF's quantization for it."""

import contextlib
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from platform import machine
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.engines.openvino_engine import OpenvinoEngine
from mlserve.errors import EngineError, InvalidRequest, MlserveError, Refused
from mlserve.model.artifact import Artifact
from mlserve.model.rows import Rows
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import Tensors
from mlserve.optimize.disk import no_space_left
from mlserve.optimize.evaluation.parity import largest_difference
from mlserve.optimize.passes.calibration import calibration_batches
from mlserve.optimize.passes.graph import turn_weights, write_graph
from mlserve.optimize.passes.int8_operators import is_quantized, matching, refuse_unless_float32, refuse_unless_onnx
from mlserve.optimize.passes.int8_types import int8_types
from mlserve.optimize.passes.step import ALONE, Resources, copy_companions, quiet, stepped
from mlserve.runs.machine import read_machine

__all__ = ["QuantizeOpenvino", "ToOpenvino"]

# Two files of one model: `model.xml` is the graph, `model.bin` its weights.
_GRAPH_FILE = "model.xml"
_HEAVY = ("Convolution", "GroupConvolution", "MatMul")
_HANDING_ON = ("AvgPool", "Concat", "MaxPool", "Relu", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_PRODUCT_OF = "/WithoutBiases"
_NO_OPERATORS = ("Constant", "Parameter", "Result")
# How far made-up rows' answers may be from the source's, relative to their size: what fp16 rounds; a fault is larger.
_TOLERANCE = 2e-2
_COMPARED_ROWS = 4
# From softmax to the product with the values there may lie a cast, a reshape or a dropout that was left in.
_STEPS_TO_VALUES = 3
_DTYPE_OF_ELEMENT = {"boolean": "bool", "f16": "float16", "f32": "float32", "f64": "float64", "string": "object"} | {
    f"{letter}{bits}": f"{kind}{bits}" for letter, kind in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)
}

ComputeType = Literal["", "bf16"]


class ToOpenvino(msgspec.Struct, frozen=True, tag_field="pass", tag="to-openvino", forbid_unknown_fields=True):
    """The model as OpenVINO keeps it, for the engine of that name.

    `weights`: "fp32" as they are, "fp16" half the size, "int8" a quarter (NNCF's weight compression; OpenVINO turns
    them back as it computes). `compute_type` "bf16" computes in bfloat16, where the processor can.

    Raises Refused where OpenVINO is not installed, cannot read the model, or gives other answers than a float model.
    """

    weights: Literal["fp32", "fp16", "int8"] = "fp32"
    compute_type: ComputeType = ""

    def __call__(self, source: Artifact, out: Path, resources: Resources = ALONE) -> Artifact:
        refuse_unless_onnx(source, "OpenVINO's format")
        notes = [f"weights {self.weights}"]
        with _libraries() as openvino:
            model = _read(openvino, source, out)
            if self.weights == "int8":
                refuse_unless_float32(source, "int8")
                import nncf

                model = nncf.compress_weights(model)
                notes.append(f"{_int8_weights(model)} weights in int8")
            _write(openvino, model, out, fp16=self.weights == "fp16")
        copy_companions(source, out)
        made = _made(source, out, self, self.compute_type, tuple(notes))
        if self.weights != "int8" and not is_quantized(source):
            _same_answers(source, made)
        return made


class QuantizeOpenvino(
    msgspec.Struct, frozen=True, tag_field="pass", tag="quantize-openvino", forbid_unknown_fields=True
):
    """NNCF's post-training quantization: int8 weights and activations for the OpenVINO engine.

    `model_type` "transformer" keeps in float what int8 harms in attention, and smooths outliers; "auto" looks for a
    softmax that goes into a product. `preset` "mixed" gives activations a zero point, "performance" does not; "auto" is
    NNCF's choice for the type of model. `calibration` "minmax" represents all values seen, "mean" the mean of each
    row's extremes, which cuts outliers off; "auto" is the latter for transformers. `exclude` are patterns
    (`*/query/*`) over names of operators that stay as they are. `smooth_alpha` is SmoothQuant's for products, from 0 to
    1; -1 switches it off, None is NNCF's own. `fast_bias_correction` corrects what rounding did to the mean of each
    output in one go, not layer after layer. `compute_type` "bf16" computes the rest in bfloat16, where the processor
    can.

    Raises Refused without rows, where OpenVINO or NNCF is not installed or cannot do it, and when nothing came out in
    int8; UsageError for a pattern that matches nothing.
    """

    model_type: Literal["auto", "transformer", "none"] = "auto"
    preset: Literal["auto", "performance", "mixed"] = "auto"
    calibration: Literal["auto", "minmax", "mean"] = "auto"
    exclude: tuple[str, ...] = ()
    fast_bias_correction: bool = True
    subset_rows: Annotated[int, msgspec.Meta(ge=1)] = 300
    smooth_alpha: Annotated[float, msgspec.Meta(ge=-1, le=1)] | None = None
    compute_type: ComputeType = ""

    def __call__(self, source: Artifact, out: Path, resources: Resources = ALONE) -> Artifact:
        refuse_unless_float32(source, "int8 for OpenVINO")
        batches, rows = calibration_batches(source, resources, "int8 for OpenVINO", rows=self.subset_rows, batch_rows=1)
        with _libraries() as openvino:
            model = _read(openvino, source, out)
            arguments = self._arguments(model, subset=len(batches))
            resources.on_step(f"NNCF: {batches[-1][1]} rows")
            import nncf

            quantized = nncf.quantize(model, nncf.Dataset(_Items(rows, batches)), **arguments)
            counts = _counts(quantized)
            if not counts.int8:
                raise Refused("int8 brings nothing for this model: NNCF found nothing to quantize; keep float32")
            _name_ports(quantized, source)
            _write(openvino, quantized, out, fp16=False)
        kind = "a transformer" if arguments.get("model_type") is not None else "no transformer"
        notes = (
            f"{counts.int8} of {counts.heavy} convolutions and products in int8",
            f"taken for {kind}, calibrated on {batches[-1][1]} rows",
        )
        copy_companions(source, out)
        return _made(source, out, self, self.compute_type, notes)

    def _arguments(self, model: Any, subset: int) -> dict[str, Any]:
        """What `nncf.quantize` is told beside model and data."""
        import nncf

        names = [node.get_friendly_name() for node in model.get_ops() if node.get_type_name() not in _NO_OPERATORS]
        transformer = self.model_type == "transformer" or (self.model_type == "auto" and _attends(model))
        saturates = int8_types("cpu", machine(), read_machine().cpu_flags).reduce_range
        overflow = nncf.OverflowFix.ENABLE if saturates else nncf.OverflowFix.DISABLE
        advanced = nncf.AdvancedQuantizationParameters(overflow_fix=overflow)
        if self.calibration == "minmax" or (self.calibration == "auto" and not transformer):
            from nncf.quantization.range_estimator import RangeEstimatorParametersSet

            advanced.activations_range_estimator_params = RangeEstimatorParametersSet.MINMAX
        if self.smooth_alpha is not None:
            advanced.smooth_quant_alphas = nncf.AdvancedSmoothQuantParameters(matmul=self.smooth_alpha)
        return {
            "model_type": nncf.ModelType.TRANSFORMER if transformer else None,
            "preset": None if self.preset == "auto" else nncf.QuantizationPreset(self.preset),
            "ignored_scope": nncf.IgnoredScope(names=sorted(_products(matching(names, self.exclude), names))),
            "fast_bias_correction": self.fast_bias_correction,
            "subset_size": subset,
            "advanced_parameters": advanced,
        }


def _products(chosen: Iterable[str], names: Sequence[str]) -> set[str]:
    """`chosen` operators of the ONNX graph, and the products inside them: OpenVINO takes a bias apart from its product
    and leaves the name to the addition.
    """
    wanted = set(chosen)
    return wanted | {name for name in names if name.removesuffix(_PRODUCT_OF) in wanted}


class _Items:
    """The batches one after another, as often as they are asked for: NNCF goes over them once a step."""

    def __init__(self, rows: Rows, batches: list[tuple[int, int]]) -> None:
        self._rows, self._batches = rows, batches

    def __iter__(self) -> Iterator[Tensors]:
        return (self._rows.batch(start, stop) for start, stop in self._batches)

    def __len__(self) -> int:
        return len(self._batches)


class _Counts(msgspec.Struct, frozen=True):
    heavy: int
    int8: int


@contextlib.contextmanager
def _libraries() -> Iterator[Any]:
    """The openvino module, quiet; what it and NNCF raise inside becomes Refused."""
    # Both tell their makers' server that they are used. Where the package that does it is an empty one, they do not.
    sys.modules.setdefault("openvino_telemetry", ModuleType("openvino_telemetry"))
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import nncf  # noqa: F401  # asked for here, so that its absence is told before any work
            import openvino
        except ImportError as error:
            raise Refused(
                f"OpenVINO and NNCF are not installed ({error}); install them with: pip install 'mlserve[openvino]'"
            ) from error
        try:
            yield openvino
        except MlserveError:
            raise
        except Exception as error:  # both fail in as many ways as there are graphs
            if no_space_left(error):
                raise
            raise Refused(f"OpenVINO cannot take this model: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The lines that say what was wrong, without those that say where in OpenVINO's sources it was found."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from ", "Check '"))]
    return f"{type(error).__name__}: {' '.join(telling or lines)[:500]}"


def _read(openvino: Any, source: Artifact, scratch: Path) -> Any:
    """The source as OpenVINO's model, its inputs and outputs called as the manifest calls them."""
    import onnx

    # OpenVINO 2026.4 turns a weight that is used both ways round, and kept in fp16, one way for both.
    graph = onnx.load(source.model_path)
    turn_weights(graph)
    with TemporaryDirectory(dir=scratch, prefix=".turned-") as folder:
        model = openvino.Core().read_model(str(write_graph(graph, Path(folder), source))).clone()
    _name_ports(model, source)
    return model


def _same_answers(source: Artifact, made: Artifact) -> None:
    """Raises Refused when `made` answers made-up rows otherwise than `source`; rows that do not run tell nothing."""
    inputs = synthesize(source.manifest.inputs, _COMPARED_ROWS, np.random.default_rng(3))
    specs = made.manifest.inputs, made.manifest.outputs
    with (
        contextlib.closing(OnnxEngine(source.model_path)) as before,
        contextlib.closing(OpenvinoEngine(made.model_path, None, *specs)) as after,
    ):
        try:
            expected = before.run(inputs)
        except (EngineError, InvalidRequest):
            return
        difference = largest_difference(expected, after.run(inputs))
    if difference.relative > _TOLERANCE:
        size = difference.reason or f"output '{difference.output}' differs by {difference.relative:.2g} of its size"
        raise Refused(f"OpenVINO gives other answers than the model: {size}; use onnxruntime")


def _name_ports(model: Any, source: Artifact) -> None:
    """Leaves every input and output the one name it has in the manifest. Raises Refused when they are not the same."""
    manifest = source.manifest
    for kind, ports, specs in (("input", model.inputs, manifest.inputs), ("output", model.outputs, manifest.outputs)):
        found = [(port.get_names(), _DTYPE_OF_ELEMENT.get(port.element_type.to_string())) for port in ports]
        same = len(found) == len(specs) and all(
            spec.name in names and spec.dtype == dtype for spec, (names, dtype) in zip(specs, found, strict=True)
        )
        if not same:
            wanted = ", ".join(map(str, specs))
            raise Refused(f"OpenVINO reads this model with other {kind}s than it has ({wanted}); use onnxruntime")
        for port, spec in zip(ports, specs, strict=True):
            port.get_tensor().set_names({spec.name})


def _write(openvino: Any, model: Any, out: Path, *, fp16: bool) -> None:
    openvino.save_model(model, str(out / _GRAPH_FILE), compress_to_fp16=fp16)


def _attends(model: Any) -> bool:
    """Whether a softmax goes into a product: attention."""
    waiting = [(node, 0) for node in model.get_ops() if node.get_type_name() == "Softmax"]
    while waiting:
        node, steps = waiting.pop()
        for target in (target for output in node.outputs() for target in output.get_target_inputs()):
            reached = target.get_node()
            if reached.get_type_name() == "MatMul":
                return True
            if steps < _STEPS_TO_VALUES:
                waiting.append((reached, steps + 1))
    return any(node.get_type_name() == "ScaledDotProductAttention" for node in model.get_ops())


def _counts(model: Any) -> _Counts:
    heavy = [node for node in model.get_ops() if node.get_type_name() in _HEAVY]
    return _Counts(len(heavy), sum(_takes_integers(node) for node in heavy))


def _takes_integers(node: Any) -> bool:
    """Whether what comes in first was put on int8's scale; transposes and the like may lie between."""
    before = node.input_value(0).get_node()
    while before.get_type_name() in _HANDING_ON:
        before = before.input_value(0).get_node()
    return bool(before.get_type_name() == "FakeQuantize")


def _int8_weights(model: Any) -> int:
    kinds = Counter(
        node.get_element_type().to_string() for node in model.get_ops() if node.get_type_name() == "Constant"
    )
    return kinds["i8"] + kinds["u8"]


def _made(
    source: Artifact, out: Path, transform: msgspec.Struct, compute_type: ComputeType, notes: tuple[str, ...]
) -> Artifact:
    made = stepped(source, out, transform, notes)
    manifest = msgspec.structs.replace(made.manifest, format="openvino", engine="openvino", compute_type=compute_type)
    return Artifact(out, manifest)
