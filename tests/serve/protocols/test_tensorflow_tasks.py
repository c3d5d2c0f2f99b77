"""TensorFlow Serving's REST API for models that read texts and images: a person's values in, the task's answers out."""

import base64
import io
import json

import numpy as np
import pytest

from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest
from mlserve.model.processing import AnswerForm, ImageInput, Processing, TextInput
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec
from mlserve.serve.settings import Follow, StoreChoice

WORDS = ("[UNK]", "lunch", "report", "money", "prize")
# The scores (ham, spam) of each word; a text's are their sum.
TABLE = np.array([[0, 0], [2, 0], [2, 0], [0, 2], [0, 3]], np.float32)
FORMS = {
    "mail": AnswerForm(kind="label", activation="softmax"),
    "tags": AnswerForm(kind="labels", activation="sigmoid"),
    "vector": AnswerForm(kind="embedding"),
    "grade": AnswerForm(kind="value"),
}


def save(path, nodes, inputs, outputs, constants):
    from onnx import TensorProto, helper, numpy_helper, save_model

    element = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    values = [
        [helper.make_tensor_value_info(spec.name, element[spec.dtype], list(spec.shape)) for spec in specs]
        for specs in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", *values, tensors)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def write_text_model(folder):
    from onnx import TensorProto, helper
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = [TensorSpec(name, "int64", ("batch", "sequence"), len(WORDS)) for name in ("input_ids", "attention_mask")]
    scores = TensorSpec("scores", "float32", ("batch", 2))
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["each"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["each", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["scores"], keepdims=0),
    ]
    save(
        folder / MODEL_FILE,
        nodes,
        tokens,
        [scores],
        {"table": TABLE, "last": np.array([2]), "middle": np.array([1])},
    )
    return tuple(tokens), (scores,)


def write_image_model(folder):
    from onnx import helper

    image, brightness = (
        TensorSpec("image", "float32", ("batch", 1, 2, 2)),
        TensorSpec("brightness", "float32", ("batch", 1)),
    )
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("ReduceMean", ["flat"], ["brightness"], axes=[1]),
    ]
    save(folder / MODEL_FILE, nodes, [image], [brightness], {})
    return (image,), (brightness,)


@pytest.fixture(scope="module")
def server(serving_settings, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("tasks") / "store")
    kinds = {name: (write_text_model, Processing(text=TextInput(), answer=form)) for name, form in FORMS.items()}
    sight = Processing(image=ImageInput(height=2, width=2, channels=1, layout="NCHW"), answer=AnswerForm(kind="value"))
    kinds["light"] = write_image_model, sight
    for name, (write, processing) in kinds.items():
        with store.staging() as folder:
            made = folder / "made"
            made.mkdir()
            inputs, outputs = write(made)
            manifest = Manifest(
                variant="fp32", inputs=inputs, outputs=outputs, labels=("ham", "spam"), processing=processing
            )
            store.add(Artifact(made, manifest), name)
    with serving_settings(store=StoreChoice(str(store.root), (Follow("*"),))) as running:
        yield running


@pytest.fixture
def ask(server):
    def post(path, body):
        status, _, answer = server.request("POST", f"/v1/models/{path}", json.dumps(body))
        return status, json.loads(answer)

    return post


def softmax(*scores):
    powers = np.exp(np.array(scores, np.float64))
    return (powers / powers.sum()).tolist()


def b64(data):
    return {"b64": base64.b64encode(data).decode()}


def gray(level):
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (5, 5), level).save(file, "PNG")
    return file.getvalue()


def spam(text_scores):
    ham, spam = softmax(*text_scores)
    return {"label": "spam" if spam > ham else "ham", "score": pytest.approx(max(ham, spam), abs=1e-5)}


@pytest.mark.parametrize(
    "instances",
    [
        ["money prize", "lunch"],
        [{"text": "money prize"}, {"text": "lunch"}],
        [b64(b"money prize"), "lunch"],
        [{"text_bytes": b64(b"money prize")}, {"text": b64(b"lunch")}],
    ],
)
def test_texts_by_row_are_answered_by_the_task(ask, instances):
    expected = {"predictions": [spam((0, 5)), spam((2, 0))]}
    assert ask("mail:predict", {"instances": instances}) == (200, expected)
    assert ask("mail:predict", {"instances": instances, "signature_name": "text"}) == (200, expected)


@pytest.mark.parametrize("columns", [["money prize", "lunch"], {"text": ["money prize", "lunch"]}])
def test_texts_by_column_are_answered_by_column(ask, columns):
    first, second = spam((0, 5)), spam((2, 0))
    expected = {"outputs": {name: [first[name], second[name]] for name in ("label", "score")}}
    assert ask("mail:predict", {"inputs": columns}) == (200, expected)


def test_an_answer_of_one_part_is_a_plain_value(ask):
    assert ask("vector:predict", {"instances": ["money prize", "lunch"]}) == (200, {"predictions": [[0, 5], [2, 0]]})
    assert ask("vector:predict", {"inputs": ["money prize"]}) == (200, {"outputs": [[0, 5]]})
    assert ask("grade:predict", {"instances": ["lunch"]}) == (200, {"predictions": [2]})


def test_classify_and_regress_take_a_person_s_values(ask):
    found = ask("mail:classify", {"examples": [{"text": "money prize"}]})[1]["results"]
    assert found == [[["spam", pytest.approx(softmax(0, 5)[1], abs=1e-5)]]]
    _, document = ask("tags:classify", {"examples": [{"text": "money lunch"}]})
    assert [label for label, _ in document["results"][0]] == ["ham", "spam"]
    assert ask("grade:regress", {"examples": [{"text": "lunch"}]}) == (200, {"results": [2]})
    assert ask("light:regress", {"examples": [{"image_bytes": b64(gray(255))}]}) == (200, {"results": [1]})


def test_images_are_answered_by_the_task(ask):
    images = [b64(gray(255)), b64(gray(51))]
    close = [pytest.approx(1.0), pytest.approx(0.2)]
    for body in (
        {"instances": images},
        {"instances": [{"image_bytes": image} for image in images]},
        {"instances": [{"image": images[0]}, images[1]], "signature_name": "image"},
    ):
        # A name that is the model's own input is a tensor's.
        expected = 400 if "image" in body["instances"][0] else 200
        status, document = ask("light:predict", body)
        assert status == expected, document
        if status == 200:
            assert document == {"predictions": close}


def test_tensors_still_are_tensors(ask):
    tokens = {"input_ids": [3, 4], "attention_mask": [1, 1]}
    assert ask("mail:predict", {"instances": [tokens]}) == (200, {"predictions": [[0, 5]]})
    assert ask("light:predict", {"instances": [[[[1, 1], [0, 0]]]]}) == (200, {"predictions": [[0.5]]})


def test_the_metadata_has_the_task_s_signature(server):
    def signatures(model):
        document = server.get_json(f"/v1/models/{model}/metadata")
        return document["metadata"]["signature_def"]["signature_def"]

    assert signatures("mail")["text"]["inputs"]["text"]["dtype"] == "DT_STRING"
    assert signatures("light")["image"]["inputs"]["image_bytes"]["dtype"] == "DT_STRING"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("mail:predict", {"instances": ["money", 5]}, "send every row as an object"),
        ("mail:predict", {"instances": [b64(b"\xff")]}, "not base64 of UTF-8"),
        ("mail:predict", {"instances": ["money"], "signature_name": "image"}, 'name: "image" not found'),
        ("light:predict", {"instances": ["no image"]}, "cannot be read"),
        ("light:predict", {"instances": [{"b64": "%%"}]}, "not base64"),
        ("light:predict", {"instances": [b64(b"no image")]}, "image"),
        ("vector:classify", {"examples": [{"text": "money"}]}, "is no classifier"),
        ("mail:regress", {"examples": [{"text": "money"}]}, "gives no numbers"),
    ],
)
def test_what_the_task_cannot_read_is_told(ask, path, body, message):
    status, document = ask(path, body)
    assert (status, list(document)) == (400, ["error"])
    assert message in document["error"]
