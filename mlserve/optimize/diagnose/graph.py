"""What an ONNX graph says of itself: constants and attributes of its nodes, groups that could be one fused operator,
and work that only one output needs.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from mlserve.optimize.diagnose.facts import OutputOnly, Pattern, Structure, Tensor
from mlserve.optimize.precision import weight_precision

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

__all__ = ["NodeFacts", "node_facts", "structure_of"]

_PRODUCTS = ("MatMul", "FusedMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul")
_NORMALIZING = ("Cast", "Mul", "Pow", "ReduceMean", "Sub")
_BETWEEN_PRODUCTS = ("Add", "Cast", "Div", "Dropout", "Mul", "Where")
# How far back a pattern is followed; the longest, a normalization, has five steps.
_DEEPEST = 6


class NodeFacts(msgspec.Struct, frozen=True):
    """Constant inputs of a node by their place, and its integer attributes."""

    weights: Mapping[int, Tensor]
    attributes: Mapping[str, int]


def node_facts(model: "ModelProto") -> dict[str, NodeFacts]:
    """Node name -> what the graph knows of it, inner graphs (If, Loop) too."""
    found: dict[str, NodeFacts] = {}
    constants: dict[str, Tensor] = {}
    for graph in _graphs(model.graph):
        constants |= {tensor.name: Tensor(_dtype(tensor.data_type), tuple(tensor.dims)) for tensor in graph.initializer}
        for node in graph.node:
            weights = {place: constants[name] for place, name in enumerate(node.input) if name in constants}
            attributes = {
                attribute.name: attribute.i for attribute in node.attribute if attribute.type == attribute.INT
            }
            found[node.name] = NodeFacts(weights, attributes)
    return found


def structure_of(model: "ModelProto", *, optimized: bool) -> Structure:
    """The structure of `model`, which is what the engine made of the file if `optimized`, else the file."""
    links = _Links(model.graph)
    patterns = (
        _pattern("layer normalization", (_normalization(node, links) for node in model.graph.node)),
        _pattern("GELU", (_gelu(node, links) for node in model.graph.node)),
        _pattern("attention", (_attention(node, links) for node in model.graph.node)),
    )
    return Structure(
        opset=max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0),
        nodes=sum(len(graph.node) for graph in _graphs(model.graph)),
        weights_precision=weight_precision(model),
        optimized=optimized,
        patterns=tuple(pattern for pattern in patterns if pattern.count),
        outputs_only=tuple(_outputs_only(model.graph, links)),
    )


class _Links:
    """Who makes each value of a graph and who uses it."""

    def __init__(self, graph: "GraphProto") -> None:
        self.made_by = {name: node for node in graph.node for name in node.output if name}
        self.used_by: dict[str, list[NodeProto]] = defaultdict(list)
        for node in graph.node:
            for inner in (node, *(each for sub in _subgraphs(node) for one in _graphs(sub) for each in one.node)):
                for name in inner.input:
                    self.used_by[name].append(node)

    def before(self, node: "NodeProto") -> "list[NodeProto]":
        return [self.made_by[name] for name in node.input if name in self.made_by]

    def after(self, node: "NodeProto") -> "list[NodeProto]":
        return [user for name in node.output for user in self.used_by[name]]


def _pattern(kind: str, matches: "Iterable[list[NodeProto]]") -> Pattern:
    found = [match for match in matches if match]
    return Pattern(kind, len(found), tuple(dict.fromkeys(node.name for match in found for node in match)))


def _normalization(node: "NodeProto", links: _Links) -> "list[NodeProto]":
    """`(x - mean(x)) / sqrt(mean((x - mean(x))^2) + e) * w + b`, found by its root; [] when `node` is not one."""
    if node.op_type != "Sqrt":
        return []
    # The constant that keeps the root from zero. What was added before the first mean is no part of the normalization.
    kept = [made for made in links.before(node) if made.op_type == "Add"]
    inside = [found for one in [node, *kept] for found in _back(one, links, _NORMALIZING)]
    if not any(found.op_type == "ReduceMean" for found in inside):
        return []
    divided = [user for user in links.after(node) if user.op_type in ("Div", "Reciprocal")]
    scaled = [user for made in divided for user in links.after(made) if user.op_type == "Mul"]
    shifted = [user for made in scaled for user in links.after(made) if user.op_type == "Add"]
    return [*inside, *kept, node, *divided, *scaled, *shifted[:1]]


def _gelu(node: "NodeProto", links: _Links) -> "list[NodeProto]":
    """`x / 2 (1 + erf(x / sqrt 2))`, found by its error function; [] when `node` is none."""
    if node.op_type != "Erf":
        return []
    scaled = [made for made in links.before(node) if made.op_type in ("Div", "Mul")]
    added = [user for user in links.after(node) if user.op_type == "Add"]
    products = [user for made in added for user in links.after(made) if user.op_type == "Mul"]
    halved = [user for made in products for user in links.after(made) if user.op_type == "Mul"]
    return [*scaled, node, *added, *products, *halved[:1]]


def _attention(node: "NodeProto", links: _Links) -> "list[NodeProto]":
    """The softmax between two products and all that stands between them; [] when `node` is none."""
    if node.op_type != "Softmax":
        return []
    before = _back(node, links, _BETWEEN_PRODUCTS)
    scores = any(made.op_type in _PRODUCTS for found in [node, *before] for made in links.before(found))
    weighted = any(user.op_type in _PRODUCTS for user in links.after(node))
    return [*before, node] if scores and weighted else []


def _back(node: "NodeProto", links: _Links, through: tuple[str, ...]) -> "list[NodeProto]":
    """Every node of the kinds `through` from which `node` can be reached over nothing but such nodes."""
    found: dict[str, NodeProto] = {}
    edge = [node]
    for _ in range(_DEEPEST):
        edge = [made for one in edge for made in links.before(one) if made.op_type in through]
        found |= {made.output[0]: made for made in edge}
    return list(found.values())


def _outputs_only(graph: "GraphProto", links: _Links) -> Iterator[OutputOnly]:
    """For each output but the first, the nodes that no other output needs."""
    needs = {output.name: _needed(output.name, links) for output in graph.output}
    wanted = Counter(name for needed in needs.values() for name in needed)
    for output in graph.output[1:]:
        alone = [links.made_by[name].name for name in needs[output.name] if wanted[name] == 1]
        if alone:
            yield OutputOnly(output.name, tuple(sorted(alone)))


def _needed(output: str, links: _Links) -> set[str]:
    """The first outputs of all nodes that `output` depends on."""
    found: set[str] = set()
    waiting = [output]
    while waiting:
        node = links.made_by.get(waiting.pop())
        if node is not None and node.output[0] not in found:
            found.add(node.output[0])
            waiting += node.input
            waiting += [name for sub in _subgraphs(node) for one in _graphs(sub) for n in one.node for name in n.input]
    return found


def _graphs(graph: "GraphProto") -> "Iterator[GraphProto]":
    """`graph` and those inside its control flow, outer first."""
    yield graph
    for node in graph.node:
        for inner in _subgraphs(node):
            yield from _graphs(inner)


def _subgraphs(node: "NodeProto") -> "list[GraphProto]":
    return [
        graph
        for attribute in node.attribute
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)
    ]


def _dtype(data_type: int) -> str:
    """ONNX's number of a type -> its name: `float32`, `int8`, `int4`."""
    from onnx import TensorProto

    name = TensorProto.DataType.Name(data_type).lower()
    return str({"float": "float32", "double": "float64"}.get(name, name))
