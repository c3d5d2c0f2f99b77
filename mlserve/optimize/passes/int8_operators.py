"""Which operators of an ONNX graph compute in int8 when activations have fixed scales, and why the others do not."""

from collections import Counter
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import msgspec

from mlserve.errors import Refused, UsageError
from mlserve.model.artifact import MODEL_FILE, Artifact
from mlserve.optimize.disk import no_space_left
from mlserve.optimize.importers.onnx_model import INLINE_LIMIT_BYTES
from mlserve.optimize.passes.step import quiet
from mlserve.optimize.precision import weight_precision

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

__all__ = [
    "HEAVY_OPERATORS",
    "Choice",
    "choose",
    "is_quantized",
    "matching",
    "open_ends",
    "operator_types",
    "prepare",
    "refuse_unless_float32",
    "refuse_unless_onnx",
    "touched",
]

# What has an int8 kernel that pays ...
HEAVY_OPERATORS = ("Conv", "Gemm", "MatMul")
# ... what hands integers on to the next of them ...
_CARRYING = (
    "AveragePool",
    "Clip",
    "Flatten",
    "GlobalAveragePool",
    "MaxPool",
    "Relu",
    "Reshape",
    "Squeeze",
    "Transpose",
)
_JOINING = ("Add", "Concat")
# ... and heavy work that onnxruntime has no static int8 kernel for.
_WITHOUT_KERNEL = ("Attention", "ConvTranspose", "Einsum", "GRU", "LSTM", "MultiHeadAttention", "RNN")
_INTEGER_MARKS = (
    *("DequantizeLinear", "DynamicQuantizeLSTM", "MatMulInteger", "MatMulNBits", "QAttention"),
    *("QGemm", "QLinearConv", "QLinearMatMul"),
)
# It would rename the products it joins with their biases, and operators are excluded by name.
_KEPT_APART = ["MatMulAddFusion"]
_NAMES_SHOWN = 5


class Choice(msgspec.Struct, frozen=True):
    """Names of operators. `heavy` are what int8 is for, `carried` what lies between them; `stayed`: why -> how many."""

    heavy: frozenset[str]
    carried: frozenset[str]
    stayed: dict[str, int]


def operator_types() -> list[str]:
    """Every type of operator that `choose` may name."""
    return [*HEAVY_OPERATORS, *_CARRYING, *_JOINING]


def matching(names: Iterable[str], patterns: Iterable[str]) -> frozenset[str]:
    """The names that a pattern (`*/query/*`) matches. Raises UsageError for a pattern that matches none."""
    names = list(names)
    matched: set[str] = set()
    for pattern in patterns:
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            shown = ", ".join(repr(name) for name in names[:_NAMES_SHOWN])
            raise UsageError(f"exclude: no operator is named {pattern!r}; there are, among others, {shown}")
        matched.update(found)
    return frozenset(matched)


def refuse_unless_onnx(source: Artifact, purpose: str) -> None:
    """Raises Refused for a model that is no longer an ONNX file."""
    kept_as = source.manifest.format
    if kept_as != "onnx":
        raise Refused(f"{purpose} is made from an ONNX model, and this one is kept as {kept_as}; do it before that")


def is_quantized(source: Artifact) -> bool:
    """Whether the ONNX model of `source` computes on integers made of float32."""
    import onnx

    return _has_integers(onnx.load(source.model_path, load_external_data=False))


def refuse_unless_float32(source: Artifact, purpose: str) -> None:
    """Raises Refused for a model that is no ONNX file, has no float32 weights, or computes on integers already."""
    import onnx

    refuse_unless_onnx(source, purpose)
    model = onnx.load(source.model_path, load_external_data=False)
    if _has_integers(model):
        raise Refused(f"{purpose} is made from a float32 model, and this one is quantized already; keep it as it is")
    precision = weight_precision(model)
    if precision != "fp32":
        raise Refused(f"{purpose} is made from float32 weights, and most of this model's are {precision}; keep it")


def _has_integers(model: "ModelProto") -> bool:
    return any(node.op_type in _INTEGER_MARKS for node in model.graph.node)


def prepare(source: Artifact, exclude: tuple[str, ...], scratch: Path) -> tuple["ModelProto", frozenset[str]]:
    """The source as the quantizer wants it: every operator named, constants folded, batch normalization inside its
    convolution; and which of its operators `exclude` names, wherever they went.
    """
    import onnx
    import onnxruntime

    model = onnx.load(source.model_path)
    _name_all(model.graph)
    heavy = [node.name for node in model.graph.node if node.op_type in HEAVY_OPERATORS]
    others = [node.name for node in model.graph.node if node.op_type not in HEAVY_OPERATORS]
    excluded = matching([*heavy, *others], exclude)
    # Shapes that an exporter noted may contradict what folding makes of the graph.
    del model.graph.value_info[:]
    with TemporaryDirectory(dir=scratch, prefix=".prepared-") as folder, quiet():
        before, after = Path(folder) / MODEL_FILE, Path(folder) / "folded.onnx"
        large = source.size_bytes > INLINE_LIMIT_BYTES
        onnx.save(model, before, save_as_external_data=large)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(after)
        options.log_severity_level = 4
        if large:
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "folded.data")
        try:
            onnxruntime.InferenceSession(
                str(before), options, ["CPUExecutionProvider"], disabled_optimizers=_KEPT_APART
            )
            folded = onnx.load(after)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            if no_space_left(error):
                raise
            raise Refused(f"the model cannot be prepared for int8: {error}") from error
    _name_all(folded.graph)
    _own_weights(folded.graph)
    return folded, _survivors(model.graph, folded.graph, excluded)


def choose(graph: "GraphProto", excluded: frozenset[str], masks: frozenset[str], *, products_out: bool) -> Choice:
    """The operators to compute in int8: heavy ones with weights, and others that integers reach on every input.

    `masks` are tensors that no scale fits. `products_out`: a MatMul gives integers, not float32.
    """
    weights = {tensor.name for tensor in graph.initializer}
    heavy, carried, integers = set[str](), set[str](), set[str]()
    stayed: Counter[str] = Counter()
    for node in graph.node:
        reason = _why_not(node, weights, excluded, masks)
        carries = _hands_on(node, integers)
        if reason and (carries or node.op_type in (*HEAVY_OPERATORS, *_WITHOUT_KERNEL)):
            stayed[f"{node.op_type}: {reason}"] += 1
        elif node.op_type in HEAVY_OPERATORS:
            heavy.add(node.name)
            if node.op_type != "MatMul" or products_out:
                integers.update(node.output)
        elif carries:
            carried.add(node.name)
            integers.update(node.output)
    return Choice(frozenset(heavy), frozenset(carried), dict(stayed))


def _why_not(node: "NodeProto", weights: set[str], excluded: frozenset[str], masks: frozenset[str]) -> str:
    """Why an operator must stay float32; "" when nothing speaks against int8."""
    if node.op_type in _WITHOUT_KERNEL:
        return "no static int8 kernel"
    if node.name in excluded:
        return "excluded"
    if masks & {*node.input, *node.output}:
        return "holds a mask, which no scale fits"
    if node.op_type not in HEAVY_OPERATORS:
        return ""
    if node.input[1] not in weights:
        return "a product of two activations"
    return "" if node.input[0] not in weights else "its first factor is a weight"


def _hands_on(node: "NodeProto", integers: set[str]) -> bool:
    if node.op_type in _JOINING:
        return all(name in integers for name in node.input)
    return node.op_type in _CARRYING and node.input[0] in integers


def touched(graph: "GraphProto", names: frozenset[str]) -> list[str]:
    """The activations that the operators `names` take and give."""
    weights = {tensor.name for tensor in graph.initializer}
    return list(
        dict.fromkeys(
            name
            for node in graph.node
            if node.name in names
            for name in (*node.input, *node.output)
            if name and name not in weights
        )
    )


def open_ends(graph: "GraphProto") -> None:
    """Gives the graph's outputs as they are computed: integers made only to be turned back at once cost precision."""
    producers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    for output in graph.output:
        back = producers.get(output.name)
        to = producers.get(back.input[0]) if back is not None and back.op_type == "DequantizeLinear" else None
        origin = producers.get(to.input[0]) if to is not None and to.op_type == "QuantizeLinear" else None
        if back is None or to is None or origin is None or uses[output.name] or uses[to.output[0]] > 1:
            continue
        if origin.op_type not in HEAVY_OPERATORS or uses[to.input[0]] > 1:
            continue
        origin.output[0] = output.name
        graph.node.remove(back)
        graph.node.remove(to)


def _name_all(graph: "GraphProto") -> None:
    """Gives operators without a name one, and tells those of the same name apart."""
    taken: set[str] = set()
    for number, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.name or node.op_type}_{number}"
        taken.add(node.name)


def _own_weights(graph: "GraphProto") -> None:
    """Copies a weight for every way it is used: its scales run along another axis for a transposed product."""
    from onnx import TensorProto

    weights = {tensor.name: tensor for tensor in graph.initializer}
    first_use: dict[str, tuple[str, bool]] = {}
    copies: dict[tuple[str, str, bool], str] = {}
    for node in graph.node:
        if node.op_type not in HEAVY_OPERATORS or node.input[1] not in weights:
            continue
        name = node.input[1]
        use = node.op_type, any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        if first_use.setdefault(name, use) == use:
            continue
        if (name, *use) not in copies:
            copies[name, *use] = f"{name}_for_{node.name}"
            copy = TensorProto()
            copy.CopyFrom(weights[name])
            copy.name = copies[name, *use]
            graph.initializer.append(copy)
        node.input[1] = copies[name, *use]


def _survivors(before: "GraphProto", after: "GraphProto", excluded: frozenset[str]) -> frozenset[str]:
    """What the operators `excluded` of `before` are called in `after`: one that was merged is found by its result."""
    present = {node.name for node in after.node}
    producer = {name: node.name for node in after.node for name in node.output}
    return frozenset(
        name if name in present else producer.get(tensor, "")
        for name in excluded
        for tensor in ([""] if name in present else _downstream(before, name))
    ) - {""}


def _downstream(graph: "GraphProto", name: str) -> Iterator[str]:
    """The results that the operator's result goes into, one after another, as long as there is one way to go."""
    node = next(node for node in graph.node if node.name == name)
    while True:
        yield node.output[0]
        consumers = [other for other in graph.node if node.output[0] in other.input]
        if len(consumers) != 1 or consumers[0].op_type in HEAVY_OPERATORS:
            return
        node = consumers[0]
