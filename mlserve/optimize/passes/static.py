"""Static int8: weights and activations to integers, the activations' scales fixed beforehand on the user's rows."""

from pathlib import Path
from platform import machine
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from mlserve.errors import Refused, UsageError
from mlserve.model.artifact import MODEL_FILE, Artifact
from mlserve.optimize.disk import no_space_left
from mlserve.optimize.importers.onnx_model import INLINE_LIMIT_BYTES
from mlserve.optimize.passes.calibration import (
    Calibration,
    Entropy,
    MinMax,
    Percentile,
    Watch,
    calibration_batches,
    observe,
    tapped,
)
from mlserve.optimize.passes.int8_operators import (
    Choice,
    choose,
    open_ends,
    operator_types,
    prepare,
    refuse_unless_float32,
    touched,
)
from mlserve.optimize.passes.int8_types import Device, Int8Types, int8_types
from mlserve.optimize.passes.step import ALONE, Resources, copy_companions, quiet, stepped
from mlserve.runs.machine import read_machine

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

__all__ = ["QuantizeStatic"]

Integers = Literal["auto", "u8", "s8"]


class QuantizeStatic(msgspec.Struct, frozen=True, tag_field="pass", tag="quantize-static", forbid_unknown_fields=True):
    """Convolutions and products with weights to int8, the ranges of activations seen on `calibration_rows` rows.

    `form`: "qdq" marks integers by QuantizeLinear and DequantizeLinear around float operators, which onnxruntime joins
    when it loads the model; "qoperator" writes the integer operators themselves. `calibration`: "minmax" represents
    all values seen, "percentile" cuts the rarest off, "entropy" cuts where the values' distribution suffers least.
    `exclude` are patterns (`*/query/*`) over names of the source's operators that stay float32.

    Raises Refused without rows, for weights that are not float32, and when nothing can be int8; UsageError for a
    pattern that matches nothing.
    """

    form: Literal["qdq", "qoperator"] = "qdq"
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    percentile: Annotated[float, msgspec.Meta(gt=50, le=100)] = 99.99
    per_channel: bool = True
    activations: Integers = "auto"
    weights: Integers = "auto"
    device: Device = "cpu"
    exclude: tuple[str, ...] = ()
    calibration_rows: Annotated[int, msgspec.Meta(ge=1)] = 128
    calibration_batch_rows: Annotated[int, msgspec.Meta(ge=1)] = 8

    def __call__(self, source: Artifact, out: Path, resources: Resources = ALONE) -> Artifact:
        refuse_unless_float32(source, "static int8")
        batches, rows = calibration_batches(
            source, resources, "static int8", rows=self.calibration_rows, batch_rows=self.calibration_batch_rows
        )
        types = self._types()
        model, excluded = prepare(source, self.exclude, out)
        products_out = self.form == "qoperator"
        candidates = _some(choose(model.graph, excluded, frozenset(), products_out=products_out))
        tensors = touched(model.graph, candidates.heavy | candidates.carried)
        watches: dict[str, Watch] = {name: self._watch() for name in tensors}
        with tapped(model, tensors, out, resources.threads) as tap:
            calibration = observe(tap, rows, batches, watches, resources.on_step)
        choice = _some(choose(model.graph, excluded, calibration.masks, products_out=products_out))
        self._quantize(model, choice, calibration, types, out / MODEL_FILE)
        notes = _notes(choice, types, f"{self.calibration} of {calibration.rows} rows")
        copy_companions(source, out)
        return stepped(source, out, self, notes)

    def _types(self) -> Int8Types:
        found = int8_types(self.device, machine(), read_machine().cpu_flags)
        activations = found.activations if self.activations == "auto" else self.activations
        weights = found.weights if self.weights == "auto" else self.weights
        if (activations, weights) == ("s8", "u8"):
            raise UsageError(
                f"activations {activations} with weights {weights} have no kernel in onnxruntime; "
                "use u8 or s8 for both, or u8 activations with s8 weights"
            )
        if (activations, weights) == (found.activations, found.weights):
            return found
        return msgspec.structs.replace(
            found,
            activations=activations,
            weights=weights,
            symmetric=found.symmetric and activations == "s8",
            reduce_range=found.reduce_range and (activations, weights) == ("u8", "s8"),
            reason="as asked for",
        )

    def _watch(self) -> Watch:
        match self.calibration:
            case "minmax":
                return MinMax()
            case "percentile":
                return Percentile(self.percentile)
            case "entropy":
                return Entropy()

    def _quantize(
        self, model: "ModelProto", choice: Choice, calibration: Calibration, types: Int8Types, target: Path
    ) -> None:
        import numpy as np
        from onnxruntime.quantization import QDQQuantizer, QuantizationMode, QuantType, TensorData, TensorsData
        from onnxruntime.quantization.calibrate import CalibrationMethod
        from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer

        ranges = TensorsData(
            CalibrationMethod.MinMax,
            {
                name: TensorData(lowest=np.float32(low), highest=np.float32(high))
                for name, (low, high) in calibration.ranges.items()
            },
        )
        _say_float32(model.graph, calibration)
        kinds = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8}
        chosen = sorted(choice.heavy | choice.carried)
        common: tuple[Any, ...] = (kinds[types.weights], kinds[types.activations], ranges, chosen, [])
        operators, options = operator_types(), self._options(types)
        per_channel, reduce_range = self.per_channel, types.reduce_range
        try:
            with quiet():
                if self.form == "qdq":
                    quantizer = QDQQuantizer(model, per_channel, reduce_range, *common, operators, options)
                else:
                    mode = QuantizationMode.QLinearOps
                    quantizer = ONNXQuantizer(model, per_channel, reduce_range, mode, True, *common, operators, options)
                quantizer.quantize_model()
                open_ends(quantizer.model.model.graph)
                large = quantizer.model.model.ByteSize() > INLINE_LIMIT_BYTES
                quantizer.model.save_model_to_file(str(target), large)
        except Exception as error:  # the quantizer fails in as many ways as there are graphs
            if no_space_left(error):
                raise
            raise Refused(f"static int8 cannot be made of this model: {type(error).__name__}: {error}") from error

    def _options(self, types: Int8Types) -> dict[str, Any]:
        import onnx

        options: dict[str, Any] = {
            # After fusion some tensors have no inferred type; float32 is what they are.
            "DefaultTensorType": onnx.TensorProto.FLOAT,
            "ActivationSymmetric": types.symmetric,
            # onnxruntime adds the bias to a product in float32, before it could be rounded a second time.
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
        }
        if self.device == "tensorrt":
            # What TensorRT reads: every weight with a pair of its own, and biases as they are.
            options |= {"AddQDQPairToWeight": True, "DedicatedQDQPair": True, "QuantizeBias": False}
        return options


def _some(choice: Choice) -> Choice:
    """`choice`. Raises Refused when there is nothing that int8 pays for."""
    if choice.heavy:
        return choice
    why = _stayed(choice) or ("no convolution and no product with weights",)
    raise Refused(f"static int8 brings nothing for this model ({'; '.join(why)}); keep float32")


def _say_float32(graph: "GraphProto", calibration: Calibration) -> None:
    """Notes the type of the tensors that were seen: the quantizer skips one whose type shape inference did not find."""
    import onnx

    known = {value.name for values in (graph.input, graph.output, graph.value_info) for value in values}
    graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in calibration.ranges
        if name not in known
    )


def _notes(choice: Choice, types: Int8Types, ranges: str) -> tuple[str, ...]:
    kinds = f"{types.activations} activations, {types.weights} weights ({types.reason})"
    return (f"{len(choice.heavy)} operators in int8, {kinds}", f"ranges: {ranges}", *_stayed(choice))


def _stayed(choice: Choice) -> tuple[str, ...]:
    return tuple(f"{count} stay float32, {why}" for why, count in sorted(choice.stayed.items()))
