"""Casting: float32 to a floating-point type of half the size."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from mlserve.engines.engine import EngineSettings
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import EngineError, InvalidRequest, Refused
from mlserve.model.artifact import Artifact
from mlserve.model.rows import Rows, SyntheticRows
from mlserve.optimize.evaluation.parity import largest_difference
from mlserve.optimize.passes.calibration import MinMax, Watch, calibration_batches, observe, tapped
from mlserve.optimize.passes.graph import computes_in_int8, excluded_names, write_graph
from mlserve.optimize.passes.int8_operators import refuse_unless_onnx
from mlserve.optimize.passes.lowering import Lowered, Narrow, constants_as_weights, first_result, largest_number, lower
from mlserve.optimize.passes.step import ALONE, Resources, copy_companions, stepped
from mlserve.optimize.precision import weight_precision

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

__all__ = ["Cast"]

_ROWS = 32
_BATCH_ROWS = 4
# Rows to come may hold larger values than those that were measured.
_HEADROOM = 4.0
# What a size or an index is computed with before it becomes an integer; there fp16 miscounts from 2049 on.
_SIZE_OPERATORS = (
    *("Add", "Cast", "Ceil", "Concat", "Div", "Floor", "Gather", "Identity", "Mul", "Reshape", "Round", "Slice"),
    *("Sqrt", "Squeeze", "Sub", "Unsqueeze"),
)
# What hands a mask's lowest number on.
_MASKING_OPERATORS = (
    *("Add", "Cast", "Concat", "Expand", "Identity", "Mul", "Reshape", "Slice", "Squeeze", "Sub", "Transpose"),
    *("Unsqueeze", "Where"),
)

Batches = Sequence[tuple[int, int]]


class Cast(msgspec.Struct, frozen=True, tag_field="pass", tag="cast", forbid_unknown_fields=True):
    """Weights and arithmetic to fp16 or bf16; inputs and outputs keep their types.

    An operator stays in float32 when its values, measured on the calibration rows (or on made-up ones) come within a
    factor of 4 of the largest that the type holds, when sizes or indices are computed with it, when it is known to need
    the precision (onnxruntime's list), or when its name matches one of the patterns `exclude`.

    Raises Refused for a model whose weights are not float32 or that computes in int8, for one whose values cannot be
    measured or are not finite afterwards, and for one that onnxruntime's CPU kernels cannot run, which is every model
    in bf16: it could be written, but not be held against the original. Raises UsageError for a pattern that matches no
    operator.
    """

    to: Narrow = "fp16"
    exclude: tuple[str, ...] = ()

    def __call__(self, source: Artifact, out: Path, resources: Resources = ALONE) -> Artifact:
        import onnx

        refuse_unless_onnx(source, self.to)
        model = onnx.load(source.model_path)
        _refuse_unfit(model, self.to)
        excluded = excluded_names(model, self.exclude)
        constants_as_weights(model)
        made_up = resources.rows is None
        if made_up:
            resources = msgspec.structs.replace(resources, rows=_made_up_rows(source, resources.seed))
        batches, rows = calibration_batches(source, resources, self.to, rows=_ROWS, batch_rows=_BATCH_ROWS)
        try:
            floats, large = _measure(model, self.to, batches, rows, out, resources)
        except Refused as refusal:
            if not made_up:
                raise
            raise Refused(f"{refusal} (they were made up); give real ones with --data") from refusal
        reasons = _reasons(model.graph, floats, large, excluded)
        lowered = lower(model, self.to, floats, frozenset(reasons))
        if not lowered.weights:
            raise Refused(f"{self.to} brings nothing for this model: it has no float32 weights that could be {self.to}")
        notes = _what_changed(self.to, lowered, reasons)
        target = write_graph(model, out, source)
        notes += _held_against(source, target, self.to, batches, rows, resources)
        copy_companions(source, out)
        return stepped(source, out, self, tuple(notes))


def _refuse_unfit(model: "ModelProto", to: Narrow) -> None:
    if computes_in_int8(model):
        raise Refused(f"{to} is made of a float32 model, and this one computes in int8 already; cast the float32 one")
    precision = weight_precision(model)
    if precision in ("fp16", "bf16", "fp64"):
        raise Refused(f"{to} is made from float32 weights, and most of this model's are {precision}; keep it as it is")


def _made_up_rows(source: Artifact, seed: int) -> Rows:
    first = source.manifest.inputs[0].shape
    rows = first[0] if first and isinstance(first[0], int) else _BATCH_ROWS
    return SyntheticRows(source.manifest.inputs, rows, seed)


def _measure(
    model: "ModelProto", to: Narrow, batches: Batches, rows: Rows, scratch: Path, resources: Resources
) -> tuple[frozenset[str], frozenset[str]]:
    """The float32 tensors that operators make, and all that are or may become too large for the type."""
    largest = largest_number(to)
    names = [name for node in model.graph.node for name in node.output if name]
    inputs = [value.name for value in model.graph.input]
    with tapped(model, [*names, *inputs], scratch, resources.threads) as tap:
        watches: dict[str, Watch] = {name: MinMax() for name in [*names, *inputs]}
        seen = observe(tap, rows, batches, watches, resources.on_step)
        floats = tap.inner
    large = {name for name, (low, high) in seen.ranges.items() if max(-low, high) > largest / _HEADROOM}
    return floats, frozenset(large | seen.masks | _masks(model.graph, largest))


def _masks(graph: "GraphProto", largest: float) -> set[str]:
    """Weights beyond `largest` and what is made of them: the lowest float32 number, as a rule, for what a mask hides.

    Followed through the graph because rows that happen to hide nothing do not show them.
    """
    from onnx import numpy_helper

    masks = set()
    for tensor in graph.initializer:
        if tensor.data_type == tensor.FLOAT:
            array = np.abs(numpy_helper.to_array(tensor))
            if (array[np.isfinite(array)] > largest).any():
                masks.add(tensor.name)
    for node in graph.node:  # in the order of computation
        if node.op_type in _MASKING_OPERATORS and masks & {*node.input}:
            masks.update(node.output)
    return masks


def _reasons(
    graph: "GraphProto", floats: frozenset[str], large: frozenset[str], excluded: frozenset[str]
) -> dict[str, str]:
    """Which operators stay in float32, each by its first result, and why."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

    sizes = _towards_integers(graph, floats)
    reasons: dict[str, str] = {}
    for node in graph.node:
        result = first_result(node)
        if node.name in excluded:
            reasons[result] = "excluded"
        elif large & {*node.input, *node.output}:
            reasons[result] = "values too large"
        elif result in sizes:
            reasons[result] = "sizes and indices"
        elif node.op_type in DEFAULT_OP_BLOCK_LIST and floats & {*node.input, *node.output}:
            reasons[result] = f"{node.op_type} needs the precision"
    return reasons


def _towards_integers(graph: "GraphProto", floats: frozenset[str]) -> set[str]:
    """The operators, each by its first result, that compute in float32 what is then cast to an integer."""
    producers = {name: node for node in graph.node for name in node.output}
    waiting = [
        node
        for node in graph.node
        if node.op_type == "Cast" and node.input[0] in floats and not floats & {*node.output}
    ]
    found: set[str] = set()
    while waiting:
        node = waiting.pop()
        found.add(first_result(node))
        for name in floats & {*node.input}:
            producer = producers.get(name)
            if producer is not None and producer.op_type in _SIZE_OPERATORS and first_result(producer) not in found:
                waiting.append(producer)
    return found


def _what_changed(to: Narrow, lowered: Lowered, reasons: dict[str, str]) -> list[str]:
    notes = [f"{lowered.operators} operators in {to}"]
    notes += [f"{count} stay in float32: {reason}" for reason, count in sorted(Counter(reasons.values()).items())]
    if lowered.incapable:
        types = ", ".join(f"{count} {name}" for name, count in sorted(lowered.incapable.items()))
        notes.append(f"{sum(lowered.incapable.values())} stay in float32: no {to} in their definition ({types})")
    if lowered.rounded:
        notes.append(f"{lowered.rounded} of {lowered.weights} weights are too small for the full precision of {to}")
    return notes


def _held_against(
    source: Artifact, target: Path, to: Narrow, batches: Batches, rows: Rows, resources: Resources
) -> list[str]:
    """How far the answers moved. Raises Refused when the model does not run, or its answers are not finite any more.

    It is no proof that nothing overflows: on a CPU onnxruntime computes much of fp16 in float32. What an accelerator
    would make of it is why the ranges are measured.
    """
    settings = EngineSettings(threads=resources.threads)
    try:
        after = OnnxEngine(target, settings)
    except EngineError as error:
        if to == "bf16" and "implementation" in str(error):
            raise Refused(
                "bf16 cannot be held against the original here: onnxruntime has no CPU kernels for it; use the "
                "openvino engine with the compute type bf16, or cast to fp16"
            ) from error
        raise Refused(f"{to} cannot be made of this model: onnxruntime does not load it: {error}") from error
    with contextlib.closing(after), contextlib.closing(OnnxEngine(source.model_path, settings)) as before:
        try:
            differences = [
                largest_difference(before.run(inputs), after.run(inputs))
                for inputs in (rows.batch(start, stop) for start, stop in batches)
            ]
        except (EngineError, InvalidRequest) as error:
            raise Refused(f"{to} cannot be made of this model: it does not run: {error}") from error
    worst = max(differences, key=lambda difference: difference.relative)
    if np.isinf(worst.relative) and "finite" in worst.reason:
        raise Refused(f"{to} cannot be made of this model: {worst.reason}; keep float32 where it overflows, by exclude")
    if worst.reason:
        return [f"on {len(rows)} rows {worst.reason}"]
    return [f"output '{worst.output}' moved by at most {worst.relative:.1%} of its size on {len(rows)} rows"]
