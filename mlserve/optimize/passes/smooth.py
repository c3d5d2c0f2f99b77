"""SmoothQuant: the outliers of a transformer's activations moved into its weights, where int8 stands them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from mlserve.engines.engine import EngineSettings
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import Refused
from mlserve.model.artifact import Artifact
from mlserve.model.rows import Rows
from mlserve.model.tensors import Array
from mlserve.optimize.evaluation.parity import largest_difference
from mlserve.optimize.passes.calibration import calibration_batches, tapped
from mlserve.optimize.passes.graph import drop_unused, graphs, write_graph
from mlserve.optimize.passes.int8_operators import refuse_unless_float32
from mlserve.optimize.passes.step import ALONE, Resources, copy_companions, copy_model, stepped

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

__all__ = ["SmoothQuant"]

Floats = npt.NDArray[np.float64]

# A normalization -> which of its inputs are scale and shift.
_NORMALIZATIONS = {
    "EmbedLayerNormalization": (5, 6),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1, None),
    "SimplifiedLayerNormalization": (1, None),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2, None),
}
_PRODUCTS = ("Attention", "Gemm", "MatMul")
# The transform is exact; float32 rounds otherwise than before.
_TOLERANCE = 1e-4
_COMPARED_BATCHES = 4
_BATCH_ROWS = 8
# A channel that is all but silent would be blown up without bound.
_LEAST, _MOST = 1e-3, 1e3


class SmoothQuant(msgspec.Struct, frozen=True, tag_field="pass", tag="smooth", forbid_unknown_fields=True):
    """float32 to float32, the answers unchanged, so that int8 made of the result loses less.

    Every channel j of a normalization's output is divided by

        s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)

    and the rows j of the weights W it goes into are multiplied by it (Xiao et al. 2023, SmoothQuant, equation 4), with
    X seen on `calibration_rows` of the user's rows.

    The division is folded into the normalization. What else its output goes into (in BERT the residual) is multiplied
    by s again, which engines fuse with the addition that follows. `reach` "all" smooths the other products with weights
    too, by a multiplication before each.

    A model with nothing to smooth comes out as it went in. Raises Refused without rows, and when the answers would
    change.
    """

    alpha: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    reach: Literal["normalized", "all"] = "normalized"
    calibration_rows: Annotated[int, msgspec.Meta(ge=1)] = 128

    def __call__(self, source: Artifact, out: Path, resources: Resources = ALONE) -> Artifact:
        import onnx

        refuse_unless_float32(source, "smoothing")
        model = onnx.load(source.model_path)
        batches, rows = calibration_batches(
            source, resources, "smoothing", rows=self.calibration_rows, batch_rows=_BATCH_ROWS
        )
        groups = list(_groups(model.graph, normalized_only=self.reach == "normalized"))
        if not groups:
            copy_model(source, out)
            copy_companions(source, out)
            return stepped(source, out, self, ("nothing to smooth: no normalization goes into a product with weights",))
        largest: dict[str, Floats] = {}
        with tapped(model, [group.tensor for group in groups], out, resources.threads) as tap:
            for start, stop in batches:
                resources.on_step(f"smoothing: {stop} of {len(rows)} rows")
                for name, values in tap.run(rows.batch(start, stop)).items():
                    seen = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0).astype(np.float64)
                    largest[name] = np.maximum(largest.get(name, seen), seen)
        before = {tensor.name for tensor in model.graph.initializer}
        folded = sum(_smooth(model, group, largest[group.tensor], self.alpha) for group in groups)
        drop_unused(model.graph, before)
        _same_answers(source, write_graph(model, out, source), rows, batches[:_COMPARED_BATCHES])
        products = sum(len(group.products) for group in groups)
        notes = (
            f"{products} products smoothed at {len(groups)} places, {folded} of them inside a normalization",
            f"channels' largest values: of {batches[-1][1]} rows",
        )
        copy_companions(source, out)
        return stepped(source, out, self, notes)


class _Group(msgspec.Struct, frozen=True):
    """An activation, the products with weights that it goes into, the normalization that makes it (None where that
    cannot take the scales), and what else it goes into.
    """

    tensor: str
    products: list[Any]
    normalization: Any
    others: list[Any]


def _groups(graph: "GraphProto", *, normalized_only: bool) -> Iterator[_Group]:
    weights = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    products: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        if _is_product(node, weights):
            products.setdefault(node.input[0], []).append(node)
    for tensor, group in products.items():
        producer = producers.get(tensor)
        normalized = producer is not None and producer.op_type in _NORMALIZATIONS and producer.output[0] == tensor
        if (normalized_only and not normalized) or tensor in weights:
            continue
        if len({_channels(node, weights) for node in group}) != 1:
            continue
        others = [node for node in graph.node if tensor in node.input and node not in group]
        seen = len(group) + sum(name == tensor for node in others for name in node.input)
        foldable = normalized and _scales_in(producer, weights) and _uses(graph, tensor) == seen
        yield _Group(tensor, group, producer if foldable else None, others)


def _is_product(node: "NodeProto", weights: dict[str, Any]) -> bool:
    if node.op_type not in _PRODUCTS or len(node.input) < 2 or node.input[1] not in weights:
        return False
    if node.op_type == "Attention" and node.domain != "com.microsoft":
        return False
    return len(weights[node.input[1]].dims) == 2 and not _attribute(node, "transA")


def _attribute(node: "NodeProto", name: str) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), 0)


def _channels(node: "NodeProto", weights: dict[str, Any]) -> int:
    return int(weights[node.input[1]].dims[_attribute(node, "transB")])


def _uses(graph: "GraphProto", tensor: str) -> int:
    """How often `tensor` is used, by operators at any depth and as an output of the graph."""
    return sum(
        sum(output.name == tensor for output in inner.output)
        + sum(name == tensor for node in inner.node for name in node.input)
        for inner in graphs(graph)
    )


def _scales_in(normalization: "NodeProto", weights: dict[str, Any]) -> bool:
    """Whether scale and shift are there to be changed, and run along the last axis alone."""
    if any(attribute.name == "axis" and attribute.i != -1 for attribute in normalization.attribute):
        return False
    positions = [place for place in _NORMALIZATIONS[normalization.op_type] if place is not None]
    names = [normalization.input[place] for place in positions if place < len(normalization.input)]
    return bool(names) and all(not name or (name in weights and len(weights[name].dims) == 1) for name in names)


def _smooth(model: "ModelProto", group: _Group, largest: Floats, alpha: float) -> bool:
    """Moves the scales; says whether the normalization took them."""
    from onnx import numpy_helper

    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    arrays = {node.input[1]: numpy_helper.to_array(weights[node.input[1]]) for node in group.products}
    scales = _scales(group, largest, arrays, alpha)

    def put(name: str, array: Array) -> str:
        fresh = f"{name}_smoothed_{len(graph.initializer)}"
        graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), fresh))
        return fresh

    made: dict[tuple[str, int], str] = {}
    for node in group.products:
        key = node.input[1], _attribute(node, "transB")
        if key not in made:
            made[key] = put(key[0], arrays[key[0]] * (scales if key[1] else scales[:, None]))
        node.input[1] = made[key]
    if group.normalization is not None:
        for place in _NORMALIZATIONS[group.normalization.op_type]:
            if place is not None and place < len(group.normalization.input) and group.normalization.input[place]:
                name = group.normalization.input[place]
                group.normalization.input[place] = put(name, numpy_helper.to_array(weights[name]) / scales)
        if group.others:
            _multiply(graph, group.tensor, put(group.tensor, scales), group.others)
        return True
    _multiply(graph, group.tensor, put(group.tensor, 1 / scales), group.products)
    return False


def _multiply(graph: "GraphProto", tensor: str, factors: str, consumers: list[Any]) -> None:
    """Gives `consumers` the activation `tensor` times `factors` in its place."""
    from onnx import helper

    scaled = f"{tensor}_scaled"
    first = min(place for place, node in enumerate(graph.node) if node in consumers)
    for node in consumers:
        for place, name in enumerate(node.input):
            if name == tensor:
                node.input[place] = scaled
    graph.node.insert(first, helper.make_node("Mul", [tensor, factors], [scaled], f"{scaled}/Mul"))


def _scales(group: _Group, largest: Floats, arrays: dict[str, Array], alpha: float) -> Floats:
    """[channels]: equation 4, with the weights of all products of the group side by side; 1 for a silent channel."""
    rows = [
        np.abs(arrays[node.input[1]]).max(axis=0 if _attribute(node, "transB") else 1).astype(np.float64)
        for node in group.products
    ]
    weight = np.max(rows, axis=0)
    silent = (largest == 0) | (weight == 0) | ~np.isfinite(largest)
    scales = np.where(silent, 1.0, largest) ** alpha / np.where(silent, 1.0, weight) ** (1 - alpha)
    found: Floats = np.clip(np.where(silent, 1.0, scales), _LEAST, _MOST)
    return found


def _same_answers(source: Artifact, target: Path, rows: Rows, batches: list[tuple[int, int]]) -> None:
    """Raises Refused when the model in `target` answers otherwise than `source`."""
    settings = EngineSettings()
    with (
        contextlib.closing(OnnxEngine(source.model_path, settings)) as before,
        contextlib.closing(OnnxEngine(target, settings)) as after,
    ):
        for start, stop in batches:
            inputs = rows.batch(start, stop)
            difference = largest_difference(before.run(inputs), after.run(inputs))
            if difference.relative > _TOLERANCE:
                size = (
                    difference.reason
                    or f"output '{difference.output}' differs by {difference.relative:.2g} of its size"
                )
                raise Refused(f"smoothing would change the answers: {size}; use the model as it is")
