"""Which weights become zero."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mlserve.errors import Refused
from mlserve.optimize.training.sparsity import largest_masks, prunable_weights, two_of_four_masks, zero_share


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 6))


@given(st.integers(1, 999), st.booleans())
def test_exactly_the_asked_share_becomes_zero(thousandths, per_layer):
    weights = prunable_weights(network())
    share = thousandths / 1000
    largest_masks(weights, share, per_layer=per_layer).apply()
    count = sum(weight.value.numel() for weight in weights)
    if per_layer:
        for weight in weights:
            assert int((weight.value == 0).sum()) == round(weight.value.numel() * share)
    else:
        assert round(zero_share(weights) * count) == round(count * share)


def test_the_smallest_go_and_the_others_stay_as_they_were():
    module = network()
    weights = prunable_weights(module)
    before = torch.cat([weight.value.detach().flatten().clone() for weight in weights])
    largest_masks(weights, 0.5, per_layer=False).apply()
    after = torch.cat([weight.value.detach().flatten() for weight in weights])
    gone = after == 0
    assert before[gone].abs().max() < before[~gone].abs().min()
    assert torch.equal(before[~gone], after[~gone])


def test_of_equal_weights_no_more_go_than_asked():
    module = nn.Linear(4, 4)
    nn.init.constant_(module.weight, 0.5)
    largest_masks(prunable_weights(module), 0.25, per_layer=False).apply()
    assert int((module.weight == 0).sum()) == 4


def test_two_of_every_four_inputs_go_and_they_are_the_smaller_ones():
    module = network()
    weights = prunable_weights(module)
    before = [weight.value.detach().clone() for weight in weights]
    masks, left = two_of_four_masks(weights)
    masks.apply()
    assert left == ["0.weight"]  # three input channels
    for weight, was in list(zip(weights, before, strict=True))[1:]:
        groups = weight.value.detach().movedim(1, -1).reshape(-1, 4)
        assert ((groups == 0).sum(1) == 2).all()
        kept = was.movedim(1, -1).reshape(-1, 4).abs().sort(1).values[:, 2:]
        np.testing.assert_array_equal(groups.abs().sort(1).values[:, 2:], kept)


def test_masks_put_zeros_back_after_a_step():
    module = nn.Linear(8, 8)
    masks = largest_masks(prunable_weights(module), 0.5, per_layer=False)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    assert zero_share(prunable_weights(module)) == 0
    masks.apply()
    assert zero_share(prunable_weights(module)) == 0.5


def test_tables_are_not_pruned_and_shared_weights_are_counted_once():
    module = nn.Module()
    module.table, module.tied, module.own = nn.Embedding(6, 4), nn.Linear(4, 6), nn.Linear(4, 4)
    module.tied.weight = module.table.weight
    module.again = module.own
    assert [weight.name for weight in prunable_weights(module)] == ["own.weight"]


def test_a_model_without_products_has_nothing_to_prune():
    with pytest.raises(Refused, match="nothing can be pruned"):
        prunable_weights(nn.Embedding(5, 4))
    with pytest.raises(Refused, match="2:4 needs weights whose inputs are a multiple of four"):
        two_of_four_masks(prunable_weights(nn.Linear(6, 4)))
