"""Small real models that read texts and images, published as a store keeps them."""

import asyncio
import io

import numpy as np
import pytest

from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest
from mlserve.model.processing import AnswerForm, ImageInput, Processing, TextInput
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.loading import load_model
from mlserve.serve.settings import BatchSettings, ModelSource, ServeSettings

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS += ["win", "money", "now", "free", "prize", "meeting", "lunch", "report", "tomorrow", "thanks"]
SPAM = ("win money now", "free prize", "win a free prize now", "money money money")
HAM = ("meeting tomorrow", "lunch and report", "thanks for the report", "see you at lunch tomorrow thanks")
TOKENS = tuple(TensorSpec(name, "int64", ("batch", "sequence"), len(WORDS)) for name in ("input_ids", "attention_mask"))


def write_tokenizer(path, *, special=True):
    """One token a word, between [CLS] and [SEP], cut after 32."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        pairs = [("[CLS]", 2), ("[SEP]", 3)]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pairs)
    tokenizer.enable_truncation(32)
    tokenizer.save(str(path))


def bag_of_words(path, table, *, masked=True, per_token=False):
    """`input_ids`, `attention_mask` -> `scores` [batch, classes]: the mean of `table` over the text.

    Not `masked`, what is padded counts too. With `per_token`, also `tokens` [batch, sequence, classes].
    """
    from onnx import TensorProto, helper, numpy_helper, save_model

    names = ("input_ids", "attention_mask")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in names]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", table.shape[1]])]
    if per_token:
        shape = ["batch", "sequence", table.shape[1]]
        outputs.append(helper.make_tensor_value_info("tokens", TensorProto.FLOAT, shape))
    last, first = numpy_helper.from_array(np.array([2]), "last"), numpy_helper.from_array(np.array([1]), "first")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["tokens", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept" if masked else "tokens", "first"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["wide", "first"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["scores"]),
    ]
    weights = [numpy_helper.from_array(table.astype(np.float32), "table"), last, first]
    graph = helper.make_graph(nodes, "bag", inputs, outputs, weights)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return [TensorSpec("scores", "float32", ("batch", table.shape[1]))] + (
        [TensorSpec("tokens", "float32", ("batch", "sequence", table.shape[1]))] if per_token else []
    )


def spam_table():
    """Weights of each word for ham and spam, trained on the texts above by a logistic head."""
    rng = np.random.default_rng(0)
    number = {word: position for position, word in enumerate(WORDS)}
    texts = [[number.get(word, 1) for word in text.split()] for text in (*HAM, *SPAM)]
    bags = np.array([[ids.count(word) / (len(ids) + 2) for word in range(len(WORDS))] for ids in texts])
    truth = np.repeat([0, 1], [len(HAM), len(SPAM)])
    weights = rng.normal(0, 0.01, (len(WORDS), 2))
    for _ in range(2000):
        powers = np.exp(bags @ weights)
        error = powers / powers.sum(1, keepdims=True) - np.eye(2)[truth]
        weights -= 2.0 * bags.T @ error
    return weights


def digits_onnx(path):
    """A linear classifier of scikit-learn's digits: `image` [batch, 1, 8, 8] of 0 to 1 -> `logits` [batch, 10]."""
    from onnx import TensorProto, helper, numpy_helper, save_model
    from sklearn.datasets import load_digits

    pixels, truth = load_digits(return_X_y=True)
    rows = np.column_stack([pixels / 16, np.ones(len(pixels))])
    fitted, *_ = np.linalg.lstsq(rows, 8.0 * np.eye(10)[truth], rcond=None)
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["logits"], transB=1),
    ]
    weights = [("weights", fitted[:-1].T), ("bias", fitted[-1])]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights],
    )
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture(scope="session")
def publish(tmp_path_factory):
    """`publish(name, write, inputs, **manifest)`: `write(folder)` writes the model and gives its outputs' specs."""
    store = Store(tmp_path_factory.mktemp("tasks") / "store")

    def add(name, write, inputs=TOKENS, *, tokenizer=True, special=True, **manifest):
        with store.staging() as staging:
            folder = staging / "made"
            folder.mkdir()
            outputs = write(folder / MODEL_FILE)
            if tokenizer:
                write_tokenizer(folder / "tokenizer.json", special=special)
            made = Manifest(variant="fp32", inputs=tuple(inputs), outputs=tuple(outputs), **manifest)
            return store.add(Artifact(folder, made), name)

    return add


@pytest.fixture(scope="session")
def bag():
    return bag_of_words


@pytest.fixture(scope="session")
def spam(publish):
    """Ham or spam."""
    processing = Processing(text=TextInput(), answer=AnswerForm(kind="label", activation="softmax"))
    return publish("spam", lambda path: bag_of_words(path, spam_table()), labels=("ham", "spam"), processing=processing)


@pytest.fixture(scope="session")
def digits(publish):
    """Which digit an image of 8 x 8 shows."""

    def write(path):
        digits_onnx(path)
        return [TensorSpec("logits", "float32", ("batch", 10))]

    processing = Processing(
        image=ImageInput(height=8, width=8, channels=1), answer=AnswerForm(kind="label", activation="softmax")
    )
    image = TensorSpec("image", "float32", ("batch", 1, 8, 8))
    labels = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return publish("digits", write, [image], tokenizer=False, labels=labels, processing=processing)


@pytest.fixture
def opened():
    """`opened(artifact, work, **batch)` runs `await work(served model)` with the version loaded as a worker does."""

    def run(artifact, work, **batch):
        async def serve():
            source = ModelSource(artifact.manifest.name, "1", str(artifact.directory))
            turn = LoopTurn(asyncio.get_running_loop())
            model = load_model(source, ServeSettings(batch=BatchSettings(**batch)), turn)
            try:
                return await work(model)
            finally:
                model.close()

        return asyncio.run(serve())

    return run


@pytest.fixture
def asked(opened):
    """`asked(artifact, values)`: the answers of the version's task."""
    return lambda artifact, values, **batch: opened(artifact, lambda model: model.task.answer(values), **batch)


@pytest.fixture
def png():
    """`png(array, format)`: the bytes of an image file."""
    from PIL import Image

    def write(array, kind="PNG", **options):
        file = io.BytesIO()
        Image.fromarray(np.asarray(array, np.uint8)).save(file, kind, **options)
        return file.getvalue()

    return write
