import math

import pytest
import torch
from torch.nn import functional

from mlserve.errors import DataFileError
from mlserve.optimize.training.losses import (
    answer_kind,
    hidden_loss,
    imitation_loss,
    make_bridges,
    pair_loss,
    task_loss,
)


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_class_numbers_are_met_by_cross_entropy_on_scores_and_on_probabilities_alike():
    scores, labels = torch.randn(8, 5), torch.arange(8) % 5
    expected = functional.cross_entropy(scores, labels)
    assert torch.allclose(task_loss({"output": scores}, labels), expected)
    assert torch.allclose(task_loss({"output": scores.softmax(-1)}, labels), expected, atol=1e-5)


def test_the_output_named_logits_is_the_one_that_labels_are_about():
    scores, labels = torch.randn(8, 5), torch.arange(8) % 5
    both = {"states": torch.randn(8, 5), "logits": scores}
    assert torch.allclose(task_loss(both, labels), functional.cross_entropy(scores, labels))


def test_zeros_and_ones_against_one_score_are_binary():
    score, labels = torch.tensor([[-3.0], [3.0]]), torch.tensor([0, 1])
    wanted = math.log1p(math.exp(-3))
    assert task_loss({"output": score}, labels).item() == pytest.approx(wanted, rel=1e-5)
    assert task_loss({"output": score.sigmoid()}, labels).item() == pytest.approx(wanted, rel=1e-4)
    assert task_loss({"output": score}, labels, "regression").item() == pytest.approx((9 + 4) / 2)


def test_values_are_met_by_squared_error():
    assert task_loss({"output": torch.tensor([[1.0], [2.0]])}, torch.tensor([1.0, 4.0])).item() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("answer", "labels", "words"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), "from 0 to 2"),
        (torch.zeros(2, 3), torch.tensor([0.5, 1.0]), "from 0 to 2"),
        (torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.int64), "one label a row"),
    ],
)
def test_labels_that_do_not_fit_are_named(answer, labels, words):
    with pytest.raises(DataFileError, match=words):
        task_loss({"output": answer}, labels)


def test_soft_targets_are_the_divergence_of_hinton_with_the_temperature_squared():
    found, wanted = torch.randn(6, 4), torch.randn(6, 4)
    expected = 9 * functional.kl_div(
        functional.log_softmax(found / 3, -1), functional.softmax(wanted / 3, -1), reduction="batchmean"
    )
    loss = imitation_loss({"logits": found}, {"logits": wanted}, temperature=3.0)
    assert torch.allclose(loss, expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["scores", "probabilities", "embedding", "number"])
def test_a_perfect_imitation_costs_nothing_and_another_one_something(kind):
    wanted = torch.randn(6, 4).softmax(-1)
    assert imitation_loss({"o": wanted}, {"o": wanted}, kinds={"o": kind}).item() == pytest.approx(0, abs=1e-6)
    assert imitation_loss({"o": wanted.flip(0)}, {"o": wanted}, kinds={"o": kind}).item() > 1e-3


def test_padding_does_not_count():
    wanted, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]])
    found = wanted.clone()
    found[0, 2] = 100.0
    kinds = {"last_hidden_state": "embedding"}
    answers = {"last_hidden_state": found}, {"last_hidden_state": wanted}
    assert imitation_loss(*answers, kinds=kinds, mask=mask).item() == pytest.approx(0, abs=1e-6)
    assert imitation_loss(*answers, kinds=kinds).item() > 1


@pytest.mark.parametrize(
    ("name", "answer", "task", "labels", "kind"),
    [
        ("logits", torch.randn(4, 3), "unknown", None, "scores"),
        ("output", torch.randn(4, 3), "unknown", None, "number"),
        ("output", torch.randn(4, 3), "unknown", torch.tensor([0, 1, 2, 0]), "scores"),
        ("output", torch.randn(4, 3), "text-classification", None, "scores"),
        ("output", torch.randn(4, 3).softmax(-1), "image-classification", None, "probabilities"),
        ("output", torch.randn(4, 3), "feature-extraction", torch.tensor([0, 1, 2, 0]), "embedding"),
        ("last_hidden_state", torch.randn(4, 7, 3), "unknown", None, "embedding"),
        ("output", torch.randn(4, 1), "unknown", torch.tensor([0, 1, 1, 0]), "number"),
        ("output", torch.randn(4), "unknown", None, "number"),
        ("output", torch.randn(4, 3), "unknown", torch.tensor([0.5, 1, 2, 0]), "number"),
    ],
)
def test_what_an_output_means_is_told_by_task_name_labels_and_values(name, answer, task, labels, kind):
    assert answer_kind(name, answer, task=task, labels=labels) == kind


def test_a_bridge_leads_narrower_states_to_the_teachers_width_and_can_be_learned():
    wanted = [torch.randn(32, 8), torch.randn(32, 8)]
    found = [wanted[0] @ torch.randn(8, 8), torch.randn(32, 5)]
    bridges = make_bridges(found, wanted)
    assert [type(bridge).__name__ for bridge in bridges] == ["Identity", "Linear"]
    narrow = [wanted[0], wanted[1] @ torch.randn(8, 8)[:, :5]]
    optimizer = torch.optim.Adam(bridges.parameters(), 0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = hidden_loss(narrow, wanted, bridges)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_pictures_are_bridged_by_their_channels():
    found, wanted = [torch.randn(2, 3, 4, 4)], [torch.randn(2, 6, 4, 4)]
    assert torch.isfinite(hidden_loss(found, wanted, make_bridges(found, wanted)))


def test_pairs_are_compared_by_their_angles_not_their_places():
    wanted = torch.randn(5, 8)
    turned = 3 * wanted @ torch.linalg.qr(torch.randn(8, 8)).Q
    assert pair_loss(turned, wanted).item() == pytest.approx(0, abs=1e-6)
    assert pair_loss(torch.randn(5, 8), wanted).item() > 1e-3
