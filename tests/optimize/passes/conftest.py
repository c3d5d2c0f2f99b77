"""Models for the calibrated passes: small graphs written by hand, and a network trained on real digits."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest
from mlserve.model.rows import TOKENIZER_FILE, ArrayRows, TextRows

WORDS, WIDTH = 40, 32
LOUD = [3, 17]
LOWEST = float(np.finfo(np.float32).min)
node = helper.make_node


def write(folder: Path, nodes, weights, inputs, outputs) -> Artifact:
    """`inputs` and `outputs`: name -> (type, shape)."""
    folder.mkdir(parents=True)
    values = [
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in side.items()]
        for side in (inputs, outputs)
    ]
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "graph", *values, initializers)
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, folder / MODEL_FILE)
    engine = OnnxEngine(folder / MODEL_FILE)
    return Artifact(folder, Manifest(variant="fp32", inputs=engine.inputs, outputs=engine.outputs))


def normal(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def mlp(folder: Path) -> tuple[Artifact, ArrayRows]:
    """Two Gemms, one of them transposed, that share a weight, and a MatMul."""
    nodes = [
        node("Gemm", ["x", "w", "b"], ["a"], "first", transB=1),
        node("Relu", ["a"], ["r"], "relu"),
        node("MatMul", ["r", "w"], ["c"], "second"),
        node("Add", ["c", "b"], ["y"], "bias"),
    ]
    weights = {"w": normal(WIDTH, WIDTH, scale=0.2), "b": normal(WIDTH, seed=1, scale=0.1)}
    shape = (TensorProto.FLOAT, ["batch", WIDTH])
    made = write(folder, nodes, weights, {"x": shape}, {"y": shape})
    return made, ArrayRows({"x": normal(64, WIDTH, seed=2)}, "made up")


def pair(folder: Path) -> tuple[Artifact, ArrayRows]:
    """Two inputs, two outputs, and operators without names."""
    nodes = [
        node("MatMul", ["left", "u"], ["one"]),
        node("MatMul", ["right", "v"], ["other"]),
        node("Add", ["one", "other"], ["sum"]),
        node("Sub", ["one", "other"], ["difference"]),
    ]
    weights = {"u": normal(4, 8), "v": normal(6, 8, seed=1)}
    inputs = {"left": (TensorProto.FLOAT, ["batch", 4]), "right": (TensorProto.FLOAT, ["batch", 6])}
    outputs = dict.fromkeys(("sum", "difference"), (TensorProto.FLOAT, ["batch", 8]))
    made = write(folder, nodes, weights, inputs, outputs)
    return made, ArrayRows({"left": normal(32, 4, seed=2), "right": normal(32, 6, seed=3)}, "made up")


def encoder(folder: Path, *, outliers: float = 1.0, first: bool = False) -> tuple[Artifact, TextRows]:
    """One layer of a text encoder with an attention mask; some channels of its normalizations are `outliers` times as
    large as the others. `first`: it normalizes before attention and the feed-forward, not after (BERT).
    """
    graph = _Layers(outliers)
    graph.add("Gather", ["embedding", "input_ids"], "embedded", embedding=normal(WORDS, WIDTH))
    graph.normalize("embedded", "start")
    states = "embedded" if first else "start"
    attended = graph.attend("start", "mask")
    graph.add("Add", [states, attended], "residual")
    graph.normalize("residual", "middle")
    graph.linear("middle", "up", width=2 * WIDTH)
    graph.add("Relu", ["up"], "active")
    graph.linear("active", "down", inner=2 * WIDTH)
    graph.add("Add", ["residual" if first else "middle", "down"], "summed")
    graph.normalize("summed", "states")
    graph.add("ReduceMean", ["states"], "pooled", axes=[1], keepdims=0)
    tokens = (TensorProto.INT64, ["batch", "sequence"])
    inputs = {"input_ids": tokens, "attention_mask": tokens}
    outputs = {
        "pooled": (TensorProto.FLOAT, ["batch", WIDTH]),
        "states": (TensorProto.FLOAT, ["batch", "sequence", WIDTH]),
    }
    made = write(folder, graph.nodes, graph.weights, inputs, outputs)
    _write_tokenizer(folder / TOKENIZER_FILE)
    rng = np.random.default_rng(5)
    texts = [" ".join(f"w{word}" for word in rng.integers(2, WORDS, rng.integers(2, 12))) for _ in range(48)]
    return made, TextRows(texts, folder / TOKENIZER_FILE, made.manifest.inputs, "made up")


class _Layers:
    def __init__(self, outliers: float) -> None:
        self.nodes, self.weights, self.outliers = [], {}, outliers

    def add(self, operator, inputs, output, **given):
        weights = {name: value for name, value in given.items() if isinstance(value, np.ndarray)}
        self.weights |= weights
        rest = {name: value for name, value in given.items() if name not in weights}
        self.nodes.append(node(operator, inputs, [output], f"{operator}/{output}", **rest))
        return output

    def linear(self, source, output, inner=WIDTH, width=WIDTH):
        weight, bias = f"{output}.weight", f"{output}.bias"
        matrix = normal(inner, width, seed=len(self.weights), scale=inner**-0.5)
        if f"{source}.scale" in self.weights and self.outliers:
            matrix[LOUD] /= self.outliers  # as in trained models: the loud channels are not what counts
        self.weights |= {weight: matrix, bias: normal(width, seed=len(self.weights) + 1, scale=0.1)}
        self.add("MatMul", [source, weight], f"{output}.product")
        return self.add("Add", [f"{output}.product", bias], output)

    def normalize(self, source, output):
        scale = np.ones(WIDTH, np.float32)
        scale[LOUD] = self.outliers
        self.weights |= {f"{output}.scale": scale, f"{output}.shift": normal(WIDTH, seed=9, scale=0.1)}
        self.add("LayerNormalization", [source, f"{output}.scale", f"{output}.shift"], output, axis=-1)

    def attend(self, source, mask):
        self.add("Cast", ["attention_mask"], "seen", to=TensorProto.FLOAT)
        self.add("Sub", ["one", "seen"], "hidden", one=np.array(1, np.float32))
        self.add("Mul", ["hidden", "lowest"], "flat", lowest=np.array(LOWEST, np.float32))
        self.add("Unsqueeze", ["flat", "axis"], mask, axis=np.array([1]))
        for name in ("query", "key", "value"):
            self.linear(source, name)
        self.add("Transpose", ["key"], "turned", perm=[0, 2, 1])
        self.add("MatMul", ["query", "turned"], "raw")
        self.add("Div", ["raw", "root"], "scores", root=np.array(WIDTH**0.5, np.float32))
        self.add("Add", ["scores", mask], "masked")
        self.add("Softmax", ["masked"], "shares", axis=-1)
        self.add("MatMul", ["shares", "value"], "mixed")
        return self.linear("mixed", "attended")


def _write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["[PAD]", "[UNK]", *(f"w{number}" for number in range(2, WORDS))]
    words = {word: number for number, word in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> SimpleNamespace:
    """A convolutional network with batch normalization, trained on real digits; `held_out` has labels."""
    import torch
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images[:, None] / 16).astype(np.float32)
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(512, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # batches are small: threads would wait for each other
    x, y = torch.from_numpy(images[:1200]), torch.from_numpy(data.target[:1200])
    for _ in range(8):
        for part in torch.randperm(1200).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
    torch.set_num_threads(threads)
    state = {name: tensor.detach().numpy() for name, tensor in net.state_dict().items() if tensor.is_floating_point()}
    nodes = [
        node("Conv", ["image", "0.weight", "0.bias"], ["a"], "first/Conv", pads=[1] * 4),
        node(
            "BatchNormalization", ["a", *(f"1.{n}" for n in ("weight", "bias", "running_mean", "running_var"))], ["b"]
        ),
        node("Relu", ["b"], ["c"], "first/Relu"),
        node("MaxPool", ["c"], ["d"], "first/MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["d", "4.weight", "4.bias"], ["e"], "second/Conv", pads=[1] * 4),
        node("Relu", ["e"], ["f"], "second/Relu"),
        node("Flatten", ["f"], ["g"], "flatten"),
        node("Gemm", ["g", "7.weight", "7.bias"], ["scores"], "head/Gemm", transB=1),
    ]
    source = write(
        tmp_path_factory.mktemp("digits") / "source",
        nodes,
        state,
        {"image": (TensorProto.FLOAT, ["batch", 1, 8, 8])},
        {"scores": (TensorProto.FLOAT, ["batch", 10])},
    )
    return SimpleNamespace(
        source=source,
        rows=ArrayRows({"image": images[:1200]}, "digits"),
        held_out=ArrayRows({"image": images[1200:]}, "digits", data.target[1200:]),
    )


@pytest.fixture
def corpus(tmp_path, request):
    """Name -> an artifact and rows like those it is asked; `encoder` and `write` make others."""

    def trained_digits():
        digits = request.getfixturevalue("digits")  # trained only where a test asks for it
        return digits.source, digits.rows

    return SimpleNamespace(
        mlp=lambda: mlp(tmp_path / "mlp"),
        pair=lambda: pair(tmp_path / "pair"),
        encoder=lambda name="encoder", **how: encoder(tmp_path / name, **how),
        digits=trained_digits,
        write=lambda name, *graph: write(tmp_path / name, *graph),
        normal=normal,
        lowest=LOWEST,
    )


@pytest.fixture
def fresh(tmp_path):
    """Makes an empty folder."""

    def make(name: str = "out") -> Path:
        folder = tmp_path / "made" / name
        folder.mkdir(parents=True)
        return folder

    return make


@pytest.fixture
def error():
    """How far the answers of one engine are from another's on rows, relative to the largest: the worst output."""

    def compare(expected, found, rows) -> float:
        inputs = rows.batch(0, len(rows))
        one, other = expected.run(inputs), found.run(inputs)
        assert one.keys() == other.keys()
        return max(float(np.abs(other[name] - one[name]).max() / np.abs(one[name]).max()) for name in one)

    return compare


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> SimpleNamespace:
    """A small BERT as Hugging Face exports it, and rows of tokens, some of them padded."""
    import warnings

    import torch
    from transformers import BertConfig, BertModel

    class States(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask)[0]

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    folder = tmp_path_factory.mktemp("bert")
    tokens, mask = torch.arange(3, 19).reshape(2, 8), torch.ones(2, 8, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about itself
        torch.onnx.export(
            States(BertModel(config)).eval(),
            (tokens, mask),
            folder / MODEL_FILE,
            dynamo=False,
            opset_version=17,
            input_names=["input_ids", "attention_mask"],
            output_names=["states"],
            dynamic_axes={name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask", "states")},
        )
    engine = OnnxEngine(folder / MODEL_FILE)
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 13, 16)
    return SimpleNamespace(
        source=Artifact(folder, Manifest(variant="fp32", inputs=engine.inputs, outputs=engine.outputs)),
        rows=ArrayRows(
            {
                "input_ids": rng.integers(3, 100, (16, 12)),
                "attention_mask": (np.arange(12) < lengths[:, None]).astype(np.int64),
            },
            "made up",
        ),
    )
