"""Weight-only quantization: weights to 4 or 8 bits in small blocks, activations as they are."""

import contextlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from mlserve.engines.engine import EngineSettings
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import EngineError, InvalidRequest, Refused
from mlserve.model.artifact import Artifact
from mlserve.model.synthesis import synthesize
from mlserve.optimize.disk import no_space_left
from mlserve.optimize.passes.graph import drop_unused, excluded_names, graphs, turn_weights, write_graph
from mlserve.optimize.passes.int8_operators import refuse_unless_float32
from mlserve.optimize.passes.step import ALONE, Resources, copy_companions, quiet, stepped

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

__all__ = ["WeightOnly"]

_OWN_DOMAIN = "com.microsoft"
# A smaller table saves nothing worth a rounding error; positions and token types are often that small.
_SMALLEST_TABLE = 4096
# What holds weights that no kernel takes in few bits.
_CLOSED = ("Attention", "Conv", "EmbedLayerNormalization", "GRU", "LSTM")


class WeightOnly(msgspec.Struct, frozen=True, tag_field="pass", tag="weight-only", forbid_unknown_fields=True):
    """Weights of matrix products to 4 or 8 bits (`MatMulNBits`), rounded to the nearest; needs no calibration data.

    Each `block_size` weights of a column share a scale and, unless `symmetric`, a zero point. `accuracy_level` 4 lets
    the kernel round activations to int8 on the way, 0 computes in float32. Embedding tables, where their rows divide
    into blocks, are kept in `embedding_bits`; 0 leaves them in float32. Operators whose name matches one of the
    patterns `exclude` stay as they are.

    It is for size, and for speed where the memory is the bottleneck: one row at a time through large layers. Fuse with
    `separate_weights` before it: weights inside Attention and EmbedLayerNormalization cannot be reached.

    Raises Refused when the model holds nothing to quantize, or weights that are not float32, UsageError for a pattern
    that matches no operator.
    """

    bits: Literal[4, 8] = 4
    block_size: Literal[16, 32, 64, 128, 256] = 32
    symmetric: bool = False
    accuracy_level: Literal[0, 4] = 4
    embedding_bits: Literal[0, 4, 8] = 8
    exclude: tuple[str, ...] = ()

    def __call__(self, source: Artifact, out: Path, resources: Resources = ALONE) -> Artifact:
        import onnx

        refuse_unless_float32(source, f"int{self.bits}")
        model = onnx.load(source.model_path)
        excluded = excluded_names(model, self.exclude)
        turn_weights(model)
        for graph in graphs(model.graph):
            _open_gemms(graph, excluded)
        tables = _quantize_tables(model, self, excluded) if self.embedding_bits else 0
        model = _quantize_products(model, self, excluded)
        notes = _what_changed(model, self, tables)
        _check(source, write_graph(model, out, source), self, resources.threads)
        copy_companions(source, out)
        return stepped(source, out, self, notes)


def _open_gemms(graph: "GraphProto", excluded: frozenset[str]) -> None:
    """A Gemm with a plain weight becomes the MatMul of its name, and an Add: few-bit kernels take no Gemm."""
    from onnx import helper

    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type != "Gemm" or node.name in excluded or not _plain(node):
            nodes.append(node)
            continue
        biased = len(node.input) > 2 and node.input[2]
        product = f"{node.output[0]}_product" if biased else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], node.input[1]], [product], name=node.name))
        if biased:
            name = f"{node.name}_bias" if node.name else ""
            nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=name))
    del graph.node[:]
    graph.node.extend(nodes)


def _plain(gemm: "NodeProto") -> bool:
    """Whether it computes a b + c."""
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    return all(
        (attribute.f if attribute.name in ("alpha", "beta") else attribute.i) == plain[attribute.name]
        for attribute in gemm.attribute
    )


def _quantize_products(model: "ModelProto", wanted: WeightOnly, excluded: frozenset[str]) -> "ModelProto":
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    algorithm = DefaultWeightOnlyQuantConfig(
        block_size=wanted.block_size,
        is_symmetric=wanted.symmetric,
        accuracy_level=wanted.accuracy_level,
        bits=wanted.bits,
        op_types_to_quantize=("MatMul",),
    )
    try:
        with quiet():
            quantizer = MatMulNBitsQuantizer(model, nodes_to_exclude=sorted(excluded), algo_config=algorithm)
            quantizer.process()
    except Exception as error:  # the quantizer fails in as many ways as there are graphs
        if no_space_left(error):
            raise
        raise Refused(f"int{wanted.bits} cannot be made of this model: {type(error).__name__}: {error}") from error
    quantized: ModelProto = quantizer.model.model
    for graph in graphs(quantized.graph):
        _drop_doubles(graph)
    return quantized


def _drop_doubles(graph: "GraphProto") -> None:
    """Two products that share a weight have it quantized twice, under one name."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    if len(tensors) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(tensors.values())


def _quantize_tables(model: "ModelProto", wanted: WeightOnly, excluded: frozenset[str]) -> int:
    """Makes a GatherBlockQuantized of every Gather that looks up rows of a large table; says how many."""
    from onnx import helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    done: set[str] = set()
    count = 0
    for node in model.graph.node:
        table = weights.get(node.input[0]) if node.op_type == "Gather" and node.name not in excluded else None
        if table is None or any(attribute.i for attribute in node.attribute if attribute.name == "axis"):
            continue
        if table.data_type != table.FLOAT or len(table.dims) != 2:
            continue
        rows, columns = table.dims
        if rows * columns < _SMALLEST_TABLE or columns % wanted.block_size:
            continue
        values, scales = f"{table.name}_Q{wanted.embedding_bits}_table", f"{table.name}_table_scales"
        if table.name not in done:
            model.graph.initializer.extend(_table(table, wanted, values, scales))
            done.add(table.name)
        node.CopyFrom(
            helper.make_node(
                "GatherBlockQuantized",
                [values, node.input[1], scales],
                [node.output[0]],
                name=node.name,
                domain=_OWN_DOMAIN,
                gather_axis=0,
                quantize_axis=1,
                block_size=wanted.block_size,
                bits=wanted.embedding_bits,
            )
        )
        count += 1
    drop_unused(model.graph, done)
    return count


def _table(table: Any, wanted: WeightOnly, values: str, scales: str) -> list[Any]:
    """A table [rows, columns] as integers [rows, columns] (two to a byte when of 4 bits) and scales [rows, blocks]."""
    from onnx import numpy_helper

    array: npt.NDArray[np.float32] = numpy_helper.to_array(table)
    blocks = array.reshape(len(array), -1, wanted.block_size)
    zero = 1 << (wanted.embedding_bits - 1)
    steps = np.abs(blocks).max(axis=2, keepdims=True) / (zero - 1)
    integers = np.round(blocks / np.where(steps, steps, 1.0)) + zero
    packed = integers.reshape(array.shape).astype(np.uint8)
    if wanted.embedding_bits == 4:
        packed = np.bitwise_or(packed[:, 0::2], np.left_shift(packed[:, 1::2], np.uint8(4)))
    return [numpy_helper.from_array(packed, values), numpy_helper.from_array(steps[:, :, 0], scales)]


def _check(source: Artifact, target: Path, wanted: WeightOnly, threads: int) -> None:
    """Raises Refused when onnxruntime does not load or run the result: not every machine has every kernel."""
    inputs = synthesize(source.manifest.inputs, 2, np.random.default_rng(3))
    settings = EngineSettings(threads=threads)
    with contextlib.closing(OnnxEngine(source.model_path, settings)) as before:
        try:
            before.run(inputs)
        except (EngineError, InvalidRequest):
            inputs = {}  # made-up rows say nothing of a model that takes none
    try:
        with contextlib.closing(OnnxEngine(target, settings)) as after:
            if inputs:
                after.run(inputs)
    except (EngineError, InvalidRequest) as error:
        raise Refused(
            f"int{wanted.bits} weights in blocks of {wanted.block_size} with accuracy_level {wanted.accuracy_level} "
            f"do not run on this machine: {error}"
        ) from error


def _what_changed(model: "ModelProto", wanted: WeightOnly, tables: int) -> tuple[str, ...]:
    """Raises Refused when nothing did."""
    counts = Counter(node.op_type for graph in graphs(model.graph) for node in graph.node)
    closed = ", ".join(f"{counts[name]} {name}" for name in _CLOSED if counts[name])
    if not counts["MatMulNBits"] and not tables:
        what = f"the weights of {closed} cannot be so" if closed else "no matrix product has a weight"
        raise Refused(f"int{wanted.bits} weights bring nothing for this model: {what}; keep float32")
    notes = [f"{counts['MatMulNBits']} matrix products with int{wanted.bits} weights, a scale for {wanted.block_size}"]
    if tables:
        notes.append(f"{tables} embeddings with int{wanted.embedding_bits} tables")
    if closed:
        notes.append(f"weights stay in float32 in {closed}")
    return tuple(notes)
