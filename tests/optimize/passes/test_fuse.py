"""Fusions: what is fused, what keeps its name, and the answers that must not change."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.transformers.optimizer import optimize_model

from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import UsageError
from mlserve.model.rows import ArrayRows
from mlserve.optimize.evaluation.parity import largest_difference
from mlserve.optimize.passes import Fuse, Quantize
from mlserve.optimize.passes.step import Resources, quiet

FLOAT = TensorProto.FLOAT
node = helper.make_node
ROW, RESULT = {"x": (FLOAT, ["batch", 16])}, {"y": (FLOAT, ["batch", 16])}


def graph_of(artifact):
    return onnx.load(artifact.model_path).graph


def operators(artifact):
    return [each.op_type for each in graph_of(artifact).node]


def notes_of(artifact):
    return artifact.manifest.lineage[-1].notes


def test_a_transformer_is_fused_and_what_remains_is_simplified(bert, fresh):
    made = Fuse()(bert.source, fresh())
    *fused, counted = notes_of(made)
    assert fused == ["2 Attention", "2 BiasGelu", "1 EmbedLayerNormalization", "4 SkipLayerNormalization"]
    before, after = (int(word) for word in counted.split() if word.isdigit())
    assert after == len(operators(made)) < before / 5


def test_padding_on_either_side_gives_the_same_answers(bert, fresh):
    """As onnxruntime fuses by default, a mask is read as a number of tokens, from the left."""
    made = Fuse()(bert.source, fresh())
    tokens = np.arange(5, 41).reshape(3, 12)
    mask = np.array([[1] * 12, [1] * 7 + [0] * 5, [0] * 5 + [1] * 7])
    rows = {"input_ids": tokens, "attention_mask": mask}
    expected = OnnxEngine(bert.source.model_path).run(rows)
    assert largest_difference(expected, OnnxEngine(made.model_path).run(rows)).relative < 1e-5
    with quiet():
        default = optimize_model(str(bert.source.model_path), "bert", opt_level=0)
    default.save_model_to_file(str(fresh("default") / "model.onnx"))
    found = OnnxEngine(made.directory.parent / "default" / "model.onnx").run(rows)
    assert not largest_difference(expected, found).acceptable


def test_separate_weights_stay_in_products_and_lookups(bert, fresh):
    made = Fuse(separate_weights=True)(bert.source, fresh())
    counts = {name: operators(made).count(name) for name in ("Attention", "MultiHeadAttention", "MatMul")}
    assert counts == {"Attention": 0, "MultiHeadAttention": 2, "MatMul": 12}
    assert "EmbedLayerNormalization" not in operators(made)


def test_either_part_can_be_left_out(bert, fresh):
    simplified = Fuse(transformer=False)(bert.source, fresh("simplified"))
    assert not any(each.domain for each in graph_of(simplified).node)
    assert len(operators(simplified)) < len(operators(bert.source))
    fused = Fuse(simplify=False)(bert.source, fresh("fused"))
    assert "Attention" in operators(fused)
    neither = Fuse(transformer=False, simplify=False)(bert.source, fresh("neither"))
    assert neither.model_path.read_bytes() == bert.source.model_path.read_bytes()
    assert notes_of(neither) == ("nothing to fuse",)


def test_batch_normalization_goes_into_the_convolution_which_keeps_its_name(digits, fresh, error):
    made = Fuse()(digits.source, fresh(), Resources(rows=digits.rows))
    assert "BatchNormalization" in operators(digits.source)
    assert "BatchNormalization" not in operators(made)
    assert {"first/Conv", "second/Conv", "head/Gemm"} <= {each.name for each in graph_of(made).node}
    assert error(OnnxEngine(digits.source.model_path), OnnxEngine(made.model_path), digits.held_out) < 1e-5


def test_what_is_excluded_by_name_stays_as_it_is(digits, bert, fresh):
    made = Fuse(exclude=("first/Conv",))(digits.source, fresh("digits"))
    assert "BatchNormalization" in operators(made)
    norms = [each.name for each in graph_of(bert.source).node if each.op_type == "LayerNormalization"]
    spared = Fuse(exclude=(norms[-1],))(bert.source, fresh("spared"))
    assert "BiasGelu" in operators(spared)
    assert ("LayerNormalization", norms[-1]) in [(each.op_type, each.name) for each in graph_of(spared).node]
    with pytest.raises(UsageError, match=r"'typo'.*'first/Conv'"):
        Fuse(exclude=("typo",))(digits.source, fresh("typo"))


def test_what_depends_on_no_input_is_computed_once(corpus, fresh):
    nodes = [
        node("Mul", ["one", "two"], ["product"], "constant"),
        node("Add", ["x", "product"], ["y"], "add"),
        node("Exp", ["x"], ["unused"], "for-nothing"),
    ]
    weights = {"one": corpus.normal(16), "two": corpus.normal(16, seed=1)}
    source = corpus.write("constants", nodes, weights, ROW, RESULT)
    made = Fuse()(source, fresh())
    assert [each.name for each in graph_of(made).node] == ["add"]
    assert notes_of(made) == ("3 operators became 1",)


def test_an_input_that_nothing_uses_stays_an_input(corpus, fresh):
    nodes = [node("Identity", ["x"], ["a"], "identity"), node("Relu", ["a"], ["y"], "relu")]
    inputs = {"unused": (FLOAT, ["batch", 3]), **ROW}
    source = corpus.write("spare", nodes, {}, inputs, RESULT)
    made = Fuse()(source, fresh())
    assert OnnxEngine(made.model_path).inputs == source.manifest.inputs
    assert operators(made) == ["Relu"]


def test_a_model_in_int8_is_left_as_it_is(corpus, fresh):
    source, _ = corpus.mlp()
    quantized = Quantize()(source, fresh("int8"))
    made = Fuse()(quantized, fresh())
    assert made.model_path.read_bytes() == quantized.model_path.read_bytes()
    assert "fusions come before" in notes_of(made)[0]


def test_a_model_that_no_made_up_rows_fit_is_compared_on_the_rows_that_are_given(corpus, fresh):
    nodes = [
        node("Identity", ["x"], ["a"], "identity"),
        node("Reshape", ["a", "shape"], ["b"], "reshape"),
        node("Relu", ["b"], ["y"], "relu"),
    ]
    inputs = {"x": (FLOAT, ["batch", "length"])}
    shape = {"shape": np.array([-1, 5])}
    source = corpus.write("fives", nodes, shape, inputs, {"y": (FLOAT, ["rows", 5])})
    assert "could not be compared" in notes_of(Fuse()(source, fresh("blind")))[0]
    rows = ArrayRows({"x": corpus.normal(4, 5)}, "made up")
    assert notes_of(Fuse()(source, fresh(), Resources(rows=rows))) == ("3 operators became 2",)


@pytest.mark.parametrize("random", [True, False])
def test_a_fusion_that_changes_the_answers_is_not_used(corpus, fresh, random, capsys):
    """onnxruntime seeds noise by its place in the graph, so a fusion before it changes it."""
    nodes = [
        node("Div", ["x", "root2"], ["scaled"]),
        node("Erf", ["scaled"], ["erf"]),
        node("Add", ["erf", "one"], ["shifted"]),
        node("Mul", ["x", "shifted"], ["product"]),
        node("Mul", ["product", "half"], ["gelu"]),
        node("RandomNormalLike" if random else "Relu", ["gelu"], ["noise"]),
        node("Add", ["gelu", "noise"], ["y"]),
    ]
    weights = {"root2": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    source = corpus.write("gelu", nodes, weights, ROW, RESULT)
    made = Fuse()(source, fresh())
    if random:
        assert "not fused: it would change the answers" in notes_of(made)[0]
        assert made.model_path.read_bytes() == source.model_path.read_bytes()
    else:
        assert notes_of(made) == ("1 Gelu", "7 operators became 3")
    assert not capsys.readouterr().out
