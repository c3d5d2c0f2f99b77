"""The law every pass is held to, and what each is for."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import Refused, UsageError
from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest, record_files
from mlserve.optimize.passes import Fuse, Quantize
from mlserve.optimize.recipe import INT8, Recipe, read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


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
        ('[[variants]]\nname = "a"\npasses = []\n[[variants]]\nname = "a"\npasses = []', "'a'"),
        ('[[variants]]\nname = "fp32"\npasses = []', "fp32 is made anyway"),
        ("variants = 3", "array"),
        ("[", "Invalid"),
    ],
)
def test_a_mistake_in_a_recipe_is_named_with_its_place(tmp_path, text, words):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_recipe(tmp_path / "recipe.toml")
