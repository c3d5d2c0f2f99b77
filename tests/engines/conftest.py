"""Three small networks, each kept in every format that an engine opens, as artifacts with their manifests."""

import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mlserve.model.artifact import Artifact, Manifest, record_files
from mlserve.model.tensors import TensorSpec

NETS = {
    "mlp": (
        (TensorSpec("x", "float32", ("batch", 12)),),
        (TensorSpec("scores", "float32", ("batch", 3)),),
    ),
    "conv": (
        (TensorSpec("image", "float32", ("batch", 1, 8, 8)),),
        (TensorSpec("logits", "float32", ("batch", 10)), TensorSpec("brightness", "float32", ("batch", 1))),
    ),
    "transformer": (
        (
            TensorSpec("input_ids", "int64", ("batch", "sequence"), below=50),
            TensorSpec("attention_mask", "int64", ("batch", "sequence")),
        ),
        (TensorSpec("sentence", "float32", ("batch", 16)),),
    ),
}


def networks():
    import torch
    from torch import nn

    class Conv(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 10)

        def forward(self, image):
            return self.head(torch.relu(self.conv(image)).flatten(1)), image.mean((1, 2, 3)).unsqueeze(1)

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.norm = nn.Embedding(50, 16), nn.LayerNorm(16)
            self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))

        def forward(self, input_ids, attention_mask):
            words = self.words(input_ids)
            scores = self.query(words) @ self.key(words).transpose(1, 2) / 4
            scores = scores.masked_fill(attention_mask.unsqueeze(1) == 0, -1e9)
            return self.norm(words + scores.softmax(-1) @ self.value(words)).mean(1)

    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3))
    return {"mlp": mlp, "conv": Conv(), "transformer": Transformer()}


def example(net, rows, seed=0, length=7):
    """`rows` rows for the network `net`."""
    rng = np.random.default_rng(seed)
    if net == "mlp":
        return {"x": rng.standard_normal((rows, 12)).astype(np.float32)}
    if net == "conv":
        return {"image": rng.standard_normal((rows, 1, 8, 8)).astype(np.float32)}
    ids = rng.integers(50, size=(rows, length))
    return {"input_ids": ids, "attention_mask": (np.arange(length) < length - 2).astype(np.int64) * np.ones_like(ids)}


def save(net, module, folder: Path):
    """The network as model.onnx, model.pt2 and OpenVINO IR in folders of their own under `folder`."""
    import openvino
    import torch

    inputs, outputs = NETS[net]
    arguments = tuple(torch.from_numpy(example(net, 2)[spec.name]) for spec in inputs)
    batch, sequence = torch.export.Dim("batch", max=4096), torch.export.Dim("sequence", max=512)
    named = {"batch": batch, "sequence": sequence}
    shapes = tuple({axis: named[dim] for axis, dim in enumerate(spec.shape) if dim in named} for spec in inputs)
    for kept_as in ("onnx", "torch", "openvino"):
        (folder / kept_as).mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters use what PyTorch has deprecated
        program = torch.export.export(module.eval(), arguments, dynamic_shapes=shapes)
        torch.export.save(program, folder / "torch" / "model.pt2")
        torch.onnx.export(
            module,
            arguments,
            folder / "onnx" / "model.onnx",
            input_names=[spec.name for spec in inputs],
            output_names=[spec.name for spec in outputs],
            dynamic_axes={
                spec.name: {axis: dim for axis, dim in enumerate(spec.shape) if dim in named}
                for spec in (*inputs, *outputs)
            },
            opset_version=17,
            dynamo=False,
        )
        converted = openvino.convert_model(folder / "onnx" / "model.onnx")
    openvino.save_model(converted, folder / "openvino" / "model.xml", compress_to_fp16=False)


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """`kept(net, kept_as)`: the artifact of a network in one format, with the hashes of its files."""
    root = tmp_path_factory.mktemp("kept")
    for net, module in networks().items():
        save(net, module, root / net)

    def artifact(net, kept_as, **manifest):
        folder = root / net / kept_as
        engine = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}[kept_as]
        inputs, outputs = NETS[net]
        told = Manifest(
            variant="fp32", format=kept_as, engine=engine, inputs=inputs, outputs=outputs, files=record_files(folder)
        )
        return Artifact(folder, msgspec.structs.replace(told, **manifest))

    return artifact


@pytest.fixture(scope="session")
def rows_of():
    """`rows_of(net, rows, seed)`: made-up rows for a network."""
    return example
