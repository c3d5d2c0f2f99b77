"""Training passes on Hugging Face models of images: of the size that the user's rows or the model's files say."""

import json

import numpy as np
import pytest
import torch

from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.model.artifact import MODEL_FILE
from mlserve.model.processing import ImageInput
from mlserve.optimize.importing import Source, Training
from mlserve.optimize.training import Prune
from mlserve.optimize.training.schedule import Schedule


@pytest.fixture
def resnet(tmp_path, monkeypatch):
    """A small network whose configuration names no size of images."""
    monkeypatch.setenv("USE_TF", "0")
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    assert not hasattr(config, "image_size")
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    (tmp_path / "out").mkdir()
    return tmp_path / "resnet"


@pytest.fixture
def pruned(import_here):
    """Imports a folder, its channels pruned with rows of `data`."""

    def bring(source, data):
        passes = (Prune("channels", amount=0.25, tuning=Schedule(epochs=1)),)
        asked = Source(path=source, data=data)
        return import_here(asked, source.parent / "out", lambda _: None, Training(passes))[1]

    return bring


def test_rows_of_any_size_are_taken_where_the_configuration_names_none(resnet, pruned):
    rows = np.random.default_rng(0).normal(size=(24, 3, 40, 48)).astype(np.float32)
    data = resnet.parent / "rows.npz"
    np.savez(data, pixel_values=rows, label=np.arange(24) % 3)
    imported = pruned(resnet, data)
    assert imported.trained[0][0].startswith("channels: ")
    assert [dim for spec in imported.inputs for dim in spec.shape[2:]] == ["height", "width"]
    engine = OnnxEngine(resnet.parent / "out" / MODEL_FILE)
    assert engine.run({"pixel_values": rows[:2]})["logits"].shape == (2, 3)


def test_images_are_read_as_the_model_s_own_preprocessing_reads_them(resnet, pruned):
    from PIL import Image

    own = {
        "image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32},
        "image_mean": [0.2, 0.4, 0.6], "image_std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    (resnet / "preprocessor_config.json").write_text(json.dumps(own))
    rng = np.random.default_rng(0)
    for number in range(24):
        folder = resnet.parent / "images" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(256, size=(50 + number, 60, 3), dtype=np.uint8)  # each of another size
        Image.fromarray(noise).save(folder / f"{number}.png")
    imported = pruned(resnet, resnet.parent / "images")
    expected = ImageInput(height=32, width=32, mean=(0.2, 0.4, 0.6), std=(0.5, 0.5, 0.5))
    assert imported.processing.image == expected
    assert imported.processing.answer.kind == "label"
