"""The law every pass is held to, and what each is for."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import Refused, UsageError
from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest, record_files
from mlserve.model.onnx_file import inspect_onnx
from mlserve.optimize.importers.onnx_model import write_model
from mlserve.optimize.passes import Fuse, Quantize
from mlserve.optimize.recipe import INT8, Recipe, read_recipe

VARIANT = '[[variants]]\nname = "{}"\npasses = [{{ pass = "fuse" }}]'
RECIPES = Path(__file__).parents[3] / "recipes"


@pytest.fixture
def artifact(tiny_onnx, tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / MODEL_FILE).write_bytes(tiny_onnx.read_bytes())
    (folder / "tokenizer.json").write_text("{}")
    engine = OnnxEngine(folder / MODEL_FILE)
    return Artifact(folder, Manifest(variant="fp32", inputs=engine.inputs, outputs=engine.outputs))


@pytest.mark.parametrize(
    ("one_pass", "tolerance"), [(Fuse(), 1e-6), (Quantize(), 0.1), (Quantize(per_channel=False), 0.1)]
)
def test_the_law_of_a_pass(artifact, tmp_path, one_pass, tolerance):
    before = record_files(artifact.directory)
    out = tmp_path / "out"
    out.mkdir()
    made = one_pass(artifact, out)
    assert record_files(artifact.directory) == before
    assert (out / "tokenizer.json").read_text() == "{}"
    assert [step.step for step in made.manifest.lineage] == [type(one_pass).__name__.lower()]
    assert made.manifest.lineage[0].notes
    old, new = OnnxEngine(artifact.model_path), OnnxEngine(made.model_path)
    assert (new.inputs, new.outputs) == (old.inputs, old.outputs)
    x = np.random.default_rng(0).standard_normal((16, 30)).astype(np.float32)
    expected, found = old.run({"x": x})["scores"], new.run({"x": x})["scores"]
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_quantized_weights_are_integers(artifact, tmp_path):
    (tmp_path / "out").mkdir()
    made = Quantize()(artifact, tmp_path / "out")
    model = onnx.load(made.model_path)
    wide = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 2]
    assert wide
    assert all(tensor.data_type == onnx.TensorProto.INT8 for tensor in wide)


def onnx_artifact(folder: Path, nodes, weights, width: int = 16) -> Artifact:
    """A graph from x [batch, width] to y [batch, width]."""
    folder.mkdir()
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", width]) for name in "xy"]
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = onnx.helper.make_graph(nodes, "graph", values[:1], values[1:], initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / MODEL_FILE)
    engine = OnnxEngine(folder / MODEL_FILE)
    return Artifact(folder, Manifest(variant="fp32", inputs=engine.inputs, outputs=engine.outputs))


def answers(artifact: Artifact, x: np.ndarray) -> np.ndarray:
    return OnnxEngine(artifact.model_path).run({"x": x})["y"]


def test_a_weight_that_two_layers_share_stays_the_same(tmp_path):
    """onnxruntime's quantizer transposes it once a layer, and so back again."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((16, 16)).astype(np.float32), "b": np.zeros(16, np.float32)}
    layers = [
        onnx.helper.make_node("Gemm", [source, "w", "b"], [target], transB=1)
        for source, target in (("x", "middle"), ("middle", "y"))
    ]
    source = onnx_artifact(tmp_path / "source", layers, weights)
    (tmp_path / "out").mkdir()
    made = Quantize()(source, tmp_path / "out")
    x = rng.standard_normal((8, 16)).astype(np.float32)
    expected = answers(source, x)
    assert np.abs(answers(made, x) - expected).max() < 0.05 * np.abs(expected).max()
    assert made.size_bytes < source.size_bytes * 2


@pytest.mark.parametrize("random", [True, False])
def test_a_fusion_that_changes_the_answers_is_not_used(tmp_path, random, capsys):
    """onnxruntime seeds noise by its place in the graph, so a fusion before it changes it."""
    make = onnx.helper.make_node
    nodes = [
        make("Div", ["x", "root2"], ["scaled"]),
        make("Erf", ["scaled"], ["erf"]),
        make("Add", ["erf", "one"], ["shifted"]),
        make("Mul", ["x", "shifted"], ["product"]),
        make("Mul", ["product", "half"], ["gelu"]),
        make("RandomNormalLike" if random else "Identity", ["gelu"], ["noise"]),
        make("Add", ["gelu", "noise"], ["y"]),
    ]
    weights = {"root2": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    source = onnx_artifact(tmp_path / "source", nodes, {name: np.array(value) for name, value in weights.items()})
    (tmp_path / "out").mkdir()
    made = Fuse()(source, tmp_path / "out")
    (note,) = made.manifest.lineage[0].notes
    if random:
        assert "not fused: it would change the answers" in note
        assert made.model_path.read_bytes() == source.model_path.read_bytes()
    else:
        assert note == "1 Gelu"
    assert not capsys.readouterr().out


@pytest.mark.parametrize("one_pass", [Fuse(), Quantize()])
def test_weights_beyond_what_a_message_holds_lie_beside_the_model(artifact, tmp_path, monkeypatch, one_pass):
    for module in ("importers.onnx_model", "passes.fuse", "passes.quantize"):
        monkeypatch.setattr(f"mlserve.optimize.{module}.INLINE_LIMIT_BYTES", 1000)
    (tmp_path / "large").mkdir()
    write_model(artifact.model_path, tmp_path / "large")
    large = Artifact(tmp_path / "large", artifact.manifest)
    assert (tmp_path / "large" / f"{MODEL_FILE}.data").is_file()
    (tmp_path / "out").mkdir()
    made = one_pass(large, tmp_path / "out")
    assert (tmp_path / "out" / f"{MODEL_FILE}.data").is_file()
    inspect_onnx(made.model_path)
    x = np.random.default_rng(0).standard_normal((4, 30)).astype(np.float32)
    expected = OnnxEngine(artifact.model_path).run({"x": x})["scores"]
    assert np.abs(OnnxEngine(made.model_path).run({"x": x})["scores"] - expected).max() < 0.1 * np.abs(expected).max()


def test_int8_is_made_of_float32_only(tmp_path):
    weights = {"w": np.ones((16, 16), np.float64)}
    nodes = [
        onnx.helper.make_node("Cast", ["x"], ["wide"], to=onnx.TensorProto.DOUBLE),
        onnx.helper.make_node("MatMul", ["wide", "w"], ["product"]),
        onnx.helper.make_node("Cast", ["product"], ["y"], to=onnx.TensorProto.FLOAT),
    ]
    source = onnx_artifact(tmp_path / "source", nodes, weights)
    with pytest.raises(Refused, match="fp64"):
        Quantize()(source, tmp_path)


def test_what_was_int8_before_is_not_claimed(artifact, tmp_path):
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
    made = Quantize()(artifact, tmp_path / "once")
    with pytest.raises(Refused, match="int8"):
        Quantize()(made, tmp_path / "twice")


def test_a_model_without_weights_is_not_called_int8(tmp_path):
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 3]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "relu", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    onnx.save(model, source / MODEL_FILE)
    with pytest.raises(Refused, match="keep float32"):
        Quantize()(Artifact(source, Manifest(variant="fp32", inputs=(), outputs=())), out)


def test_the_shipped_recipes_are_what_the_flags_do():
    assert read_recipe(RECIPES / "cpu-int8-dynamic.toml") == INT8
    assert read_recipe(RECIPES / "baseline.toml").variants == ()
    assert all(isinstance(read_recipe(path), Recipe) for path in RECIPES.glob("*.toml"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[variants]]\nname = "a"\npasses = [{ pass = "quantise" }]', r"variants\[0\]\.passes\[0\]\.pass"),
        ('[[variants]]\nname = "a"\npasses = [{ pass = "quantize", mod = "dynamic" }]', "mod"),
        (f"{VARIANT.format('a')}\n{VARIANT.format('a')}", "'a'"),
        (VARIANT.format("fp32"), "fp32 is made anyway"),
        (VARIANT.format("../a"), r"variants\[0\]\.name"),
        (VARIANT.format("a/b"), r"variants\[0\]\.name"),
        ('[[variants]]\nname = "a"\npasses = []', r"variants\[0\]\.passes"),
        ("variants = 3", "array"),
        ("[", "Invalid"),
    ],
)
def test_a_mistake_in_a_recipe_is_named_with_its_place(tmp_path, text, words):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_recipe(tmp_path / "recipe.toml")
