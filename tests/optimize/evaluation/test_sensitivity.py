"""Layers that suffer from int8 are found, in real ONNX models; and a model that was damaged is not kept."""

from fnmatch import fnmatchcase

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import Refused
from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest, record_files
from mlserve.model.rows import ArrayRows
from mlserve.optimize.evaluation import sensitivity
from mlserve.optimize.evaluation.accuracy import answer_rows, judge
from mlserve.optimize.evaluation.drop import holds
from mlserve.optimize.evaluation.fake_quantization import as_int8
from mlserve.optimize.evaluation.search import Trial, restore_accuracy
from mlserve.optimize.evaluation.sensitivity import rank_layers

WIDTH = 16
RNG = np.random.default_rng(0)
X = RNG.standard_normal((300, WIDTH)).astype(np.float32)


def weight(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32) / 4


def save(folder, nodes, weights, x_shape=("batch", WIDTH), opset=17, x_type=TensorProto.FLOAT):
    """A graph from x to y, as an artifact."""
    folder.mkdir()
    x = helper.make_tensor_value_info("x", x_type, x_shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "graph", [x], [y], initializers)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / MODEL_FILE)
    engine = OnnxEngine(folder / MODEL_FILE)
    return Artifact(folder, Manifest(variant="fp32", inputs=engine.inputs, outputs=engine.outputs))


def chain(folder, *, outlier, count=4, **more):
    """`count` products one after another; in number `outlier` one value is so large that the others vanish beside it.

    It stands in a row that only meets zeros, so that nothing but rounding tells it from any other layer.
    """
    weights = {f"w{number}": weight(WIDTH, WIDTH) for number in range(count)}
    nodes, current = [], "x"
    for number in range(count):
        if number == outlier:
            silence = np.ones(WIDTH, np.float32)
            silence[0] = 0
            weights["silence"] = silence
            nodes.append(helper.make_node("Mul", [current, "silence"], ["silenced"], name="silence"))
            current = "silenced"
            weights[f"w{number}"][0] = 500
        last = number == count - 1
        target = "y" if last else f"h{number}"
        nodes.append(helper.make_node("MatMul", [current, f"w{number}"], [target], name=f"layer[{number}]/MatMul"))
        current = target
    return save(folder, nodes, weights, **more)


def rows(array=X):
    return ArrayRows({"x": array}, "test rows")


@pytest.mark.parametrize("outlier", [0, 2, 3])
def test_the_layer_with_an_outlier_among_its_weights_is_the_most_sensitive(tmp_path, outlier):
    artifact = chain(tmp_path / "model", outlier=outlier)
    before = record_files(artifact.directory)
    steps = []
    ranked = rank_layers(artifact, rows(), on_step=steps.append)
    assert ranked[0].node == f"layer[{outlier}]/MatMul"
    assert ranked[0].error > 10 * ranked[1].error > 0
    assert {layer.operator for layer in ranked} == {"MatMul"}
    assert record_files(artifact.directory) == before
    assert steps[-1] == "sensitivity of layer 4 of 4"


def test_a_pattern_excludes_its_layer_and_no_other(tmp_path):
    ranked = rank_layers(chain(tmp_path / "model", outlier=1), rows())
    names = [layer.node for layer in ranked]
    for layer in ranked:
        assert [name for name in names if fnmatchcase(name, layer.pattern)] == [layer.node]


def test_activations_with_an_outlier_make_the_layer_after_them_sensitive(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"], name="calm"),
        helper.make_node("Add", ["h", "peak"], ["p"], name="add"),
        helper.make_node("MatMul", ["p", "w1"], ["y"], name="after the peak"),
    ]
    first = np.zeros((WIDTH, WIDTH), np.float32)
    first[1:] = weight(WIDTH - 1, WIDTH)
    peak = np.zeros(WIDTH, np.float32)
    peak[0] = 1000
    artifact = save(tmp_path / "model", nodes, {"w0": weight(WIDTH, WIDTH), "peak": peak, "w1": first})
    ranked = rank_layers(artifact, rows())
    assert ranked[0].node == "after the peak"
    assert ranked[0].error > 10 * ranked[1].error
    # Without 8-bit activations (opset 10 cannot round them) there is nothing special about it.
    old = save(tmp_path / "old", nodes, {"w0": weight(WIDTH, WIDTH), "peak": peak, "w1": first}, opset=10)
    assert max(layer.error for layer in rank_layers(old, rows())) < 0.05


def test_each_error_is_that_of_the_model_with_this_weight_rounded(tmp_path):
    """Against models that were really written with the rounded weight."""
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"], name="a"),
        helper.make_node("Gemm", ["h", "w1", "b"], ["y"], name="b", transB=1),
    ]
    weights = {"w0": weight(WIDTH, WIDTH), "w1": weight(WIDTH, WIDTH).T.copy(), "b": np.ones(WIDTH, np.float32)}
    artifact = save(tmp_path / "model", nodes, weights, opset=10)
    found = {layer.node: layer.error for layer in rank_layers(artifact, rows(X[:16]))}
    expected = OnnxEngine(artifact.model_path).run({"x": X[:16]})["y"]
    for name, key, channels in (("a", "w0", (-1,)), ("b", "w1", (0,))):
        rounded = save(tmp_path / name, nodes, weights | {key: as_int8(weights[key], channels)}, opset=10)
        answers = OnnxEngine(rounded.model_path).run({"x": X[:16]})["y"]
        error = np.linalg.norm(answers - expected) / np.linalg.norm(expected)
        assert found[name] == pytest.approx(error, rel=1e-3)


def test_a_weight_that_two_layers_share_is_rounded_for_each_alone(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="a"),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="b"),
    ]
    ranked = rank_layers(save(tmp_path / "model", nodes, {"w": weight(WIDTH, WIDTH)}), rows())
    assert {layer.node for layer in ranked} == {"a", "b"}
    assert ranked[0].error != ranked[1].error


def test_operators_of_every_kind_are_ranked(tmp_path):
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["e"], name="gather"),
        helper.make_node("Transpose", ["e"], ["t"], perm=[0, 2, 1], name="turn"),
        helper.make_node("Conv", ["t", "k"], ["c"], name="conv", kernel_shape=[3], pads=[1, 1]),
        helper.make_node("Transpose", ["c"], ["s"], perm=[1, 0, 2], name="time"),
        helper.make_node("Constant", [], ["m"], value=numpy_helper.from_array(weight(5, 8), "m"), name="constant"),
        helper.make_node("MatMul", ["s", "m"], ["z"], name=""),
        helper.make_node("LSTM", ["z", "wi", "wh"], ["all", "", ""], name="lstm", hidden_size=4),
        helper.make_node("Identity", ["all"], ["y"], name="end"),
    ]
    weights = {"table": weight(50, 6), "k": weight(6, 6, 3), "wi": weight(1, 16, 8), "wh": weight(1, 16, 4)}
    tokens = RNG.integers(50, size=(20, 5))
    artifact = save(tmp_path / "model", nodes, weights, ("batch", 5), x_type=TensorProto.INT64)
    ranked = rank_layers(artifact, rows(tokens))
    assert {(layer.node, layer.operator) for layer in ranked} == {
        ("gather", "Gather"),
        ("conv", "Conv"),
        ("MatMul_5", "MatMul"),
        ("lstm", "LSTM"),
    }
    assert all(0 < layer.error < 0.2 for layer in ranked)
    only = rank_layers(artifact, rows(tokens), operators=("Conv", "MatMul"))
    assert {layer.operator for layer in only} == {"Conv", "MatMul"}


def test_weights_that_lie_beside_a_large_model_are_ranked_alike(tmp_path, monkeypatch):
    artifact = chain(tmp_path / "model", outlier=1)
    inline = rank_layers(artifact, rows())
    monkeypatch.setattr(sensitivity, "INLINE_LIMIT_BYTES", 0)
    assert rank_layers(artifact, rows()) == inline


def test_a_model_without_weights_has_no_layers(tmp_path):
    artifact = save(tmp_path / "model", [helper.make_node("Relu", ["x"], ["y"], name="relu")], {})
    assert rank_layers(artifact, rows()) == []


def test_a_model_of_a_fixed_number_of_rows_is_given_that_many(tmp_path):
    artifact = chain(tmp_path / "model", outlier=1, x_shape=(20, WIDTH))
    assert rank_layers(artifact, rows())[0].node == "layer[1]/MatMul"


def test_another_format_is_refused(tmp_path):
    made = chain(tmp_path / "model", outlier=1)
    other = Artifact(made.directory, Manifest(variant="int8", format="openvino", inputs=(), outputs=()))
    with pytest.raises(Refused, match="openvino"):
        rank_layers(other, rows())


@pytest.mark.parametrize(("damage", "kept"), [(1.0, True), (0.0, False)])
def test_a_model_with_a_destroyed_weight_fails_its_floor(tmp_path, damage, kept):
    """A linear classifier of real structure: labels are what it answers, up to noise."""
    weights = {"w": weight(WIDTH, 5)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="a")]
    original = save(tmp_path / "original", nodes, weights)
    variant = save(tmp_path / "variant", nodes, {"w": weights["w"] * np.array([damage, 1, 1, 1, 1], np.float32)})
    labels = (X @ weights["w"]).argmax(1)
    labels[:30] = 0
    data = ArrayRows({"x": X}, "test rows", labels)
    expected, found = (answer_rows(OnnxEngine(made.model_path), data) for made in (original, variant))
    accuracy = judge(found, expected, data, task="unknown", split="300 of 600 rows held out, seed 0")
    verdict = holds(accuracy, 0.01)
    assert verdict.kept == kept, verdict.reason
    assert (accuracy.basis, accuracy.split) == ("labels", "300 of 600 rows held out, seed 0")
    unlabelled = judge(found, expected, rows(), task="unknown", reference="fp32")
    assert unlabelled.basis == "agreement with fp32"
    assert holds(unlabelled, 0.01).kept == kept


def test_an_int8_model_that_fails_is_mended_by_keeping_its_one_sensitive_layer(tmp_path):
    """From the ranking to a variant that holds, with the real quantizer."""
    original = chain(tmp_path / "original", outlier=2, count=6)
    expected = answer_rows(OnnxEngine(original.model_path), rows())

    def make(kept):
        path = tmp_path / f"int8-{len(kept)}.onnx"
        quantize_dynamic(original.model_path, path, per_channel=True, nodes_to_exclude=list(kept))
        accuracy = judge(answer_rows(OnnxEngine(path), rows()), expected, rows(), task="unknown")
        return Trial(kept, holds(accuracy, 0.01).kept, accuracy.loss, accuracy.loss_high, path.stat().st_size)

    failed = make(())
    assert not failed.holds
    ranking = [layer.node for layer in rank_layers(original, rows())]
    found = restore_accuracy(failed, ranking, make)
    assert found.winner.kept == ("layer[2]/MatMul",)
    assert found.winner.loss_high <= 0.01 < failed.loss
    backwards = restore_accuracy(failed, ranking[::-1], make, max_trials=4)
    assert backwards.winner is None or len(backwards.winner.kept) > 1
