"""A store as a team has one: texts in two versions, images, and numbers too wide to paste."""

import io

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save_model

from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest
from mlserve.model.processing import AnswerForm, ImageInput, Processing, TextInput
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec

AWKWARD = "odd_name-1.0"
EVIL_LABEL = "<script>window.pwned=1</script>'\"&"
_WORDS = ["[PAD]", "[UNK]", "free", "prize", "meeting", "tomorrow"]


def make_store(root):
    """`spam` 1 and 2 (production is 1, candidate 2), `digits` of 8 x 8 pixels, and an awkward name with numbers."""
    store = Store(root)
    for lean in (1.0, 2.0):
        _publish(store, "spam", lambda folder, lean=lean: _spam(folder, lean))
    store.promote("spam", 1)
    store.promote("spam", 2, "candidate")
    _publish(store, "digits", _digits)
    _publish(store, AWKWARD, _numbers)
    return store


def png():
    """An image of 8 x 8 gray pixels."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), "L").save(file, "PNG")
    return file.getvalue()


def _publish(store, name, make):
    with store.staging() as folder:
        made = folder / "made"
        made.mkdir()
        store.add(Artifact(made, make(made)), name)


def _spam(folder, lean):
    """`input_ids` [batch, sequence] -> `logits` [batch, 2]: free and prize are for spam."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(_WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    tokenizer.save(str(folder / "tokenizer.json"))
    table = np.zeros((len(_WORDS), 2), np.float32)
    table[2:4, 1], table[4:, 0] = lean, lean
    _save(
        folder,
        [helper.make_node("Gather", ["table", "input_ids"], ["rows"]), _sum("rows", "logits")],
        ("input_ids", TensorProto.INT64, ["batch", "sequence"]),
        ("logits", TensorProto.FLOAT, ["batch", 2]),
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1]), "axes")],
    )
    return Manifest(
        variant="fp32",
        labels=("ham", "spam"),
        processing=Processing(text=TextInput(), answer=AnswerForm(kind="label", activation="softmax")),
        inputs=(TensorSpec("input_ids", "int64", ("batch", "sequence"), len(_WORDS)),),
        outputs=(TensorSpec("logits", "float32", ("batch", 2)),),
    )


def _digits(folder):
    """`pixels` [batch, 1, 8, 8] -> `scores` [batch, 2]."""
    weight = np.zeros((64, 2), np.float32)
    weight[:, 1] = 0.1
    _save(
        folder,
        [helper.make_node("Flatten", ["pixels"], ["flat"]), helper.make_node("MatMul", ["flat", "weight"], ["scores"])],
        ("pixels", TensorProto.FLOAT, ["batch", 1, 8, 8]),
        ("scores", TensorProto.FLOAT, ["batch", 2]),
        [numpy_helper.from_array(weight, "weight")],
    )
    return Manifest(
        variant="int8",
        labels=("zero", EVIL_LABEL),
        processing=Processing(
            image=ImageInput(height=8, width=8, channels=1), answer=AnswerForm(kind="label", activation="softmax")
        ),
        inputs=(TensorSpec("pixels", "float32", ("batch", 1, 8, 8)),),
        outputs=(TensorSpec("scores", "float32", ("batch", 2)),),
    )


def _numbers(folder):
    """`wide` [batch, 300] and `flag` [batch, 2] bool -> `same` [batch, 300]: too wide to paste."""
    _save(
        folder,
        [
            helper.make_node("Cast", ["flag"], ["number"], to=TensorProto.FLOAT),
            _sum("number", "flags", keepdims=1),
            helper.make_node("Add", ["wide", "flags"], ["same"]),
        ],
        [("wide", TensorProto.FLOAT, ["batch", 300]), ("flag", TensorProto.BOOL, ["batch", 2])],
        ("same", TensorProto.FLOAT, ["batch", 300]),
        [numpy_helper.from_array(np.array([1]), "axes")],
    )
    return Manifest(
        variant="fp32",
        inputs=(TensorSpec("wide", "float32", ("batch", 300)), TensorSpec("flag", "bool", ("batch", 2))),
        outputs=(TensorSpec("same", "float32", ("batch", 300)),),
    )


def _sum(of, to, keepdims=0):
    return helper.make_node("ReduceSum", [of, "axes"], [to], keepdims=keepdims)


def _save(folder, nodes, inputs, output, initializers):
    inputs = inputs if isinstance(inputs, list) else [inputs]
    values = [helper.make_tensor_value_info(*value) for value in inputs]
    graph = helper.make_graph(nodes, "g", values, [helper.make_tensor_value_info(*output)], initializers)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / MODEL_FILE)
