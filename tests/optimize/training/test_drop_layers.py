"""Stacks of layers, and models with fewer of them."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mlserve.errors import Refused
from mlserve.model.rows import ArrayRows
from mlserve.model.tensors import TensorSpec
from mlserve.optimize.importers.original import named_outputs
from mlserve.optimize.training.layers import block_influence, drop_layers, evenly_spaced, layer_count, layer_stacks
from mlserve.optimize.training.prune import Prune
from mlserve.optimize.training.schedule import Schedule
from mlserve.optimize.training.trainee import Trainee

UNTUNED = Schedule(epochs=0)


class Block(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.inner, self.scale = nn.Linear(8, 8), scale

    def forward(self, x):
        return x + self.scale * self.inner(x)


def stack(*scales):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Sequential(*map(Block, scales)), nn.Linear(8, 2)).eval()


def trainee_of(module, rows=None):
    return Trainee(
        module,
        lambda called, inputs: named_outputs(called(*inputs.values())),
        [TensorSpec("x", "float32", ("batch", 8))],
        rows=rows,
    )


def some_rows():
    return ArrayRows({"x": torch.randn(40, 8).numpy()}, "made up")


def bert(layers):
    from transformers import BertConfig, BertModel

    sizes = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 50,
        "initializer_range": 0.5,
    }
    return BertModel(BertConfig(**sizes, num_hidden_layers=layers)).eval()


@given(st.integers(1, 40), st.data())
def test_what_is_kept_is_spread_evenly(count, data):
    keep = data.draw(st.integers(1, count))
    kept = evenly_spaced(count, keep)
    assert len(set(kept)) == keep
    assert kept == sorted(kept)
    assert kept[0] == 0
    assert keep == 1 or kept[-1] == count - 1
    steps = [after - before for before, after in pairwise(kept)]
    assert not steps or max(steps) - min(steps) <= 1


def test_the_layers_of_an_encoder_are_found_and_dropped():
    model = bert(5)
    assert list(layer_stacks(model)) == ["encoder.layer"]
    third = model.encoder.layer[2]
    drop_layers(model, [4, 2])
    assert layer_count(model) == 2
    assert model.encoder.layer[0] is third
    assert model.config.num_hidden_layers == 2
    assert model(torch.zeros(2, 7, dtype=torch.int64)).last_hidden_state.shape == (2, 7, 16)


def test_fewer_layers_answer_as_a_model_that_was_made_of_those():
    model, small = bert(3), bert(2)
    state = model.state_dict()
    renamed = {name.replace("layer.2.", "layer.1."): value for name, value in state.items() if "layer.1." not in name}
    small.load_state_dict(renamed)
    drop_layers(model, [0, 2])
    tokens = torch.arange(12).reshape(2, 6)
    torch.testing.assert_close(model(tokens).last_hidden_state, small(tokens).last_hidden_state)


def test_torchs_own_encoder_counts_its_layers_anew():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 4, enable_nested_tensor=False).eval()
    drop_layers(encoder, [0, 3])
    assert (encoder.num_layers, len(encoder.layers)) == (2, 2)


def test_single_operators_and_unlike_layers_are_no_stack():
    unlike = nn.Sequential(nn.Sequential(nn.Linear(4, 8)), nn.Sequential(nn.Linear(8, 4)))
    for module in (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), unlike):
        assert layer_stacks(module) == {}
        with pytest.raises(Refused, match="no stack of two or more layers that are alike"):
            drop_layers(module, [0])


@pytest.mark.parametrize("keep", [[], [4], [-1]])
def test_layers_that_are_not_there_cannot_be_kept(keep):
    with pytest.raises(Refused, match="numbered 0 to 3"):
        drop_layers(stack(1, 1, 1, 1), keep)


def test_a_layer_that_does_little_has_little_influence():
    module = stack(1.0, 0.01, 1.0, 0.0)
    influence = block_influence(trainee_of(module, some_rows()), module[1])
    assert influence[3] == pytest.approx(0, abs=1e-6)
    assert influence[3] < influence[1] < min(influence[0], influence[2])


def test_padding_has_no_influence():
    model = bert(2)

    def measure(tokens, mask):
        specs = [TensorSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask")]
        rows = ArrayRows({"input_ids": tokens.numpy(), "attention_mask": mask.numpy()}, "made up")
        trainee = Trainee(model, lambda called, inputs: {"states": called(**inputs)[0]}, specs, rows=rows)
        return block_influence(trainee, model.encoder.layer)

    tokens = torch.arange(1, 13).reshape(2, 6)
    padded = torch.cat([tokens, torch.zeros(2, 4, dtype=torch.int64)], 1)
    mask = (padded != 0).long()
    assert measure(padded, mask) == pytest.approx(measure(tokens, torch.ones_like(tokens)), abs=1e-6)
    assert measure(padded, torch.ones_like(padded)) != pytest.approx(measure(padded, mask), abs=1e-6)


def test_the_layers_that_do_least_are_dropped_and_without_data_every_second_one():
    notes = Prune("layers", 0.5, tuning=UNTUNED)(trainee_of(stack(0.01, 1.0, 0.0, 1.0), some_rows()))
    assert notes[0] == "layers: 4 -> 2; kept 2, 4, those that change most what passes through"
    assert notes[1].startswith("parameters: 378 -> 234")
    notes = Prune("layers", 0.5, tuning=UNTUNED)(trainee_of(stack(0.01, 1.0, 0.0, 1.0)))
    assert notes[0] == "layers: 4 -> 2; kept 1, 4, evenly spread"
    notes = Prune("layers", 0.5, choose="spacing", tuning=UNTUNED)(trainee_of(stack(1, 1, 1), some_rows()))
    assert notes[0] == "layers: 3 -> 2; kept 1, 3, evenly spread"


def test_a_model_that_does_not_run_without_its_layers_is_refused():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Block(1) for _ in range(3))

        def forward(self, x):
            return self.blocks[2](self.blocks[1](self.blocks[0](x)))

    with pytest.raises(Refused, match="the changed model does not run: IndexError"):
        Prune("layers", 0.5, tuning=UNTUNED)(trainee_of(Counting()))
