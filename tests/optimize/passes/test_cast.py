"""fp16 and bf16: the size, the range, what must keep float32, and what is refused."""

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import Refused, UsageError
from mlserve.model.rows import ArrayRows
from mlserve.optimize.passes import Cast, Fuse, Quantize, WeightOnly
from mlserve.optimize.passes.lowering import largest_number
from mlserve.optimize.passes.step import Resources

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16
ROW = {"x": (FLOAT, ["batch", 16])}
RESULT = {"y": (FLOAT, ["batch", 16])}
node = helper.make_node


def graph_of(artifact):
    return onnx.load(artifact.model_path).graph


def types_of(artifact):
    return {tensor.name: tensor.data_type for tensor in graph_of(artifact).initializer}


def notes_of(artifact):
    return artifact.manifest.lineage[-1].notes


def answers(artifact, **inputs):
    return OnnxEngine(artifact.model_path).run(inputs)["y"]


def exact(artifact, x):
    """The answers with every operator computed in its own type; onnxruntime computes much of fp16 in float32."""
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(str(artifact.model_path)).run(None, {"x": x})[0]


def naive(source, folder):
    """What a converter makes that does not look at values."""
    model = convert_float_to_float16(onnx.load(source.model_path), keep_io_types=True, op_block_list=[])
    model = OnnxModel(model)
    model.topological_sort()
    model.save_model_to_file(str(folder / "model.onnx"))
    return msgspec.structs.replace(source, directory=folder)


def test_weights_take_half_the_size(corpus, fresh):
    weights = {f"w{number}": corpus.normal(256, 256, seed=number, scale=0.1) for number in range(2)}
    nodes = [node("MatMul", ["x", "w0"], ["a"], "one"), node("MatMul", ["a", "w1"], ["y"], "two")]
    shape = (FLOAT, ["batch", 256])
    source = corpus.write("wide", nodes, weights, {"x": shape}, {"y": shape})
    made = Cast()(source, fresh())
    assert made.size_bytes < 0.51 * source.size_bytes
    assert set(types_of(made).values()) == {FLOAT16}
    assert notes_of(made)[0] == "2 operators in fp16"
    assert "moved by at most" in notes_of(made)[-1]


def climbing(corpus):
    """Its intermediate values are a million times the input."""
    nodes = [
        node("Mul", ["x", "thousand"], ["a"], "up"),
        node("Mul", ["a", "thousand"], ["b"], "further"),
        node("Div", ["b", "million"], ["c"], "down"),
        node("MatMul", ["c", "w"], ["y"], "product"),
    ]
    weights = {"thousand": np.float32(1e3), "million": np.float32(1e6), "w": corpus.normal(16, 16)}
    return corpus.write("climbing", nodes, weights, ROW, RESULT)


def test_what_would_overflow_stays_finite(corpus, fresh):
    source = climbing(corpus)
    x = corpus.normal(8, 16, seed=4)
    expected = answers(source, x=x)
    made = Cast()(source, fresh())
    for found in (answers(made, x=x), exact(made, x)):
        assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()
    assert "2 stay in float32: values too large" in notes_of(made)
    assert types_of(made)["w_fp16"] == FLOAT16
    assert not np.isfinite(exact(naive(source, fresh("naive")), x)).all()


@pytest.mark.parametrize(("size", "stay"), [(1.0, 0), (100.0, 2)])
def test_the_range_is_measured_on_the_rows_that_are_given(corpus, fresh, size, stay):
    nodes = [node("Mul", ["x", "c"], ["a"], "up"), node("MatMul", ["a", "w"], ["y"], "product")]
    weights = {"c": np.float32(1e3), "w": corpus.normal(16, 16, scale=0.1)}
    source = corpus.write("measured", nodes, weights, ROW, RESULT)
    rows = ArrayRows({"x": corpus.normal(32, 16, seed=3, scale=size)}, "made up")
    if stay == 2:
        with pytest.raises(Refused, match="no float32 weights that could be fp16"):
            Cast()(source, fresh(), Resources(rows=rows))
    else:
        made = Cast()(source, fresh(), Resources(rows=rows))
        assert notes_of(made)[0] == "2 operators in fp16"


def test_a_mask_keeps_its_lowest_number_though_no_row_hides_anything(corpus, fresh, error):
    source, _ = corpus.encoder()
    tokens = np.arange(2, 14).reshape(3, 4)
    seen = ArrayRows({"input_ids": tokens, "attention_mask": np.ones_like(tokens)}, "made up")
    made = Cast()(source, fresh(), Resources(rows=seen))
    mask = np.array([[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]])
    rows = ArrayRows({"input_ids": tokens, "attention_mask": mask}, "made up")
    assert error(OnnxEngine(source.model_path), OnnxEngine(made.model_path), rows) < 0.01
    graph = graph_of(made)
    softmax = next(each for each in graph.node if each.op_type == "Softmax")
    assert softmax.input[0] == "masked"


def test_rows_that_do_not_run_ask_for_real_ones(corpus, fresh):
    """Nothing in this artifact says that its vocabulary is smaller than most."""
    source, _ = corpus.encoder()
    with pytest.raises(Refused, match=r"out of data bounds.* give real ones with --data"):
        Cast()(source, fresh())


def test_a_size_that_is_computed_in_float_is_not_rounded(corpus, fresh):
    nodes = [
        node("Shape", ["x"], ["shape"], "shape"),
        node("Cast", ["shape"], ["sizes"], "to_float", to=FLOAT),
        node("Mul", ["sizes", "one"], ["scaled"], "scale"),
        node("Cast", ["scaled"], ["whole"], "to_integer", to=TensorProto.INT64),
        node("Mul", ["x", "w"], ["product"], "product"),
        node("Reshape", ["product", "whole"], ["y"], "reshape"),
    ]
    weights = {"one": np.ones(2, np.float32), "w": corpus.normal(4099)}
    shape = (FLOAT, ["batch", 4099])
    source = corpus.write("sizes", nodes, weights, {"x": shape}, {"y": shape})
    made = Cast()(source, fresh())
    x = corpus.normal(2, 4099, seed=1)
    assert np.abs(exact(made, x) - answers(source, x=x)).max() < 0.02
    assert "3 stay in float32: sizes and indices" in notes_of(made)
    with pytest.raises(ValueError, match="reshape"):
        exact(naive(source, fresh("naive")), x)


def test_a_weight_too_small_for_fp16_does_not_become_zero(corpus, fresh):
    nodes = [
        node("Relu", ["x"], ["a"], "relu"),
        node("Add", ["a", "epsilon"], ["b"], "add"),
        node("Div", ["a", "b"], ["y"], "divide"),
    ]
    source = corpus.write("tiny", nodes, {"epsilon": np.full(16, 1e-12, np.float32)}, ROW, RESULT)
    made = Cast()(source, fresh())
    assert np.isfinite(exact(made, -np.ones((1, 16), np.float32))).all()
    assert "16 of 16 weights are too small for the full precision of fp16" in notes_of(made)
    assert np.float16(1e-12) == 0


def test_control_flow_keeps_float32_inside(corpus, fresh):
    branch = {
        name: helper.make_graph(
            [node(operator, ["product", "c"], [f"{name}_y"], name)],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", FLOAT, None)],
        )
        for name, operator in (("then", "Add"), ("else", "Mul"))
    }
    nodes = [
        node("MatMul", ["x", "w"], ["product"], "product"),
        node("ReduceMax", ["x"], ["top"], "top", keepdims=0),
        node("Greater", ["top", "zero"], ["positive"], "greater"),
        node("If", ["positive"], ["y"], "if", then_branch=branch["then"], else_branch=branch["else"]),
    ]
    weights = {"w": corpus.normal(16, 16), "c": np.float32(3), "zero": np.float32(0)}
    source = corpus.write("branches", nodes, weights, ROW, RESULT)
    made = Cast()(source, fresh())
    for sign in (1, -1):
        x = sign * np.abs(corpus.normal(4, 16, seed=2))
        expected = answers(source, x=x)
        assert np.abs(answers(made, x=x) - expected).max() < 0.01 * np.abs(expected).max()
    assert types_of(made) == {"w_fp16": FLOAT16, "c": FLOAT, "zero_fp16": FLOAT16}


def test_what_is_excluded_by_name_keeps_its_float32_weight(corpus, fresh):
    source, _ = corpus.mlp()
    made = Cast(exclude=("sec*",))(source, fresh())
    assert types_of(made) == {"w": FLOAT, "w_fp16": FLOAT16, "b_fp16": FLOAT16}
    assert "1 stay in float32: excluded" in notes_of(made)
    product = next(each for each in graph_of(made).node if each.name == "second")
    assert list(product.input) == ["r", "w"]


def test_a_pattern_that_names_no_operator_is_an_error(corpus, fresh):
    source, _ = corpus.mlp()
    with pytest.raises(UsageError, match=r"'third'.*'first'"):
        Cast(exclude=("third",))(source, fresh())


def test_a_type_that_an_operator_does_not_have_is_not_forced_on_it(corpus, fresh):
    """Resize scales by float32 factors whatever it resizes."""
    nodes = [
        node("Mul", ["x", "w"], ["a"], "product"),
        node("Resize", ["a", "", "factors"], ["y"], "resize", mode="nearest"),
    ]
    weights = {"w": corpus.normal(16), "factors": np.array([1, 2], np.float32)}
    source = corpus.write("resized", nodes, weights, ROW, {"y": (FLOAT, ["batch", 32])})
    made = Cast()(source, fresh())
    assert types_of(made) == {"w_fp16": FLOAT16, "factors": FLOAT}
    assert answers(made, x=np.ones((2, 16), np.float32)).shape == (2, 32)


def test_weights_that_are_constants_or_inputs_too_are_cast(corpus, fresh):
    source, _ = corpus.mlp()
    model = onnx.load(source.model_path)
    model.ir_version = 3
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "b"]
    model.graph.initializer.remove(bias)
    model.graph.node.insert(0, node("Constant", [], ["b"], "constant", value=bias))
    model.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [32, 32]))
    onnx.save(model, source.model_path)
    made = Cast()(source, fresh())
    assert types_of(made) == {"w_fp16": FLOAT16, "b_fp16": FLOAT16}
    assert OnnxEngine(made.model_path).inputs == source.manifest.inputs


def test_bf16_is_written_and_refused_where_it_cannot_be_measured(corpus, fresh):
    openvino = pytest.importorskip("openvino")
    source, rows = corpus.mlp()
    with pytest.raises(Refused, match="openvino engine with the compute type bf16"):
        Cast(to="bf16")(source, fresh())
    path = fresh("again").parent / "out" / "model.onnx"
    assert {tensor.data_type for tensor in onnx.load(path).graph.initializer} == {TensorProto.BFLOAT16}
    onnx.checker.check_model(str(path), full_check=True)
    inputs = rows.batch(0, 8)
    found = openvino.Core().compile_model(path, "CPU")(inputs)["y"]
    expected = answers(source, **inputs)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_casting_comes_before_int8_and_after_few_bit_weights(corpus, fresh):
    source, _ = corpus.mlp()
    with pytest.raises(Refused, match="computes in int8 already"):
        Cast()(Quantize()(source, fresh("int8")), fresh("cast-int8"))
    few = WeightOnly()(source, fresh("int4"))
    both = Cast()(few, fresh("both"))
    assert both.size_bytes < few.size_bytes
    assert [step.step for step in both.manifest.lineage] == ["weight-only", "cast"]


def test_what_is_fp16_already_is_refused(corpus, fresh):
    source, _ = corpus.mlp()
    with pytest.raises(Refused, match="most of this model's are fp16"):
        Cast()(Cast()(source, fresh("once")), fresh("twice"))


def test_a_fused_model_is_cast_with_its_fused_operators(bert, fresh, error):
    fused = Fuse()(bert.source, fresh("fused"))
    made = Cast()(fused, fresh())
    assert not any("stay in float32" in note for note in notes_of(made))
    assert error(OnnxEngine(bert.source.model_path), OnnxEngine(made.model_path), bert.rows) < 0.01
    assert made.size_bytes < 0.6 * fused.size_bytes


def test_the_largest_numbers_are_those_of_the_formats():
    assert largest_number("fp16") == 65504
    assert largest_number("bf16") == pytest.approx(3.3895e38, rel=1e-4)
