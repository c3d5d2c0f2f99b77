"""Static int8: the law of a pass, accuracy on real data, and what must stay float32."""

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import Refused, UsageError
from mlserve.model.artifact import Artifact, record_files
from mlserve.model.onnx_file import inspect_onnx
from mlserve.model.rows import ArrayRows
from mlserve.optimize.importers.onnx_model import write_model
from mlserve.optimize.passes.int8_types import int8_types
from mlserve.optimize.passes.static import QuantizeStatic
from mlserve.optimize.passes.step import ALONE, Resources

FORMS = ("qdq", "qoperator")
METHODS = ("minmax", "percentile", "entropy")


def graph_of(artifact: Artifact):
    return onnx.load(artifact.model_path).graph


def inputs_of(graph, name):
    """The operators that the inputs of operator `name` come from; None for a weight or an input of the graph."""
    producers = {output: node.op_type for node in graph.node for output in node.output}
    (found,) = [node for node in graph.node if node.name == name]
    return [producers.get(tensor) for tensor in found.input]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["mlp", "pair", "encoder", "digits"])
def test_static_int8_keeps_the_law_of_a_pass(corpus, fresh, error, name, form, capsys):
    source, rows = getattr(corpus, name)()
    before = record_files(source.directory)
    made = QuantizeStatic(form=form)(source, fresh(), Resources(rows=rows))
    assert record_files(source.directory) == before
    old, new = OnnxEngine(source.model_path), OnnxEngine(made.model_path)
    assert (new.inputs, new.outputs) == (old.inputs, old.outputs)
    assert error(old, new, rows) < (0.05 if form == "qdq" else 0.25)
    companions = {path for path in before if not path.startswith("model.")}
    assert {path.name for path in made.directory.iterdir()} == {"model.onnx", *companions}
    (step,) = made.manifest.lineage
    assert step.step == "quantize-static"
    assert step.parameters["form"] == form
    assert "operators in int8" in step.notes[0]
    assert not capsys.readouterr().out


@pytest.mark.parametrize("calibration", METHODS)
@pytest.mark.parametrize("form", FORMS)
def test_a_network_for_digits_stays_within_one_point(digits, fresh, calibration, form):
    made = QuantizeStatic(form=form, calibration=calibration)(digits.source, fresh(), Resources(rows=digits.rows))
    truth, images = digits.held_out.labels, digits.held_out.batch(0, len(digits.held_out))

    def accuracy(artifact):
        return np.mean(OnnxEngine(artifact.model_path).run(images)["scores"].argmax(1) == truth)

    assert accuracy(digits.source) > 0.93
    assert accuracy(made) >= accuracy(digits.source) - 0.01
    assert "3 operators in int8" in made.manifest.lineage[0].notes[0]


def test_batch_normalization_goes_into_its_convolution(digits, fresh):
    made = QuantizeStatic()(digits.source, fresh(), Resources(rows=digits.rows))
    assert "BatchNormalization" not in {node.op_type for node in graph_of(made).node}


def test_the_answers_leave_as_float32_without_a_last_rounding(digits, fresh):
    graph = graph_of(QuantizeStatic()(digits.source, fresh(), Resources(rows=digits.rows)))
    (last,) = [node for node in graph.node if "scores" in node.output]
    assert last.op_type == "Gemm"


@pytest.mark.parametrize("one_pass", [QuantizeStatic(), QuantizeStatic(calibration="entropy")])
def test_without_rows_it_is_refused_with_the_next_step(corpus, fresh, one_pass):
    source, _ = corpus.mlp()
    with pytest.raises(Refused, match="--data"):
        one_pass(source, fresh(), ALONE)


def test_an_excluded_operator_stays_float32_and_the_others_do_not(digits, fresh):
    resources = Resources(rows=digits.rows)
    made = QuantizeStatic(exclude=("second/*",))(digits.source, fresh("a"), resources)
    assert inputs_of(graph_of(made), "second/Conv")[1] is None
    assert inputs_of(graph_of(made), "first/Conv")[1] == "DequantizeLinear"
    assert any("excluded" in note for note in made.manifest.lineage[0].notes)
    whole = QuantizeStatic()(digits.source, fresh("b"), resources)
    assert inputs_of(graph_of(whole), "second/Conv")[1] == "DequantizeLinear"


def test_an_operator_that_preparation_merges_is_still_excluded(digits, fresh):
    """The normalization after the first convolution goes into it."""
    made = QuantizeStatic(exclude=("first/Conv",))(digits.source, fresh(), Resources(rows=digits.rows))
    convolutions = [node.name for node in graph_of(made).node if node.op_type == "Conv"]
    assert [inputs_of(graph_of(made), name)[1] for name in convolutions] == [None, "DequantizeLinear"]


def test_a_pattern_that_matches_nothing_is_named_with_real_names(digits, fresh):
    with pytest.raises(UsageError, match=r"'third/\*'.*'first/Conv'"):
        QuantizeStatic(exclude=("third/*",))(digits.source, fresh(), Resources(rows=digits.rows))


def class_mask(corpus):
    """A product whose bias forbids one class, as a mask does, before a softmax."""
    bias = corpus.normal(16, seed=1)
    bias[3] = corpus.lowest
    nodes = [
        helper.make_node("Gemm", ["x", "w", "none"], ["hidden"], "hidden"),
        helper.make_node("Gemm", ["hidden", "w", "bias"], ["logits"], "masked"),
        helper.make_node("Softmax", ["logits"], ["y"], "softmax", axis=-1),
    ]
    weights = {"w": corpus.normal(16, 16, scale=0.4), "none": np.zeros(16, np.float32), "bias": bias}
    shape = (TensorProto.FLOAT, ["batch", 16])
    source = corpus.write("mask", nodes, weights, {"x": shape}, {"y": shape})
    return source, ArrayRows({"x": corpus.normal(32, 16, seed=3)}, "made up")


class Reader(CalibrationDataReader):
    def __init__(self, batches):
        self.batches = iter(batches)

    def get_next(self):
        return next(self.batches, None)


def test_a_masks_lowest_number_ruins_no_scale(corpus, fresh, error):
    source, rows = class_mask(corpus)
    made = QuantizeStatic()(source, fresh(), Resources(rows=rows))
    old = OnnxEngine(source.model_path)
    assert error(old, OnnxEngine(made.model_path), rows) < 0.05
    assert any("mask" in note for note in made.manifest.lineage[0].notes)
    plain = fresh("plain") / "model.onnx"
    quantize_static(str(source.model_path), str(plain), Reader([rows.batch(0, 32)]), activation_type=QuantType.QUInt8)
    assert error(old, OnnxEngine(plain), rows) > 0.5


def test_cutting_an_outlier_off_keeps_the_scale_of_the_others(corpus, fresh, error):
    source, rows = corpus.mlp()
    spoilt = ArrayRows({"x": corpus.normal(512, 32, seed=8)}, "made up")
    spoilt.columns["x"][5, 7] = 1000
    old = OnnxEngine(source.model_path)
    errors = {
        method: error(
            old,
            OnnxEngine(
                QuantizeStatic(calibration=method, percentile=99.5, calibration_rows=512)(
                    source, fresh(method), Resources(rows=spoilt)
                ).model_path
            ),
            rows,
        )
        for method in METHODS
    }
    assert errors["minmax"] > 0.5
    assert errors["percentile"] < 0.1
    assert errors["entropy"] < 0.1


def test_what_is_int8_already_is_refused(digits, fresh):
    resources = Resources(rows=digits.rows)
    for form in FORMS:
        made = QuantizeStatic(form=form)(digits.source, fresh(form), resources)
        with pytest.raises(Refused, match="already"):
            QuantizeStatic()(made, fresh(f"{form} twice"), resources)


def test_a_model_that_is_no_longer_onnx_is_refused(digits, fresh):
    manifest = msgspec.structs.replace(digits.source.manifest, format="openvino")
    with pytest.raises(Refused, match="kept as openvino"):
        QuantizeStatic()(Artifact(digits.source.directory, manifest), fresh(), Resources(rows=digits.rows))


def test_a_model_with_nothing_to_quantize_is_refused(corpus, fresh):
    shape = (TensorProto.FLOAT, ["batch", 4])
    source = corpus.write("relu", [helper.make_node("Relu", ["x"], ["y"])], {}, {"x": shape}, {"y": shape})
    with pytest.raises(Refused, match="keep float32"):
        QuantizeStatic()(source, fresh(), Resources(rows=ArrayRows({"x": corpus.normal(8, 4)}, "made up")))


def test_products_of_two_activations_stay_float32_and_are_told(corpus, fresh):
    source, rows = corpus.encoder()
    made = QuantizeStatic()(source, fresh(), Resources(rows=rows))
    notes = made.manifest.lineage[0].notes
    assert "2 stay float32, MatMul: a product of two activations" in notes
    assert notes[0].startswith("6 operators in int8")


def test_a_fixed_number_of_rows_is_calibrated_in_whole_batches(corpus, fresh):
    shape = (TensorProto.FLOAT, [3, 4])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    source = corpus.write("fixed", nodes, {"w": corpus.normal(4, 4)}, {"x": shape}, {"y": shape})
    rows = ArrayRows({"x": corpus.normal(8, 4, seed=1)}, "eight rows")
    made = QuantizeStatic()(source, fresh("eight"), Resources(rows=rows))
    assert "ranges: minmax of 6 rows" in made.manifest.lineage[0].notes
    with pytest.raises(Refused, match="eight rows has 2"):
        QuantizeStatic()(source, fresh("two"), Resources(rows=rows.take([0, 1])))


def test_the_same_seed_gives_the_same_model(corpus, fresh):
    source, rows = corpus.mlp()
    made = [
        QuantizeStatic(calibration_rows=16)(source, fresh(str(number)), Resources(rows=rows, seed=seed))
        for number, seed in enumerate((0, 0, 1))
    ]
    one, same, other = (artifact.model_path.read_bytes() for artifact in made)
    assert one == same
    assert one != other


def test_after_fusion_attention_is_said_to_stay(corpus, fresh, error):
    """com.microsoft's operators have no inferred types; calibration runs all the same."""
    shape = (TensorProto.FLOAT, ["batch", "sequence", 32])
    nodes = [
        helper.make_node("SkipLayerNormalization", ["x", "x", "g", "g"], ["n"], "skip", domain="com.microsoft"),
        helper.make_node("Attention", ["n", "w3", "b3"], ["a"], "attention", domain="com.microsoft", num_heads=2),
        helper.make_node("MatMul", ["a", "w"], ["p"], "product"),
        helper.make_node("BiasGelu", ["p", "g"], ["y"], "gelu", domain="com.microsoft"),
    ]
    weights = {"g": np.ones(32, np.float32), "w3": corpus.normal(32, 96, scale=0.2), "w": corpus.normal(32, 32)}
    source = corpus.write("fused", nodes, weights | {"b3": np.zeros(96, np.float32)}, {"x": shape}, {"y": shape})
    rows = ArrayRows({"x": corpus.normal(16, 5, 32, seed=4)}, "made up")
    made = QuantizeStatic()(source, fresh(), Resources(rows=rows))
    notes = made.manifest.lineage[0].notes
    assert notes[0].startswith("1 operators in int8")
    assert "1 stay float32, Attention: no static int8 kernel" in notes
    assert error(OnnxEngine(source.model_path), OnnxEngine(made.model_path), rows) < 0.05


@pytest.mark.parametrize(
    ("device", "architecture", "flags", "expected"),
    [
        ("cpu", "x86_64", ("avx2", "avx512_vnni"), ("u8", "s8", False, False)),
        ("cpu", "x86_64", ("avx2", "avx_vnni"), ("u8", "s8", False, False)),
        ("cpu", "x86_64", ("avx2", "avx512f"), ("u8", "s8", False, True)),
        ("cpu", "aarch64", ("asimddp",), ("s8", "s8", False, False)),
        ("cpu", "arm64", (), ("s8", "s8", False, False)),
        ("cuda", "x86_64", ("avx2",), ("s8", "s8", True, False)),
        ("tensorrt", "aarch64", (), ("s8", "s8", True, False)),
    ],
)
def test_integers_are_those_the_device_computes_with(device, architecture, flags, expected):
    types = int8_types(device, architecture, flags)
    assert (types.activations, types.weights, types.symmetric, types.reduce_range) == expected


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_gpus_integers_have_their_zero_at_zero(digits, fresh, device):
    made = QuantizeStatic(device=device)(digits.source, fresh(), Resources(rows=digits.rows))
    graph = graph_of(made)
    zeros = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if "zero_point" in tensor.name]
    assert zeros
    assert all(zero.dtype in (np.int8, np.int32) and not zero.any() for zero in zeros)


@pytest.mark.parametrize("types", [("u8", "u8"), ("u8", "s8"), ("s8", "s8")])
def test_integers_can_be_asked_for(corpus, fresh, error, types):
    source, rows = corpus.mlp()
    activations, weights = types
    made = QuantizeStatic(activations=activations, weights=weights)(source, fresh(), Resources(rows=rows))
    assert f"{activations} activations, {weights} weights" in made.manifest.lineage[0].notes[0]
    assert error(OnnxEngine(source.model_path), OnnxEngine(made.model_path), rows) < 0.05


def test_integers_without_a_kernel_are_a_mistake_of_usage(corpus, fresh):
    source, rows = corpus.mlp()
    with pytest.raises(UsageError, match="s8 with weights u8"):
        QuantizeStatic(activations="s8", weights="u8")(source, fresh(), Resources(rows=rows))


@pytest.mark.parametrize("form", FORMS)
def test_int8_of_weights_beyond_what_a_message_holds(digits, fresh, error, monkeypatch, form):
    for module in ("importers.onnx_model", "passes.static", "passes.calibration", "passes.int8_operators"):
        monkeypatch.setattr(f"mlserve.optimize.{module}.INLINE_LIMIT_BYTES", 1000)
    folder = fresh("large")
    write_model(digits.source.model_path, folder)
    assert (folder / "model.onnx.data").is_file()
    large = Artifact(folder, digits.source.manifest)
    made = QuantizeStatic(form=form)(large, fresh(), Resources(rows=digits.rows))
    assert {path.name for path in made.directory.iterdir()} == {"model.onnx", "model.onnx.data"}
    inspect_onnx(made.model_path)
    assert error(OnnxEngine(digits.source.model_path), OnnxEngine(made.model_path), digits.held_out) < (
        0.05 if form == "qdq" else 0.25
    )
