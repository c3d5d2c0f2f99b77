"""Every kind of model through every pass that can be done to it: what is made holds the law, what is not says why."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from mlserve.engines.engine import EngineSettings
from mlserve.engines.opening import open_engine
from mlserve.model.artifact import record_files, sha256_of
from mlserve.model.store import Store, verify
from mlserve.optimize.importing import Source
from mlserve.optimize.passes import (
    Cast,
    Fuse,
    Quantize,
    QuantizeOpenvino,
    QuantizeStatic,
    SmoothQuant,
    ToOpenvino,
    WeightOnly,
)
from mlserve.optimize.recipe import Recipe, Variant
from mlserve.optimize.training import Prune
from mlserve.optimize.training.schedule import Schedule
from mlserve.optimize.variants import Wish, optimize

# Pass -> how much of each figure (accuracy, R^2, cosine) it may lose on these small models.
TOLERANCE = {
    "fused": 0.001,
    "fp16": 0.01,
    "int8": 0.05,
    "smooth-int8-static": 0.08,
    "int8-weights": 0.02,
    "openvino": 0.001,
    "openvino-int8": 0.08,
}
RECIPE = Recipe(
    "everything",
    (
        Variant("fused", (Fuse(),)),
        Variant("fp16", (Fuse(), Cast(to="fp16"))),
        Variant("int8", (Fuse(), Quantize())),
        Variant("smooth-int8-static", (Fuse(transformer=False), SmoothQuant(), QuantizeStatic())),
        Variant("int8-weights", (Fuse(separate_weights=True), WeightOnly(bits=8))),
        Variant("openvino", (ToOpenvino(),)),
        Variant("openvino-int8", (QuantizeOpenvino(),)),
    ),
)
PRUNED = Variant("pruned", (Prune("unstructured", 0.3, tuning=Schedule(epochs=0)),))


def rows(folder: Path, name: str, width: int, classes: int = 3) -> tuple[Path, np.ndarray, np.ndarray]:
    """Real enough: classes that a small model can tell apart."""
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=400)
    x = (rng.standard_normal((classes, width))[labels] * 2 + rng.standard_normal((400, width))).astype(np.float32)
    path = folder / "rows.npz"
    np.savez(path, **{name: x, "label": labels})
    return path, x, labels


def sklearn_mlp(folder: Path) -> Source:
    import skops.io
    from sklearn.neural_network import MLPClassifier

    data, x, labels = rows(folder, "input", 12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        skops.io.dump(MLPClassifier((32,), max_iter=60, random_state=0).fit(x, labels), folder / "mlp.skops")
    return Source(path=folder / "mlp.skops", data=data, trust_pickle=True)


def xgboost_trees(folder: Path) -> Source:
    from xgboost import XGBClassifier

    data, x, labels = rows(folder, "input", 12)
    XGBClassifier(n_estimators=8, max_depth=3).fit(x, labels).save_model(folder / "trees.json")
    return Source(path=folder / "trees.json", data=data)


def lightgbm_trees(folder: Path) -> Source:
    import lightgbm

    data, x, labels = rows(folder, "input", 12)
    booster = lightgbm.train(
        {"objective": "multiclass", "num_class": 3, "verbosity": -1}, lightgbm.Dataset(x, labels), num_boost_round=8
    )
    booster.save_model(folder / "trees.txt")
    return Source(path=folder / "trees.txt", data=data)


def keras_dense(folder: Path) -> Source:
    import subprocess
    import sys

    data, _, _ = rows(folder, "input", 12)
    code = (
        "import os; os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'\n"
        "import sys, numpy, keras\n"
        "keras.utils.set_random_seed(0)\n"
        "from keras.layers import Dense\n"
        "layers = [keras.Input((12,), name='input'), Dense(32, 'relu'), Dense(3, 'softmax')]\n"
        "model = keras.Sequential(layers)\n"
        "model.compile('adam', 'sparse_categorical_crossentropy')\n"
        "rows = numpy.load(sys.argv[1])\n"
        "model.fit(rows['input'], rows['label'], epochs=12, verbose=0)\n"
        "model.save(sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", code, data, folder / "dense.keras"], check=True, capture_output=True)
    return Source(path=folder / "dense.keras", data=data)


def trained_torch(module, x, labels):
    import torch

    torch.manual_seed(0)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(labels)).backward()
        optimizer.step()
    return module.eval()


def torch_file(form: str):
    def make(folder: Path) -> Source:
        import torch

        data, x, labels = rows(folder, "input", 16)
        module = trained_torch(
            torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)), x, labels
        )
        path = folder / f"{form}.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if form == "torchscript":
                torch.jit.trace(module, torch.zeros(1, 16)).save(path)
            elif form == "exported":
                batch = torch.export.Dim("batch")
                torch.export.save(
                    torch.export.export(module, (torch.zeros(2, 16),), dynamic_shapes=({0: batch},)), path
                )
            else:
                torch.onnx.export(
                    module, (torch.zeros(2, 16),), folder / "model.onnx", dynamo=True, verbose=False,
                    input_names=["input"], dynamic_shapes=({0: "batch"},), external_data=False,
                )  # fmt: skip
                path = folder / "model.onnx"
        return Source(path=path, data=data)

    return make


def bert_folder(folder: Path) -> Source:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=80, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32, num_labels=3,
    )  # fmt: skip
    BertForSequenceClassification(config).eval().save_pretrained(folder / "bert")
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 80, (400, 12))
    data = folder / "rows.npz"
    np.savez(data, input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))
    return Source(path=folder / "bert", data=data)


NEURAL = set(TOLERANCE)
TREES = {"fused"}
KINDS = {
    # Its label is picked by an operator of ai.onnx.ml, which OpenVINO has not.
    "sklearn": (sklearn_mlp, NEURAL - {"openvino", "openvino-int8"}, False),
    "xgboost": (xgboost_trees, TREES, False),
    "lightgbm": (lightgbm_trees, TREES, False),
    "keras": (keras_dense, NEURAL, False),
    "torchscript": (torch_file("torchscript"), NEURAL, True),
    "exported": (torch_file("exported"), NEURAL, True),
    "onnx": (torch_file("onnx"), NEURAL, False),
    "huggingface": (bert_folder, NEURAL, True),
}


# LightGBM's trees go through the passes as XGBoost's do.
_SLOW = ("huggingface", "keras", "exported", "lightgbm")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in _SLOW else kind for kind in KINDS]
)
def test_every_pass_of_every_importer_holds_the_law(kind, tmp_path):
    make, expected, trainable = KINDS[kind]
    source = make(tmp_path)
    before = record_files(source.path) if source.path.is_dir() else sha256_of(source.path)
    variants = (*RECIPE.variants, *([PRUNED] if trainable else []))
    wish = Wish(recipe=Recipe("all", variants), settings=EngineSettings(threads=1))
    outcome = optimize(source, wish, Store(tmp_path / "store"), "model", lambda _: None)
    after = record_files(source.path) if source.path.is_dir() else sha256_of(source.path)
    assert after == before
    origin, *made = outcome.published
    names = {artifact.manifest.variant for artifact in made}
    assert names >= expected | ({"pruned"} if trainable else set()), outcome.refused
    assert set(outcome.refused) == {variant.name for variant in variants} - names
    assert all(len(reason) > 20 for reason in outcome.refused.values())
    inputs = [(spec.name, spec.dtype) for spec in origin.manifest.inputs]
    for artifact in made:
        manifest = artifact.manifest
        verify(artifact)
        assert manifest.parent == origin.ref
        passes = next(variant.passes for variant in variants if variant.name == manifest.variant)
        assert len(manifest.lineage) == 1 + len(passes)
        engine = open_engine(artifact)
        assert sorted((spec.name, spec.dtype) for spec in engine.inputs) == sorted(inputs)
        assert {spec.name for spec in engine.outputs} == {spec.name for spec in origin.manifest.outputs}
        engine.close()
        if manifest.variant in TOLERANCE and kind != "huggingface":
            assert manifest.metrics.accuracy.loss <= TOLERANCE[manifest.variant], manifest.variant
