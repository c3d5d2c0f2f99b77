"""What a graph says of itself: patterns that could be fused, work for one output, weights of a node."""

import numpy as np
import onnx
import pytest

from mlserve.optimize.diagnose.facts import Tensor
from mlserve.optimize.diagnose.graph import node_facts, structure_of

NORMALIZATION = [
    ("Add", ["x", "residual"], ["s"], {"name": "residual"}),
    ("ReduceMean", ["s"], ["mean"], {"name": "mean", "axes": [-1]}),
    ("Sub", ["s", "mean"], ["d"], {"name": "minus"}),
    ("Pow", ["d", "two"], ["sq"], {"name": "square"}),
    ("ReduceMean", ["sq"], ["var"], {"name": "variance", "axes": [-1]}),
    ("Add", ["var", "eps"], ["ve"], {"name": "epsilon"}),
    ("Sqrt", ["ve"], ["sd"], {"name": "root"}),
    ("Div", ["d", "sd"], ["n"], {"name": "divide"}),
    ("Mul", ["n", "gamma"], ["g"], {"name": "scale"}),
    ("Add", ["g", "beta"], ["y"], {"name": "shift"}),
]
GELU = [
    ("Div", ["x", "root2"], ["a"], {"name": "a"}),
    ("Erf", ["a"], ["b"], {"name": "b"}),
    ("Add", ["b", "one"], ["c"], {"name": "c"}),
    ("Mul", ["x", "c"], ["d"], {"name": "d"}),
    ("Mul", ["d", "half"], ["y"], {"name": "e"}),
]
ATTENTION = [
    ("MatMul", ["x", "x"], ["q"], {"name": "scores"}),
    ("Mul", ["q", "half"], ["s"], {"name": "scaled"}),
    ("Softmax", ["s"], ["p"], {"name": "softmax"}),
    ("MatMul", ["p", "x"], ["y"], {"name": "values"}),
]
CLASSIFIER = [("MatMul", ["x", "w"], ["l"], {"name": "logits"}), ("Softmax", ["l"], ["y"], {"name": "softmax"})]
WEIGHTS = {
    name: np.full((8,), value, np.float32)
    for name, value in {
        "two": 2,
        "eps": 1e-5,
        "gamma": 1,
        "beta": 0,
        "root2": 1.4,
        "one": 1,
        "half": 0.5,
        "residual": 3,
    }.items()
} | {"w": np.eye(8, dtype=np.float32)}


def structure(nets, folder, nodes):
    used = {name for node in nodes for name in node[1]}
    weights = {name: array for name, array in WEIGHTS.items() if name in used}
    path = nets.save(folder / "p.onnx", nodes, [("x", "f", [8, 8])], [("y", "f", [8, 8])], weights)
    return structure_of(onnx.load(path), optimized=False)


@pytest.mark.parametrize(
    ("nodes", "kind", "parts"),
    [
        (
            NORMALIZATION,
            "layer normalization",
            {"mean", "minus", "square", "variance", "epsilon", "root", "divide", "scale", "shift"},
        ),
        (GELU, "GELU", {"a", "b", "c", "d", "e"}),
        (ATTENTION, "attention", {"scaled", "softmax"}),
    ],
)
def test_a_decomposed_pattern_is_found_with_all_its_nodes(nets, tmp_path, nodes, kind, parts):
    (pattern,) = structure(nets, tmp_path, nodes).patterns
    assert (pattern.kind, pattern.count, set(pattern.nodes)) == (kind, 1, parts)


def test_a_softmax_at_the_end_of_a_classifier_is_no_attention(nets, tmp_path):
    """The negative control."""
    assert structure(nets, tmp_path, CLASSIFIER).patterns == ()


def test_work_for_one_output_alone_is_told_and_shared_work_is_not(nets, tmp_path):
    path = nets.save(
        tmp_path / "two.onnx",
        [
            ("Relu", ["x"], ["r"], {"name": "shared"}),
            ("Abs", ["r"], ["y"], {"name": "first"}),
            ("Exp", ["r"], ["e"], {"name": "exp"}),
            ("Neg", ["e"], ["z"], {"name": "neg"}),
        ],
        [("x", "f", [8])],
        [("y", "f", [8]), ("z", "f", [8])],
        {},
    )
    found = structure_of(onnx.load(path), optimized=False)
    assert [(only.output, set(only.nodes)) for only in found.outputs_only] == [("z", {"exp", "neg"})]
    assert (found.opset, found.nodes, found.weights_precision) == (17, 4, "fp32")


def test_a_node_knows_its_weights_by_their_place_and_its_numbers(nets, tmp_path):
    nodes = [("Gemm", ["x", "w", "gamma"], ["y"], {"name": "layer", "transB": 1})]
    weights = {name: WEIGHTS[name] for name in ("w", "gamma")}
    path = nets.save(tmp_path / "g.onnx", nodes, [("x", "f", ["n", 8])], [("y", "f", ["n", 8])], weights)
    facts = node_facts(onnx.load(path))["layer"]
    assert facts.weights == {1: Tensor("float32", (8, 8)), 2: Tensor("float32", (8,))}
    assert facts.attributes == {"transB": 1}
