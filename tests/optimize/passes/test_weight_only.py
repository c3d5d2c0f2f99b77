"""Weights of 4 and 8 bits: size, what they are made of, and what is refused."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import Refused, UsageError
from mlserve.model.rows import ArrayRows
from mlserve.optimize.passes import Cast, Fuse, Quantize, WeightOnly
from mlserve.optimize.precision import weight_precision

FLOAT = TensorProto.FLOAT
node = helper.make_node


def graph_of(artifact):
    return onnx.load(artifact.model_path).graph


def operators(artifact):
    return [each.op_type for each in graph_of(artifact).node]


def notes_of(artifact):
    return artifact.manifest.lineage[-1].notes


def wide(corpus, name="wide", scale=0.1):
    nodes = [node("MatMul", ["x", "w"], ["y"], "product")]
    shape = (FLOAT, ["batch", 512])
    weights = {"w": corpus.normal(512, 512, scale=scale)}
    rows = ArrayRows({"x": corpus.normal(8, 512, seed=1)}, "made up")
    return corpus.write(name, nodes, weights, {"x": shape}, {"y": shape}), rows


@pytest.mark.parametrize(("bits", "share", "precision"), [(4, 0.17, "int4"), (8, 0.3, "int8")])
def test_weights_take_their_bits_and_a_scale(corpus, fresh, bits, share, precision):
    source, _ = wide(corpus)
    made = WeightOnly(bits=bits)(source, fresh())
    assert made.size_bytes < share * source.size_bytes
    assert weight_precision(onnx.load(made.model_path)) == precision
    assert notes_of(made) == (f"1 matrix products with int{bits} weights, a scale for 32",)


def test_more_bits_and_smaller_blocks_are_more_exact(corpus, fresh, error):
    source, rows = wide(corpus)
    before = OnnxEngine(source.model_path)
    ways = (WeightOnly(bits=8), WeightOnly(block_size=16), WeightOnly(), WeightOnly(block_size=256))
    losses = [
        error(before, OnnxEngine(way(source, fresh(str(number))).model_path), rows) for number, way in enumerate(ways)
    ]
    assert losses == sorted(losses)
    assert losses[0] < 0.02
    assert losses[-1] < 0.3


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("level", [0, 4])
def test_the_operator_says_how_it_computes(corpus, fresh, symmetric, level):
    source, _ = wide(corpus)
    made = WeightOnly(symmetric=symmetric, accuracy_level=level)(source, fresh())
    (product,) = graph_of(made).node
    attributes = {each.name: helper.get_attribute_value(each) for each in product.attribute}
    assert attributes.get("accuracy_level", 0) == level
    assert len(product.input) == (3 if symmetric else 4)


def test_a_gemm_becomes_a_product_of_its_name_and_shared_weights_stay_shared(corpus, fresh, error):
    """The first of the two uses its weight transposed."""
    source, rows = corpus.mlp()
    made = WeightOnly(bits=8)(source, fresh())
    assert operators(made) == ["MatMulNBits", "Add", "Relu", "MatMulNBits", "Add"]
    assert [each.name for each in graph_of(made).node] == ["first_Q8", "first_bias", "relu", "second_Q8", "bias"]
    assert error(OnnxEngine(source.model_path), OnnxEngine(made.model_path), rows) < 0.03


def test_two_products_share_one_few_bit_weight(corpus, fresh, error):
    nodes = [node("MatMul", ["x", "w"], ["a"], "one"), node("MatMul", ["a", "w"], ["y"], "two")]
    shape = (FLOAT, ["batch", 256])
    source = corpus.write("shared", nodes, {"w": corpus.normal(256, 256, scale=1 / 16)}, {"x": shape}, {"y": shape})
    made = WeightOnly(bits=8)(source, fresh())
    assert len(graph_of(made).initializer) == 3
    rows = ArrayRows({"x": corpus.normal(8, 256, seed=1)}, "made up")
    assert error(OnnxEngine(source.model_path), OnnxEngine(made.model_path), rows) < 0.03


def lookup(corpus, columns=64, rows=200):
    nodes = [node("Gather", ["table", "tokens"], ["y"], "lookup"), node("MatMul", ["y", "w"], ["z"], "product")]
    weights = {"table": corpus.normal(rows, columns), "w": corpus.normal(columns, 32)}
    inputs = {"tokens": (TensorProto.INT64, ["batch", "sequence"])}
    outputs = {name: (FLOAT, ["batch", "sequence", width]) for name, width in (("y", columns), ("z", 32))}
    return corpus.write(f"lookup-{columns}-{rows}", nodes, weights, inputs, outputs)


@pytest.mark.parametrize(("bits", "loss"), [(8, 0.005), (4, 0.1)])
def test_an_embedding_is_looked_up_in_few_bits(corpus, fresh, bits, loss):
    source = lookup(corpus)
    made = WeightOnly(embedding_bits=bits)(source, fresh())
    assert operators(made) == ["GatherBlockQuantized", "MatMulNBits"]
    tokens = np.arange(200).reshape(4, 50)
    expected, found = (OnnxEngine(each.model_path).run({"tokens": tokens})["y"] for each in (source, made))
    assert np.abs(found - expected).max() < loss * np.abs(expected).max()
    assert f"1 embeddings with int{bits} tables" in notes_of(made)


@pytest.mark.parametrize(
    ("one_pass", "columns", "rows"),
    [(WeightOnly(embedding_bits=0), 64, 200), (WeightOnly(), 48, 200), (WeightOnly(), 64, 10)],
)
def test_a_table_stays_float32_where_it_is_asked_for_or_does_not_fit_or_pay(corpus, fresh, one_pass, columns, rows):
    made = one_pass(lookup(corpus, columns, rows), fresh())
    assert operators(made) == ["Gather", "MatMulNBits"]


def test_what_is_excluded_by_name_stays_float32(corpus, fresh):
    source, _ = corpus.mlp()
    made = WeightOnly(exclude=("first",))(source, fresh())
    assert operators(made) == ["Gemm", "Relu", "MatMulNBits", "Add"]
    with pytest.raises(UsageError, match=r"'nothing'.*'first'"):
        WeightOnly(exclude=("nothing",))(source, fresh("again"))


def test_a_model_of_operators_without_names_takes_no_pattern(corpus, fresh):
    source, _ = corpus.pair()
    with pytest.raises(UsageError, match="have no names"):
        WeightOnly(exclude=("*",))(source, fresh())


def test_fusing_with_separate_weights_leaves_none_out_of_reach(bert, fresh, error):
    joined = WeightOnly(bits=8)(Fuse()(bert.source, fresh("joined")), fresh("joined-int8"))
    apart = WeightOnly(bits=8)(Fuse(separate_weights=True)(bert.source, fresh("apart")), fresh("apart-int8"))
    assert "weights stay in float32 in 2 Attention, 1 EmbedLayerNormalization" in notes_of(joined)
    assert not any("stay in float32" in note for note in notes_of(apart))
    assert apart.size_bytes < 0.7 * joined.size_bytes
    assert error(OnnxEngine(bert.source.model_path), OnnxEngine(apart.model_path), bert.rows) < 0.03


def test_a_model_without_matrix_products_is_refused(corpus, fresh):
    shape = (FLOAT, ["batch", 16])
    source = corpus.write("relu", [node("Relu", ["x"], ["y"])], {}, {"x": shape}, {"y": shape})
    with pytest.raises(Refused, match="no matrix product has a weight"):
        WeightOnly()(source, fresh())
    nodes = [node("Conv", ["x", "w"], ["y"], "conv")]
    image = (FLOAT, ["batch", 3, 8, 8])
    convolution = corpus.write(
        "conv", nodes, {"w": corpus.normal(4, 3, 1, 1)}, {"x": image}, {"y": (FLOAT, ["batch", 4, 8, 8])}
    )
    with pytest.raises(Refused, match="the weights of 1 Conv cannot be so"):
        WeightOnly()(convolution, fresh("again"))


@pytest.mark.parametrize(
    ("before", "words"), [(Quantize(), "quantized already"), (Cast(), "fp16"), (WeightOnly(), "quantized already")]
)
def test_few_bits_are_made_of_float32_only(corpus, fresh, before, words):
    source, _ = corpus.mlp()
    with pytest.raises(Refused, match=words):
        WeightOnly()(before(source, fresh("before")), fresh())
