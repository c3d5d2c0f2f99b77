"""Distillation on real digits and diabetes rows, and of a small encoder; students made by a factory or as copies."""

import copy
import itertools
import sys

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from mlserve.errors import DataFileError, Refused, UsageError
from mlserve.model.rows import ArrayRows
from mlserve.model.tensors import TensorSpec
from mlserve.optimize.importers.original import named_outputs
from mlserve.optimize.training.distill import Distill
from mlserve.optimize.training.fit import fit
from mlserve.optimize.training.layers import layer_stacks
from mlserve.optimize.training.losses import task_loss
from mlserve.optimize.training.schedule import Schedule
from mlserve.optimize.training.students import Student, make_student
from mlserve.optimize.training.teaching import Aims, Teaching
from mlserve.optimize.training.trainee import Trainee

FACTORIES = """
import torch
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )

def narrow():
    return nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1))

def nine_classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9))

def other_inputs():
    return nn.Linear(30, 10)

def no_network():
    return 7

def broken():
    raise OSError("weights are missing")
"""

QUICK = Schedule(epochs=2, batch_rows=64)


class Picture(nn.Module):
    """A convolution net for 8 x 8 digits; `width` channels."""

    def __init__(self, width=32):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(8 * width, 64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, 10)

    def forward(self, image):
        return self.head(self.body(image))


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Threads that wait for each other take many times as long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def digits():
    """Rows to learn from, and 360 held out."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images / 16.0).astype(np.float32)[:, None]
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    rows = ArrayRows({"image": images}, "digits", data.target.astype(np.int64))
    return rows.take(order[360:]), rows.take(order[:360])


@pytest.fixture(scope="module")
def picture(digits):
    """A teacher, trained for a few seconds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Picture()
    fit(
        module, digits[0], lambda inputs, labels, _: task_loss({"output": module(inputs["image"])}, labels),
        Schedule(epochs=5, learning_rate=3e-3), seed=0, checkpoint=None, on_step=lambda _: None,
    )  # fmt: skip
    return module


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with factories in it; each test sees its own."""
    (tmp_path / "factories.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "factories", raising=False)
    return tmp_path


def trainee_of(module, rows, *, task="unknown", names=None, specs=(), **about):
    names = names or ["image"]

    def call(network, inputs):
        return named_outputs(network(*(inputs[name] for name in names)))

    return Trainee(copy.deepcopy(module), call, specs, rows=rows, task=task, **about)


def image_trainee(module, rows, **about):
    return trainee_of(module, rows, specs=[TensorSpec("image", "float32", ("batch", 1, 8, 8))], **about)


def accuracy(module, rows):
    with torch.no_grad():
        found = module.eval()(torch.from_numpy(rows.columns["image"])).argmax(1).numpy()
    return float(np.mean(found == rows.labels))


def size(module):
    return sum(weight.numel() for weight in module.parameters())


def test_a_student_of_a_quarter_of_the_parameters_is_within_a_point_of_its_teacher(digits, picture, here):
    train, held_out = digits
    trainee = image_trainee(picture, train)
    schedule = Schedule(epochs=8, learning_rate=1e-2, patience_epochs=8)
    notes = Distill(student="factories:small", schedule=schedule)(trainee)
    student = trainee.module
    assert size(student) <= size(picture) / 4
    assert not student.training
    assert accuracy(picture, held_out) > 0.97
    assert accuracy(student, held_out) >= accuracy(picture, held_out) - 0.01
    assert notes[0] == "student: factories:small"
    assert any(f"{size(picture):,} -> {size(student):,}" in note for note in notes)
    assert any("names its teacher's class on" in note and "validation rows" in note for note in notes)


def test_the_student_learns_from_its_teacher_alone_when_there_are_no_labels(digits, picture, here):
    train, held_out = digits
    unlabelled = ArrayRows(train.columns, train.source)
    untrained = image_trainee(picture, unlabelled)
    Distill(student="factories:small", schedule=Schedule(epochs=0))(untrained)
    trainee = image_trainee(picture, unlabelled)
    notes = Distill(student="factories:small", schedule=Schedule(epochs=8, learning_rate=5e-3))(trainee)
    assert accuracy(untrained.module, held_out) < 0.5
    assert accuracy(trainee.module, held_out) > 0.93
    assert any("explains" in note or "class" in note for note in notes)


def test_a_narrower_copy_has_fewer_channels_and_its_teachers_answers(digits, picture):
    train, held_out = digits
    trainee = image_trainee(picture, train)
    notes = Distill(width=0.5, schedule=Schedule(epochs=4, batch_rows=64))(trainee)
    assert size(trainee.module) < 0.5 * size(picture)
    assert accuracy(trainee.module, held_out) > accuracy(picture, held_out) - 0.03
    assert "channels" in notes[0]


def test_a_regression_is_distilled_to_the_same_values(here):
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    x, y = (data.data * 20).astype(np.float32), ((data.target - 150) / 77).astype(np.float32)
    rows = ArrayRows({"x": x}, "diabetes", y)
    teacher = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1))
    learn = lambda inputs, labels, _: task_loss({"output": teacher(inputs["x"])}, labels)  # noqa: E731
    fit(teacher, rows, learn, Schedule(epochs=15), seed=0, checkpoint=None, on_step=lambda _: None)
    trainee = trainee_of(teacher, rows, names=["x"], specs=[TensorSpec("x", "float32", ("batch", 10))])
    schedule = Schedule(epochs=40, batch_rows=64, learning_rate=2e-2, patience_epochs=40)
    notes = Distill(student="factories:narrow", schedule=schedule, hard_weight=0.1)(trainee)
    with torch.no_grad():
        wanted, found = (network(torch.from_numpy(x))[:, 0] for network in (teacher, trainee.module))
    assert size(trainee.module) < size(teacher) / 4
    assert ((found - wanted).square().mean() / wanted.var()).item() < 0.05
    assert any("explains 9" in note for note in notes)


def encoder():
    """A BERT of six layers; its layers add enough to the stream that each of them matters."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=6, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=16, initializer_range=0.15, attn_implementation="eager",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Pooled(BertModel(config, add_pooling_layer=False)).eval()


class Pooled(nn.Module):
    def __init__(self, bert):
        super().__init__()
        self.bert = bert

    def forward(self, input_ids, attention_mask):
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).float()
        return {"sentence_embedding": (states * mask).sum(1) / mask.sum(1)}


def sentences(count, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 13, count)
    mask = (np.arange(12) < lengths[:, None]).astype(np.int64)
    # Words follow each other as in a text: the next is near the one before.
    tokens = (rng.integers(1, 60, (count, 1)) + np.cumsum(rng.integers(0, 4, (count, 12)), 1)) % 59 + 1
    return ArrayRows({"input_ids": tokens * mask, "attention_mask": mask}, "made-up texts")


def text_trainee(rows, **about):
    specs = [TensorSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask")]
    names = ["input_ids", "attention_mask"]
    return trainee_of(encoder(), rows, task="feature-extraction", names=names, specs=specs, **about)


def cosine(one, other, rows):
    inputs = {name: torch.from_numpy(column) for name, column in rows.columns.items()}
    with torch.no_grad():
        answers = [network.eval()(**inputs)["sentence_embedding"] for network in (one, other)]
    return functional.cosine_similarity(*answers).mean().item()


def test_an_encoder_of_fewer_layers_comes_near_its_teachers_embeddings():
    rows, held_out = sentences(400), sentences(100, seed=1)
    untrained, trainee = text_trainee(rows), text_trainee(rows)
    Distill(layers=3, schedule=Schedule(epochs=0))(untrained)
    schedule = Schedule(epochs=5, learning_rate=4e-3)
    notes = Distill(layers=3, schedule=schedule)(trainee)
    before, after = (cosine(encoder(), taught.module, held_out) for taught in (untrained, trainee))
    assert before < 0.8
    assert after > 0.9
    assert trainee.module.bert.config.num_hidden_layers == len(trainee.module.bert.encoder.layer) == 3
    assert "of the teacher's 6" in notes[0]
    assert any("mean cosine to its teacher 0.9" in note for note in notes)
    assert not trainee.module.bert.encoder.layer[0]._forward_hooks


def test_the_layers_left_are_those_whose_loss_changes_the_answers_least():
    trainee = text_trainee(sentences(64))
    chosen = make_student(trainee, "", layers=5, width=1.0, seed=0).module
    others = []
    for gone in range(6):
        module = encoder()
        del module.bert.encoder.layer[gone]
        others.append(cosine(encoder(), module, trainee.rows.take(range(32))))
    assert cosine(encoder(), chosen, trainee.rows.take(range(32))) == pytest.approx(max(others), abs=1e-4)
    assert max(others) - min(others) > 0.01


def hidden_distance(trainee, module, rows):
    """How far the student's states after its second layer are from what its third was trained to read."""
    aims = Aims(temperature=2.0, soft_weight=1.0, hard_weight=1.0, hidden=True, seed=0)
    student = make_student(trainee, "", layers=3, width=1.0, seed=0)
    layer = module.bert.encoder.layer
    pairs = tuple(zip(layer, (pair[1] for pair in student.pairs), strict=True))
    taught = msgspec.structs.replace(student, module=module, pairs=pairs)
    inputs = {name: torch.from_numpy(column) for name, column in rows.columns.items()}
    with torch.no_grad(), Teaching(trainee, taught, rows, aims) as teaching:
        with_states = teaching(inputs, None, list(range(len(rows))))
    with torch.no_grad(), Teaching(trainee, taught, rows, aims._replace(hidden=False)) as teaching:
        return float(with_states - teaching(inputs, None, list(range(len(rows)))))


def test_the_hidden_states_are_met_only_when_that_is_asked_for():
    rows, held_out = sentences(200), sentences(50, seed=1)
    distances = {}
    for hidden in ("auto", "none"):
        trainee = text_trainee(rows)
        Distill(layers=3, hidden=hidden, schedule=Schedule(epochs=3, learning_rate=2e-3))(trainee)
        distances[hidden] = hidden_distance(text_trainee(rows), trainee.module, held_out)
    assert distances["auto"] < 0.8 * distances["none"]


def test_narrower_states_are_bridged_by_the_seed_and_the_bridges_are_trained(digits, picture):
    rows = digits[0].take(range(64))
    trainee = image_trainee(picture, rows)
    module = Picture(width=8)
    student = Student(module, "student: narrow", ((module.body[0], trainee.module.body[0]),))
    bridges = []
    for seed in (1, 1, 2):
        with Teaching(trainee, student, rows, Aims(2.0, 1.0, 1.0, hidden=True, seed=seed)) as teaching:
            loss = teaching({"image": torch.from_numpy(rows.columns["image"])}, None, list(range(64)))
        loss.backward()
        bridges.append(teaching.bridges[0].weight)
        assert bridges[-1].shape == (32, 8)
        assert bridges[-1].grad is not None
    assert torch.equal(bridges[0], bridges[1])
    assert not torch.equal(bridges[0], bridges[2])


def test_the_same_seed_gives_the_same_student(digits, picture, here):
    rows = digits[0].take(range(200))
    students = []
    for seed in (3, 3, 4):
        trainee = image_trainee(picture, rows)
        Distill(student="factories:small", schedule=QUICK, seed=seed)(trainee)
        students.append(trainee.module[0].weight)
    assert torch.equal(students[0], students[1])
    assert not torch.equal(students[0], students[2])


def test_the_teacher_is_left_as_it_was(digits, picture, here):
    trainee = image_trainee(picture, digits[0].take(range(100)))
    teacher = trainee.module
    before = copy.deepcopy(teacher.state_dict())
    Distill(width=0.5, schedule=QUICK)(trainee)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert trainee.module is not teacher


def test_an_interrupted_distillation_goes_on_from_its_checkpoint(digits, picture, here, monkeypatch):
    rows, schedule = digits[0].take(range(200)), Schedule(epochs=6, batch_rows=64, patience_epochs=6)
    whole, broken, resumed = (image_trainee(picture, rows) for _ in range(3))
    for trainee in (whole, broken, resumed):
        trainee.checkpoints = here / "checkpoints"
    distill = Distill(student="factories:small", schedule=schedule)
    distill(whole)

    def interrupt(step):
        if "epoch 4/6" in step:
            raise KeyboardInterrupt

    broken.on_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        distill(broken)
    assert list((here / "checkpoints").iterdir()) != []
    told = []
    resumed.on_step = told.append
    notes = distill(resumed)
    assert any("went on from a checkpoint in epoch" in note for note in notes)
    assert not any("epoch 1/6" in step for step in told)
    assert list((here / "checkpoints").iterdir()) == []
    for one, other in zip(whole.module.parameters(), resumed.module.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_progress_names_the_pass_the_epoch_and_the_losses(digits, picture, here):
    told = []
    trainee = image_trainee(picture, digits[0].take(range(100)), on_step=told.append)
    Distill(student="factories:small", schedule=QUICK)(trainee)
    assert any(step.startswith("distill: epoch 1/2, loss ") and "validation" in step for step in told)


@pytest.mark.parametrize(
    ("distill", "error", "words"),
    [
        (Distill(student="factories:nine_classes"), Refused, r"output \[2, 9\], its teacher output \[2, 10\]"),
        (Distill(student="factories:other_inputs"), Refused, "does not run on the teacher's inputs .*image:float32"),
        (Distill(student="factories:no_network"), UsageError, "gives a int; return a torch.nn.Module"),
        (Distill(student="factories:broken"), UsageError, "weights are missing"),
        (Distill(student="factories:missing"), UsageError, "missing"),
        (Distill(student="factories"), UsageError, "package.module:function"),
        (Distill(layers=2), Refused, "no stack"),
    ],
)
def test_a_student_that_does_not_fit_is_refused_with_both_sides_named(digits, picture, here, distill, error, words):
    trainee = image_trainee(picture, digits[0].take(range(50)))
    teacher = trainee.module
    with pytest.raises(error, match=words):
        distill(trainee)
    assert trainee.module is teacher


def test_as_many_layers_as_there_are_is_no_student():
    with pytest.raises(Refused, match="the model has 6"):
        Distill(layers=6)(text_trainee(sentences(40)))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_fixed_graph_has_no_thinner_copy_but_can_teach(digits, picture, here):
    rows = digits[0].take(range(100))
    scripted = torch.jit.trace(picture, torch.zeros(2, 1, 8, 8))
    trainee = Trainee(
        scripted, lambda network, inputs: named_outputs(network(inputs["image"])),
        [TensorSpec("image", "float32", ("batch", 1, 8, 8))], rows=rows, frozen_as="TorchScript",
    )  # fmt: skip
    with pytest.raises(Refused, match=r"TorchScript.*package\.module:factory"):
        Distill(width=0.5)(trainee)
    Distill(student="factories:small", schedule=QUICK)(trainee)
    assert isinstance(trainee.module, nn.Sequential)


def test_without_rows_there_is_nothing_to_learn_from(picture):
    with pytest.raises(DataFileError, match="--data"):
        Distill(width=0.5)(image_trainee(picture, None))


@pytest.mark.parametrize(
    "fields",
    [{}, {"student": "a:b", "layers": 2}, {"student": "a:b", "width": 0.5}, {"width": 0.0},
     {"layers": 2, "soft_weight": 0.0, "hard_weight": 0.0}, {"layers": 2, "temperature": 0.0}],
)  # fmt: skip
def test_a_recipe_that_makes_no_sense_is_an_error_that_names_the_place(fields):
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode({"pass": "distill"} | fields), type=Distill)


def test_a_recipe_says_the_student(picture):
    decoded = msgspec.json.decode(b'{"pass": "distill", "layers": 4, "schedule": {"epochs": 3}}', type=Distill)
    assert decoded == Distill(layers=4, schedule=Schedule(epochs=3))
    assert not list(itertools.chain(layer_stacks(picture)))
