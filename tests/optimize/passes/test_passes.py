"""The law every pass is held to, and what each is for."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import Refused, UsageError
from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest, record_files
from mlserve.model.onnx_file import inspect_onnx
from mlserve.model.rows import ArrayRows
from mlserve.optimize.flags import recipe_of
from mlserve.optimize.importers.onnx_model import write_model
from mlserve.optimize.passes import Cast, Fuse, Quantize, WeightOnly
from mlserve.optimize.passes.step import Resources
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


@pytest.fixture
def models(corpus, bert, artifact):
    """Name -> an artifact and rows like those it is asked."""
    return {
        "tiny": lambda: (artifact, ArrayRows({"x": corpus.normal(16, 30)}, "made up")),
        "bert": lambda: (bert.source, bert.rows),
        "lstm": lambda: series(corpus),
        "trees": lambda: trees(artifact.directory.parent / "trees"),
        **{name: getattr(corpus, name) for name in ("mlp", "pair", "encoder", "digits")},
    }


def series(corpus):
    """An LSTM over [rows, steps, 7], its last state through a Gemm."""
    nodes = [
        onnx.helper.make_node("Transpose", ["x"], ["turned"], "turn", perm=[1, 0, 2]),
        onnx.helper.make_node("LSTM", ["turned", "w", "r", "b"], ["", "last"], "lstm", hidden_size=16),
        onnx.helper.make_node("Squeeze", ["last", "axis"], ["state"], "squeeze"),
        onnx.helper.make_node("Gemm", ["state", "head", "bias"], ["y"], "head", transB=1),
    ]
    shapes = {"w": (1, 64, 7), "r": (1, 64, 16), "b": (1, 128), "head": (3, 16), "bias": (3,)}
    weights = {name: corpus.normal(*shape, seed=seed, scale=0.2) for seed, (name, shape) in enumerate(shapes.items())}
    inputs = {"x": (onnx.TensorProto.FLOAT, ["batch", "steps", 7])}
    outputs = {"y": (onnx.TensorProto.FLOAT, ["batch", 3])}
    source = corpus.write("series", nodes, weights | {"axis": np.array([0])}, inputs, outputs)
    return source, ArrayRows({"x": corpus.normal(8, 20, 7, seed=9)}, "made up")


def trees(folder: Path):
    """A decision tree behind a scaler, as scikit-learn exports it: no weights, only attributes."""
    make = onnx.helper.make_node
    zeros = [0, 0, 0]
    nodes = [
        make("Scaler", ["x"], ["a"], "scaler", domain="ai.onnx.ml", offset=[0.1] * 4, scale=[2.0] * 4),
        make(
            "TreeEnsembleRegressor", ["a"], ["y"], "trees", domain="ai.onnx.ml", n_targets=1, nodes_treeids=zeros,
            nodes_nodeids=[0, 1, 2], nodes_featureids=zeros, nodes_values=[0.5, 0.0, 0.0],
            nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
            target_treeids=[0, 0], target_nodeids=[1, 2], target_ids=[0, 0], target_weights=[-1.0, 1.0],
        ),
    ]  # fmt: skip
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", width])
        for name, width in (("x", 4), ("y", 1))
    ]
    graph = onnx.helper.make_graph(nodes, "trees", values[:1], values[1:])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    folder.mkdir()
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / MODEL_FILE)
    engine = OnnxEngine(folder / MODEL_FILE)
    x = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    source = Artifact(folder, Manifest(variant="fp32", inputs=engine.inputs, outputs=engine.outputs))
    return source, ArrayRows({"x": x}, "made up")


PASSES = {
    "fuse": (Fuse(), 1e-5),
    "fuse-apart": (Fuse(separate_weights=True), 1e-5),
    "cast": (Cast(), 0.01),
    "weight-only": (WeightOnly(), 0.25),
    "weight-only-8": (WeightOnly(bits=8), 0.05),
    "quantize": (Quantize(), 0.15),
    "quantize-tensor": (Quantize(per_channel=False), 0.15),
}
MODELS = ("tiny", "mlp", "pair", "encoder", "digits", "lstm", "bert", "trees")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("which", PASSES)
def test_the_law_of_a_pass(models, fresh, error, which, name):
    one_pass, tolerance = PASSES[which]
    source, rows = models[name]()
    before = record_files(source.directory)
    if name == "trees" and not isinstance(one_pass, Fuse):
        with pytest.raises(Refused, match="bring"):
            one_pass(source, fresh())
        assert record_files(source.directory) == before
        return
    made = one_pass(source, fresh(), Resources(rows=rows))
    assert record_files(source.directory) == before
    companions = {path for path in before if path != MODEL_FILE}
    assert {path.name for path in made.directory.iterdir()} == {MODEL_FILE, *companions}
    assert all(record_files(made.directory)[path] == before[path] for path in companions)
    (step,) = made.manifest.lineage
    assert step.step == which.removesuffix("-apart").removesuffix("-8").removesuffix("-tensor")
    assert step.notes
    inspect_onnx(made.model_path)
    old, new = OnnxEngine(source.model_path), OnnxEngine(made.model_path)
    assert (new.inputs, new.outputs) == (old.inputs, old.outputs)
    assert error(old, new, rows) <= tolerance


def test_int8_leaves_out_what_is_excluded_by_name(corpus, fresh):
    source, _ = corpus.mlp()
    whole = Quantize()(source, fresh("whole"))
    assert whole.manifest.lineage[-1].notes == ("2 operators in int8",)
    for excluded in ("first", "second"):
        made = Quantize(exclude=(excluded,))(source, fresh(excluded))
        assert made.manifest.lineage[-1].notes == ("1 operators in int8",)
    with pytest.raises(UsageError, match=r"'third'.*'first'"):
        Quantize(exclude=("third",))(source, fresh("third"))


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


@pytest.mark.parametrize("one_pass", [Fuse(), Quantize(), Cast(), WeightOnly(bits=8)])
def test_weights_beyond_what_a_message_holds_lie_beside_the_model(artifact, tmp_path, monkeypatch, one_pass):
    for module in ("importers.onnx_model", "passes.graph", "passes.quantize"):
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
    assert read_recipe(RECIPES / "cpu-int8-static.toml").variants == recipe_of(["int8-static"]).variants
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
        ('[[variants]]\nname = "a"\npasses = []', "'a' has no passes"),
        ("variants = 3", "array"),
        ("[", "Invalid"),
    ],
)
def test_a_mistake_in_a_recipe_is_named_with_its_place(tmp_path, text, words):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_recipe(tmp_path / "recipe.toml")
