"""What people say of a model in processing.json, and what the model's own files say: it reaches the manifest."""

import json

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save_model

from mlserve.errors import UsageError
from mlserve.model.processing import AnswerForm, ImageInput, TextInput
from mlserve.model.store import Store
from mlserve.optimize.importing import Source
from mlserve.optimize.recipe import Recipe
from mlserve.optimize.stated import PROCESSING_FILE, Stated, read_stated
from mlserve.optimize.variants import Wish, optimize


def linear_onnx(path, inputs, classes, *, softmax=False):
    """`x` float32 [batch, *inputs] -> `scores` [batch, classes]."""
    weights = np.random.default_rng(0).normal(size=(int(np.prod(inputs)), classes)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["scores0" if softmax else "scores"]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["scores0"], ["scores"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *inputs])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(weights, "w")],
    )
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def published(source, tmp_path):
    outcome = optimize(source, Wish(recipe=Recipe(())), Store(tmp_path / "store"), "m", lambda _: None)
    return outcome.published[0].manifest


def state(folder, **said):
    (folder / PROCESSING_FILE).write_text(json.dumps(said))


def test_labels_and_image_beside_an_onnx_file_reach_the_manifest_of_every_variant(tmp_path):
    path = linear_onnx(tmp_path / "m.onnx", (3, 4, 4), 2)
    state(tmp_path, labels=["cat", "dog"], threshold=0.8, image={"height": 4, "width": 4, "mean": [0.5, 0.5, 0.5]})
    manifest = published(Source(path=path), tmp_path)
    assert manifest.labels == ("cat", "dog")
    assert manifest.processing.answer == AnswerForm(kind="label", activation="softmax", threshold=0.8)
    assert msgspec.structs.asdict(manifest.processing.image) == msgspec.structs.asdict(
        ImageInput(height=4, width=4, mean=(0.5, 0.5, 0.5))
    )


def test_what_is_stated_comes_before_what_is_found(tmp_path):
    path = linear_onnx(tmp_path / "m.onnx", (3,), 2)
    stated = Stated(labels=("no", "yes"), answer="labels", activation="sigmoid")
    answer = published(Source(path=path, stated=stated), tmp_path).processing.answer
    assert answer == AnswerForm(kind="labels", activation="sigmoid")


def test_scores_that_are_probabilities_are_left_as_they_are(tmp_path):
    path = linear_onnx(tmp_path / "m.onnx", (3,), 2, softmax=True)
    state(tmp_path, labels=["no", "yes"])
    assert published(Source(path=path), tmp_path).processing.answer.activation == "none"


def test_what_is_stated_later_makes_another_version(tmp_path):
    path = linear_onnx(tmp_path / "m.onnx", (3,), 2)
    assert published(Source(path=path), tmp_path).processing is None
    assert published(Source(path=path), tmp_path).version == 1
    state(tmp_path, labels=["no", "yes"])
    assert published(Source(path=path), tmp_path).version == 2


def test_the_folders_of_images_a_model_is_measured_on_say_how_it_reads_them_and_name_its_classes(tmp_path):
    from PIL import Image

    path = linear_onnx(tmp_path / "m.onnx", (3, 4, 4), 2)
    for name in ("dog", "cat"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (4, 4), (number, 9, 9)).save(tmp_path / "images" / name / f"{number}.png")
    manifest = published(Source(path=path, data=tmp_path / "images"), tmp_path)
    assert manifest.labels == ("cat", "dog")
    assert manifest.processing.image == ImageInput(height=4, width=4)
    assert manifest.processing.answer.kind == "label"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"label": ["a"]}, "unknown field `label`"),
        ({"labels": ["a", "b", "c"]}, "names 3 labels, the model has 2 classes"),
        ({"image": {"height": 4, "width": 4, "men": [1]}}, "unknown field `men`"),
        ({"image": {"height": 4, "width": 4}}, r"images become \[3, 4, 4\] a row, the model takes x:float32:batch,3"),
        ({"tokenizer": "nothing.json"}, "names the tokenizer .*nothing.json, which is not there"),
        ({"tokenizer": "m.onnx"}, "names a tokenizer, which gives input_ids"),
        ({"output": "other"}, "the model has no output 'other', it gives scores"),
        ({"threshold": 2}, "threshold"),
        ([], "cannot be read"),
    ],
)
def test_what_contradicts_the_model_or_means_nothing_is_told(tmp_path, said, told):
    path = linear_onnx(tmp_path / "m.onnx", (3,), 2)
    (tmp_path / PROCESSING_FILE).write_text(json.dumps(said))
    with pytest.raises(UsageError, match=told):
        published(Source(path=path), tmp_path)


def test_without_a_file_nothing_is_stated(tmp_path):
    assert read_stated(tmp_path / "m.onnx") == Stated()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A tiny text classifier with labels and a tokenizer, as transformers saves it."""
    pytest.MonkeyPatch().setenv("USE_TF", "0")
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert") / "bert"
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}
    config = BertConfig(
        **sizes, num_hidden_layers=1, max_position_embeddings=24, id2label={0: "ham", 1: "spam"},
        problem_type="multi_label_classification",
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "win": 2, "lunch": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    return folder


def test_a_hugging_face_folder_is_exported_with_its_task_and_says_it_all_itself(bert, tmp_path):
    """It goes through the importing process."""
    manifest = published(Source(path=bert), tmp_path)
    assert manifest.task == "text-classification"
    below = {"input_ids": 20, "attention_mask": None, "token_type_ids": 2}
    assert {spec.name: spec.below for spec in manifest.inputs} == below
    assert [str(spec) for spec in manifest.outputs] == ["logits:float32:batch_size,2"]
    assert manifest.lineage[0].parameters["kind"] == "huggingface"
    assert manifest.labels == ("ham", "spam")
    assert manifest.processing.text == TextInput(max_tokens=24, pad_token="[PAD]")
    assert manifest.processing.answer == AnswerForm(kind="labels", activation="sigmoid")
