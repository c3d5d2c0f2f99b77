"""Pruning, on a network that has learnt real digits."""

import copy

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from mlserve.errors import Refused
from mlserve.model.rows import ArrayRows
from mlserve.model.tensors import TensorSpec
from mlserve.optimize.evaluation.split import Split, split_rows
from mlserve.optimize.importers.original import named_outputs
from mlserve.optimize.training.prune import Prune
from mlserve.optimize.training.schedule import Schedule
from mlserve.optimize.training.size import measure_size
from mlserve.optimize.training.structure import shrink
from mlserve.optimize.training.trainee import Trainee

TUNING = Schedule(epochs=6, learning_rate=2e-3)
UNTUNED = Schedule(epochs=0)
IMAGE = TensorSpec("image", "float32", ("batch", 1, 8, 8))


@pytest.fixture(autouse=True)
def plain_attention():
    """As the importing process has it: torch's fused encoder layer is no sum of products that can be counted."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Batches are small: threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    """Rows to learn from, rows held out, and a network that has learnt: 1,797 real digits of 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = (found.images / 16).astype(np.float32)[:, None]
    used, held_out = split_rows(ArrayRows({"image": images}, "digits", found.target.astype(np.int64)), Split())
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(512, 48), nn.ReLU(), nn.Linear(48, 10)),
    )
    optimizer = torch.optim.AdamW(module.parameters(), 2e-3)
    inputs, labels = torch.from_numpy(used.columns["image"]), torch.from_numpy(used.labels)
    for _ in range(12):
        for chosen in torch.randperm(len(used)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(module(inputs[chosen]), labels[chosen]).backward()
            optimizer.step()
    module.eval()
    assert accuracy(module, held_out) > 0.96
    return used, held_out, module


def trainee_of(digits, *, labels=True, rows=True):
    used, _, module = digits
    if not labels:
        used = ArrayRows(used.columns, used.source)
    return Trainee(
        copy.deepcopy(module),
        lambda called, inputs: named_outputs(called(*inputs.values())),
        [IMAGE],
        rows=used if rows else None,
    )


def accuracy(module, rows):
    with torch.no_grad():
        answers = module.eval()(torch.from_numpy(rows.columns["image"])).argmax(1).numpy()
    return float((answers == rows.labels).mean())


def test_half_the_channels_are_within_a_point_of_all_of_them(digits):
    _, held_out, module = digits
    trainee = trainee_of(digits)
    before = measure_size(trainee)
    notes = Prune("channels", 0.5, tuning=TUNING)(trainee)
    after = measure_size(trainee)
    assert [layer.out_channels for layer in trainee.module if isinstance(layer, nn.Conv2d)] == [8, 16]
    assert [layer.out_features for layer in trainee.module if isinstance(layer, nn.Linear)] == [24, 10]
    assert after.parameters < 0.3 * before.parameters
    assert after.flops < 0.3 * before.flops
    assert notes[0].startswith("channels: 96 -> 48")
    assert notes[1] == f"parameters: {before.parameters:,} -> {after.parameters:,} (26%)"
    assert notes[2].startswith("FLOPs for one row: ")
    assert notes[3].startswith("fine-tuned towards the labels on 809 rows, ")
    assert accuracy(trainee.module, held_out) >= accuracy(module, held_out) - 0.01


def test_without_tuning_half_the_channels_cost_accuracy(digits):
    _, held_out, module = digits
    trainee = trainee_of(digits)
    notes = Prune("channels", 0.5, tuning=UNTUNED)(trainee)
    assert notes[-1] == "not fine-tuned: epochs = 0"
    assert accuracy(trainee.module, held_out) < accuracy(module, held_out) - 0.01


def test_without_labels_the_model_as_it_was_is_the_teacher(digits):
    _, held_out, module = digits
    trainee = trainee_of(digits, labels=False)
    notes = Prune("channels", 0.5, tuning=TUNING)(trainee)
    assert notes[3].startswith("fine-tuned towards the answers of the model as it was on 809 rows")
    assert accuracy(trainee.module, held_out) >= accuracy(module, held_out) - 0.01


def test_without_data_there_is_no_tuning(digits):
    notes = Prune("unstructured", 0.5)(trainee_of(digits, rows=False))
    assert notes[-1] == "no data: not fine-tuned"


def test_two_of_four_hold_after_tuning(digits):
    _, held_out, module = digits
    trainee = trainee_of(digits)
    notes = Prune("2:4", tuning=msgspec.structs.replace(TUNING, epochs=2))(trainee)
    for layer in trainee.module[1:]:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            groups = layer.weight.detach().movedim(1, -1).reshape(-1, 4)
            assert ((groups == 0).sum(1) == 2).all()
    assert notes[0] == "left as they are, their inputs being no multiple of four: 0.weight"
    assert "not faster; TensorRT" in notes[2]
    assert accuracy(trainee.module, held_out) >= accuracy(module, held_out) - 0.01


def test_unstructured_sparsity_is_exact_after_tuning(digits):
    trainee = trainee_of(digits)
    notes = Prune("unstructured", 0.8, tuning=msgspec.structs.replace(TUNING, epochs=2))(trainee)
    weights = [weight for weight in trainee.module.parameters() if weight.ndim > 1]
    count = sum(weight.numel() for weight in weights)
    assert sum(int((weight == 0).sum()) for weight in weights) == round(count * 0.8)
    assert notes[0] == f"80.0% of {count:,} weights are zero"
    assert notes[1] == "zeros are multiplied like other numbers by onnxruntime: smaller when compressed, not faster"


def test_an_embedding_is_tuned_towards_itself_whatever_its_labels_say(digits):
    trainee = trainee_of(digits)
    trainee.task = "feature-extraction"
    notes = Prune("channels", 0.5, tuning=msgspec.structs.replace(TUNING, epochs=1))(trainee)
    assert notes[3].startswith("fine-tuned towards the answers of the model as it was")


class Branches(nn.Module):
    """Two inputs, channels that are joined and added, groups, and an output that comes from the middle."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)
        self.joined, self.added = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 3, padding=1)
        self.norm, self.deep = nn.GroupNorm(4, 32), nn.Conv2d(32, 32, 3, groups=32)
        self.head = nn.Linear(32, 5)

    def forward(self, left, right):
        middle = self.left(left)
        joined = self.joined(torch.cat([middle, self.right(right)], 1))
        deep = self.deep(joined + self.added(torch.relu(self.norm(joined))))
        scores = self.head(deep.mean((2, 3)))
        return {"scores": scores, "middle": middle, "best": scores.argmax(1)}


class Heard(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(7, 32, 3, padding=1), nn.Conv1d(32, 32, 3, padding=1)
        self.memory, self.head = nn.LSTM(32, 16, batch_first=True), nn.Linear(16, 2)

    def forward(self, sound):
        states, _ = self.memory(self.second(torch.relu(self.first(sound))).transpose(1, 2))
        return self.head(states[:, -1])


class HomeMade(nn.Module):
    """Heads are counted by hand, in a class whose name tells nothing."""

    def __init__(self):
        super().__init__()
        self.joint, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.wide, self.narrow, self.head = nn.Linear(16, 64), nn.Linear(64, 16), nn.Linear(16, 3)

    def forward(self, states):
        rows, length, _ = states.shape
        query, key, value = self.joint(states).view(rows, length, 3, 4, 4).permute(2, 0, 3, 1, 4)
        mixed = (query @ key.transpose(-2, -1)).softmax(-1) @ value
        states = states + self.out(mixed.transpose(1, 2).reshape(rows, length, 16))
        return self.head((states + self.narrow(torch.relu(self.wide(states)))).mean(1))


def test_layers_whose_channels_are_counted_by_hand_are_left_alone():
    states = TensorSpec("states", "float32", ("batch", "length", 16))
    trainee = Trainee(HomeMade().eval(), lambda called, inputs: {"answer": called(**inputs)}, [states])
    module = trainee.module
    assert shrink(trainee, channels=0.5)[0].startswith("channels: 64 -> 32")
    assert trainee.module is module
    assert (module.joint.out_features, module.wide.out_features, module.narrow.in_features) == (48, 32, 32)


def test_coupled_channels_go_together_and_outputs_keep_theirs():
    pictures = [TensorSpec(name, "float32", ("batch", 3, 8, 8)) for name in ("left", "right")]
    trainee = Trainee(Branches().eval(), lambda called, inputs: called(**inputs), pictures)
    before = trainee.shapes()
    shrink(trainee, channels=0.5)
    module = trainee.module
    assert trainee.shapes() == before
    assert (module.left.out_channels, module.right.out_channels) == (16, 8)
    assert (module.joined.in_channels, module.joined.out_channels, module.added.out_channels) == (24, 16, 16)
    assert (module.norm.num_channels, module.deep.groups, module.head.in_features) == (16, 16, 16)


def test_what_a_recurrent_layer_reads_stays():
    trainee = Trainee(Heard().eval(), lambda called, inputs: {"answer": called(**inputs)}, [
        TensorSpec("sound", "float32", ("batch", 7, "length"))
    ])  # fmt: skip
    shrink(trainee, channels=0.5)
    assert (trainee.module.first.out_channels, trainee.module.second.out_channels) == (16, 32)
    assert trainee.module.memory.input_size == 32


def test_a_transformer_gets_narrower_inside_its_feed_forward_parts_and_loses_heads(zoo):
    tokens = TensorSpec("tokens", "int64", ("batch", "sequence"), 50)
    trainee = Trainee(zoo.tokens().eval(), lambda called, inputs: {"answer": called(**inputs)}, [tokens])
    before = measure_size(trainee)
    notes = shrink(trainee, channels=0.5, heads=0.5)
    layer = trainee.module.encoder.layers[0]
    assert notes[0] == "attention heads: 4 -> 2"
    assert (layer.linear1.out_features, layer.linear2.in_features) == (16, 16)
    assert measure_size(trainee).flops < 0.7 * before.flops


def test_a_model_without_inner_channels_is_refused():
    trainee = Trainee(nn.Linear(8, 4), lambda called, inputs: {"y": called(**inputs)}, [
        TensorSpec("input", "float32", ("batch", 8))
    ])  # fmt: skip
    with pytest.raises(Refused, match="no channels can be taken out"):
        shrink(trainee, channels=0.5)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"what": "2:4", "amount": 0.3}, "amount is 0.5 for 2:4"),
        ({"what": "heads", "per_layer": True}, "per_layer is for unstructured"),
        ({"what": "channels", "choose": "spacing"}, "choose is for layers"),
        ({"what": "channels", "amount": 1.0}, r"< 1.0.*amount"),
        ({"what": "channels", "amount": 0}, r"> 0.0.*amount"),
        ({"what": "everything"}, "everything"),
        ({"what": "channels", "tuning": {"epoch": 3}}, "epoch"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_told_where(table, words):
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.convert({"pass": "prune"} | table, Prune)
    assert msgspec.convert({"pass": "prune", "what": "2:4"}, Prune) == Prune("2:4")
