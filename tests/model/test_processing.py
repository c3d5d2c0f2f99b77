"""What answers mean, by task, labels and shapes; and manifests of before."""

import gc

import msgspec
import pytest

from mlserve.model.artifact import Manifest, read_manifest, write_manifest
from mlserve.model.processing import AnswerForm, ImageInput, Processing, TextInput, answer_form, takes_text
from mlserve.model.tensors import TensorSpec

SCORES = TensorSpec("logits", "float32", ("batch", 3))
ONE = TensorSpec("logits", "float32", ("batch", 1))
TOKENS = TensorSpec("last_hidden_state", "float32", ("batch", "sequence", 8))
SENTENCE = TensorSpec("sentence_embedding", "float32", ("batch", 8))
CLASSES = TensorSpec("label", "int64", ("batch",))


@pytest.mark.parametrize(
    ("task", "labels", "outputs", "problem", "expected"),
    [
        ("text-classification", (), [SCORES], "", AnswerForm(kind="label", activation="softmax")),
        ("unknown", ("a", "b", "c"), [SCORES], "", AnswerForm(kind="label", activation="softmax")),
        ("unknown", (), [SCORES], "", AnswerForm()),
        ("unknown", ("a", "b"), [ONE], "", AnswerForm(kind="label", activation="sigmoid")),
        (
            "text-classification", (), [SCORES], "multi_label_classification",
            AnswerForm(kind="labels", activation="sigmoid"),
        ),
        ("text-classification", (), [ONE], "", AnswerForm(kind="value")),
        ("text-classification", (), [SCORES], "regression", AnswerForm(kind="value")),
        ("token-classification", ("a", "b"), [TOKENS], "", AnswerForm()),
        ("feature-extraction", (), [TOKENS], "", AnswerForm(kind="embedding", pooling="mean")),
        (
            "feature-extraction", (), [TOKENS, SENTENCE], "",
            AnswerForm(kind="embedding", output="sentence_embedding"),
        ),
        ("unknown", ("a", "b"), [CLASSES], "", AnswerForm()),
    ],
)  # fmt: skip
def test_what_an_answer_means_follows_from_task_labels_and_shape(task, labels, outputs, problem, expected):
    assert answer_form(task, labels, outputs, problem=problem) == expected


def test_a_model_takes_text_when_a_tokenizer_gives_all_its_inputs():
    ids, mask = (TensorSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask"))
    assert takes_text([ids, mask])
    assert not takes_text([mask])
    assert not takes_text([ids, TensorSpec("pixel_values", "float32", ("batch", "sequence"))])
    assert not takes_text([ids, TensorSpec("attention_mask", "int64", ("batch", 8))])
    assert not takes_text([])


def test_a_manifest_keeps_what_people_are_answered_with_and_an_older_one_has_none(tmp_path):
    image = ImageInput(height=8, width=9, resize=(10, 11), mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 2.0))
    answer = AnswerForm(kind="label", threshold=0.5)
    processing = Processing(text=TextInput(max_tokens=7), image=image, answer=answer)
    manifest = Manifest(variant="fp32", inputs=(), outputs=(SCORES,), processing=processing)
    write_manifest(tmp_path, manifest)
    for _ in range(3):
        assert read_manifest(tmp_path) == manifest
        gc.collect()  # msgspec 0.22 crashed here for an annotated type in a union
    older = msgspec.json.decode((tmp_path / "manifest.json").read_bytes())
    del older["processing"]
    (tmp_path / "manifest.json").write_bytes(msgspec.json.encode(older))
    assert read_manifest(tmp_path) == msgspec.structs.replace(manifest, processing=None)
