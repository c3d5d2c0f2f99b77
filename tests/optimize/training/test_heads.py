"""Attention with fewer heads."""

import pytest
import torch
from torch import nn

from mlserve.errors import Refused
from mlserve.optimize.training.heads import FewerHeads, drop_heads

EVERY_MASK = {
    "none": lambda: None,
    "added": lambda: torch.randn(5, 7),
    "shut": lambda: torch.arange(35).reshape(5, 7) % 7 > 4,
    "by head": lambda: torch.randn(3 * 4, 5, 7),
}


@pytest.mark.parametrize("rows_first", [True, False])
@pytest.mark.parametrize("mask", EVERY_MASK)
@pytest.mark.parametrize("weights", [True, False])
def test_with_all_heads_it_answers_as_torch_does(rows_first, mask, weights):
    torch.manual_seed(0)
    original = nn.MultiheadAttention(24, 4, batch_first=rows_first).eval()
    query, key = torch.randn(3, 5, 24), torch.randn(3, 7, 24)
    padding = torch.zeros(3, 7)
    padding[1, 5:] = float("-inf")
    if not rows_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    options = {"key_padding_mask": padding, "attn_mask": EVERY_MASK[mask](), "need_weights": weights}
    if options["attn_mask"] is not None and options["attn_mask"].dtype == torch.bool:
        options["key_padding_mask"] = padding < 0
    expected = original(query, key, key, **options)
    found = FewerHeads(original, [0, 1, 2, 3]).eval()(query, key, key, **options)
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=0)
    if weights:
        torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=0)
    else:
        assert found[1] is None


def test_without_a_head_it_answers_as_if_that_head_said_nothing():
    torch.manual_seed(0)
    original = nn.MultiheadAttention(24, 4).eval()
    silent = nn.MultiheadAttention(24, 4).eval()
    silent.load_state_dict(original.state_dict())
    with torch.no_grad():
        silent.out_proj.weight[:, 6:12] = 0.0
    query = torch.randn(5, 24)
    expected, _ = silent(query, query, query)
    found, _ = FewerHeads(original, [0, 2, 3]).eval()(query, query, query)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    different, _ = FewerHeads(original, [0, 1, 2]).eval()(query, query, query)
    assert not torch.allclose(different, expected, atol=1e-3)


def test_the_heads_with_the_smallest_weights_go_and_one_stays():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    with torch.no_grad():
        layer.self_attn.in_proj_weight[32 + 4 : 32 + 12] *= 0.01  # the values of heads 1 and 2
    assert drop_heads(layer, 0.5) == (4, 2)
    assert layer.self_attn._kept == [0, 3]
    assert layer.eval()(torch.zeros(2, 3, 16)).shape == (2, 3, 16)
    other = nn.TransformerEncoderLayer(16, 2, 32)
    assert drop_heads(other, 0.99) == (2, 1)
    with pytest.raises(Refused, match="taken from this attention already"):
        drop_heads(other, 0.5)


def test_attention_of_transformers_takes_out_its_own_heads_twice():
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=16)
    model = BertModel(config).eval()
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    assert drop_heads(model, 0.25) == (8, 6)
    assert drop_heads(model, 0.34) == (6, 4)
    assert model.encoder.layer[0].attention.self.query.weight.shape == (8, 16)
    assert model(tokens).last_hidden_state.shape == (2, 5, 16)


def test_a_model_without_attention_has_no_heads():
    with pytest.raises(Refused, match="no attention heads can be taken out"):
        drop_heads(nn.Linear(4, 4), 0.5)
