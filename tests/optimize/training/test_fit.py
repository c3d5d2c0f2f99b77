"""Training by mini-batches; the killed one is a process of its own."""

import itertools
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from torch.nn import functional

from mlserve.errors import Refused
from mlserve.model.rows import ArrayRows, TextRows
from mlserve.model.tensors import TensorSpec
from mlserve.optimize.training import loop
from mlserve.optimize.training.fit import fit, split_validation
from mlserve.optimize.training.loop import batches, grouped, shuffled
from mlserve.optimize.training.schedule import Schedule, learning_rate_share

# Trains and writes its final weights; says every step, so that the test can kill it in the middle of an epoch.
TRAINING = """
import sys
from pathlib import Path
import numpy as np, torch
from torch import nn
from torch.nn import functional
import mlserve.optimize.training.loop as loop
from mlserve.model.rows import ArrayRows
from mlserve.optimize.training.fit import fit
from mlserve.optimize.training.schedule import Schedule

loop.CHECKPOINT_EVERY_S = loop._TOLD_EVERY_S = 0.0
torch.set_num_threads(1)
torch.manual_seed(0)
rng = np.random.default_rng(0)
x = rng.normal(size=(203, 6)).astype(np.float32)
rows = ArrayRows({"x": x}, "made up", (x[:, 0] * x[:, 1] > 0).astype(np.int64))
module = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
fit(
    module, rows, lambda inputs, labels, _: functional.cross_entropy(module(inputs["x"]), labels),
    Schedule(epochs=12, batch_rows=16, patience_epochs=12), seed=5,
    checkpoint=Path(sys.argv[1]), on_step=lambda step: print(step, flush=True),
    after_step=lambda: float(torch.rand(1)),  # someone else draws random numbers too
)
torch.save(module.state_dict(), sys.argv[2])
"""


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Threads that wait for each other take many times as long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made_up(count=160, seed=0):
    x = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    return ArrayRows({"x": x}, "made up", (x @ np.array([1.0, -2.0, 0.5, 0.0], np.float32)).astype(np.float32))


def line(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(4, 1)


def squared(module):
    return lambda inputs, labels, _: functional.mse_loss(module(inputs["x"])[:, 0], labels)


def trained(schedule=None, *, seed=0, rows=None, module=None, checkpoint=None, told=None, after_step=None, loss=None):
    module = line() if module is None else module
    report = fit(
        module,
        made_up() if rows is None else rows,
        loss or squared(module),
        schedule or Schedule(epochs=10, learning_rate=0.05),
        seed=seed,
        checkpoint=checkpoint,
        on_step=(told if told is not None else []).append,
        after_step=after_step,
    )
    return module, report


def test_a_line_is_learned_and_the_report_says_how_well():
    told = []
    module, report = trained(Schedule(epochs=40, learning_rate=0.05, weight_decay=0.0, patience_epochs=40), told=told)
    assert module.weight.detach().numpy()[0] == pytest.approx([1.0, -2.0, 0.5, 0.0], abs=0.02)
    assert report.best_loss < 0.001 < report.first_loss
    assert (report.train_rows, report.validation_rows) == (144, 16)
    assert not module.training
    assert any(step.startswith("epoch 3/40, loss ") and "validation" in step and "left" in step for step in told)


def test_the_same_seed_gives_the_same_weights_and_another_one_others():
    one, other, third = (trained(seed=seed)[0].weight for seed in (1, 1, 2))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


def test_the_callers_random_numbers_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    trained()
    assert torch.equal(torch.rand(4), expected)


def test_training_stops_when_validation_no_longer_falls_and_the_best_weights_stay():
    """After the first epoch the loss leads away from what validation asks for."""
    module = line()
    steps = []

    def loss(inputs, labels, _):
        found = module(inputs["x"])[:, 0]
        if module.training and len(steps) > 10:
            return functional.mse_loss(found, -labels)
        return functional.mse_loss(found, labels)

    schedule = Schedule(epochs=50, learning_rate=0.05, patience_epochs=3)
    _, report = trained(schedule, module=module, loss=loss, after_step=lambda: steps.append(1))
    assert report.epochs == report.best_epoch + 3 < 50
    with torch.no_grad():
        inputs, labels = {"x": torch.from_numpy(made_up().columns["x"])}, torch.from_numpy(made_up().labels)
        validation = split_validation(160, 0.1, 0)[1]
        kept = functional.mse_loss(module(inputs["x"][validation])[:, 0], labels[validation])
    assert kept.item() == pytest.approx(report.best_loss, rel=1e-5)
    assert report.best_loss < report.first_loss


def test_weights_that_only_get_worse_are_not_kept():
    module = line()
    before = module.weight.detach().clone()
    away = lambda inputs, labels, _: functional.mse_loss(  # noqa: E731
        module(inputs["x"])[:, 0], -labels if module.training else labels
    )
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -2.0, 0.5, 0.0]]))
        module.bias.zero_()
        before = module.weight.clone()
    _, report = trained(module=module, loss=away)
    assert report.best_epoch == 0
    assert torch.equal(module.weight, before)


def test_without_validation_rows_every_epoch_is_done_and_the_last_kept():
    _, report = trained(Schedule(epochs=7, validation_share=0.0))
    assert (report.epochs, report.best_epoch, report.validation_rows) == (7, 7, 0)
    assert np.isnan(report.best_loss)


def test_no_epochs_change_nothing():
    module = line()
    before = module.weight.detach().clone()
    _, report = trained(Schedule(epochs=0), module=module)
    assert report.epochs == 0
    assert torch.equal(module.weight, before)


def test_a_rest_of_one_row_does_not_break_batch_normalization():
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    _, report = trained(Schedule(epochs=2, batch_rows=32, validation_share=0.0), module=module, rows=made_up(65))
    assert report.epochs == 2


def test_a_learning_rate_that_is_too_high_is_refused_by_name():
    module = line()
    rows = made_up()
    with pytest.raises(Refused, match=r"the loss is (inf|nan) at a learning rate of 1e\+20; try 1e\+19"):
        trained(
            Schedule(epochs=3, learning_rate=1e20, warmup_share=0.0),
            module=module,
            loss=lambda inputs, labels, _: functional.mse_loss(module(inputs["x"])[:, 0] ** 2, labels),
            rows=rows,
        )


def test_a_module_without_weights_that_change_is_refused():
    module = line().requires_grad_(requires_grad=False)
    with pytest.raises(Refused, match="no weights that change"):
        trained(module=module)


def test_rows_the_module_cannot_take_are_named():
    rows = made_up()
    rows.columns = {"x": rows.columns["x"][:, :3]}
    with pytest.raises(Refused, match="made up"):
        trained(rows=rows)


def test_text_labels_are_refused():
    rows = made_up()
    rows.labels = np.array(["cat"] * len(rows), object)
    with pytest.raises(Refused, match="class numbers"):
        trained(rows=rows)


def test_masks_put_back_after_every_step_hold_to_the_end():
    module = line()
    mask = torch.tensor([[1.0, 0.0, 1.0, 0.0]])

    def put_back():
        with torch.no_grad():
            module.weight.mul_(mask)

    put_back()
    trained(module=module, after_step=put_back)
    assert module.weight[0, [1, 3]].tolist() == [0.0, 0.0]
    assert module.weight[0, 0] != 0


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a training that was killed in the middle of its fourth epoch: its checkpoint, and no weights."""
    folder = tmp_path_factory.mktemp("killed")
    _train(folder / "fit.pt", folder / "weights.pt", kill_at="epoch 4/12")
    return folder


def test_a_killed_training_goes_on_where_it_was(killed, tmp_path, capsys, monkeypatch):
    checkpoint = tmp_path / "fit.pt"
    whole = _train_here(checkpoint, tmp_path / "whole.pt", capsys, monkeypatch)
    assert not checkpoint.exists()
    assert [path.name for path in killed.iterdir()] == ["fit.pt"]
    shutil.copy(killed / "fit.pt", checkpoint)
    resumed = _train_here(checkpoint, tmp_path / "resumed.pt", capsys, monkeypatch)
    assert "went on from a checkpoint in epoch 4" in resumed
    assert "epoch 3/12" not in resumed
    assert "epoch 3/12" in whole
    assert not checkpoint.exists()
    expected, found = torch.load(tmp_path / "whole.pt"), torch.load(tmp_path / "resumed.pt")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_checkpoint_of_other_work_is_told_of_and_not_used(killed, tmp_path):
    checkpoint = tmp_path / "fit.pt"
    shutil.copy(killed / "fit.pt", checkpoint)
    told = []
    module, report = trained(checkpoint=checkpoint, told=told)
    assert any("another training" in note for note in report.notes)
    assert torch.equal(module.weight, trained()[0].weight)
    assert not checkpoint.exists()


def test_a_checkpoint_that_cannot_be_written_is_told_of_and_training_ends_well(tmp_path):
    (tmp_path / "file").touch()
    module, report = trained(checkpoint=tmp_path / "file" / "fit.pt")
    assert ["no checkpoint can be written" in note for note in report.notes] == [True]
    assert torch.equal(module.weight, trained()[0].weight)


def test_texts_of_like_length_come_together():
    tokenizer = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "word": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    rng = np.random.default_rng(0)
    texts = [" ".join(["word"] * count) for count in rng.integers(1, 30, 200).tolist()]
    numbers = list(range(0, 200, 2))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(f"{folder}/tokenizer.json")
        rows = TextRows(texts, Path(folder) / "tokenizer.json", [TensorSpec("input_ids", "int64", ("b", "s"))], "texts")
        groups = shuffled(rows, numbers, 8, (0, 1))
        padded = [inputs["input_ids"].numel() for _, inputs, _ in batches(rows, groups)]
        mixed = [inputs["input_ids"].numel() for _, inputs, _ in batches(rows, grouped(numbers, 8))]
        assert groups != shuffled(rows, numbers, 8, (0, 2))
    assert sorted(itertools.chain.from_iterable(groups)) == numbers
    words = sum(texts[number].count("word") for number in numbers)
    assert sum(padded) < 1.3 * words < sum(mixed)


def _train_here(checkpoint: Path, weights: Path, capsys, monkeypatch) -> str:
    """What the training said, in this process, where torch is loaded already."""
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", ["", str(checkpoint), str(weights)])
        patched.setattr(loop, "CHECKPOINT_EVERY_S", loop.CHECKPOINT_EVERY_S)  # which the training sets
        patched.setattr(loop, "_TOLD_EVERY_S", loop._TOLD_EVERY_S)
        exec(TRAINING, {})
    return capsys.readouterr().out


def _train(checkpoint: Path, weights: Path, kill_at: str) -> None:
    """Trains in a process that is killed without warning in the middle of the epoch `kill_at`."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(checkpoint), str(weights)], stdout=subprocess.PIPE, text=True
    )
    said, hits = "", 0
    with process:
        for step in process.stdout:
            said += step
            hits += kill_at in step
            if hits == 5:
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL, said


@given(count=some.integers(0, 500), share=some.floats(0, 0.99), seed=some.integers(0, 99))
def test_validation_rows_are_never_trained_on(count, share, seed):
    train, validation = split_validation(count, share, seed)
    assert sorted([*train, *validation]) == list(range(count))
    assert train or not count
    if share and count > 1:
        assert validation


@given(count=some.integers(0, 300), most=some.integers(1, 40))
def test_groups_are_of_nearly_one_size_and_leave_nobody_out(count, most):
    groups = grouped(list(range(count)), most)
    assert list(itertools.chain.from_iterable(groups)) == list(range(count))
    assert len(groups) == -(-count // most)
    assert max(map(len, groups), default=0) - min(map(len, groups), default=0) <= 1
    assert max(map(len, groups), default=0) <= most


@given(steps=some.integers(1, 500), warmup=some.floats(0, 0.99))
def test_the_learning_rate_rises_then_falls_and_is_never_zero(steps, warmup):
    shares = [learning_rate_share(step, steps, warmup) for step in range(steps)]
    top = shares.index(max(shares))
    assert all(0 < share <= 1 for share in shares)
    assert shares[: top + 1] == sorted(shares[: top + 1])
    assert shares[top:] == sorted(shares[top:], reverse=True)


def test_settings_are_read_from_a_recipe():
    import msgspec

    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(json.dumps({"epochs": -1}), type=Schedule)
