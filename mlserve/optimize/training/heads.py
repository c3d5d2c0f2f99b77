"""Attention heads taken out of a network."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

from mlserve.errors import Refused

__all__ = ["FewerHeads", "drop_heads"]

# 12 heads * 0.25 may come out a hair below 3.
_ROUNDING = 1e-9
_HEAD_COUNTS = ("num_attention_heads", "n_heads", "num_heads")
# What Hugging Face's attention modules call these two of their layers.
_VALUE_NAMES = ("value", "v_lin", "v_proj", "v")
_OUTPUT_NAMES = ("dense", "out_lin", "out_proj", "o")


def drop_heads(module: torch.nn.Module, share: float) -> tuple[int, int]:
    """Takes `share` of its heads from each attention of `module`; returns how many there were and are.

    One always stays. Those with the smallest weights go: the norm of a head's value rows times that of its output
    columns, which bounds what the head adds. Raises Refused when there is no attention whose heads can be taken out.
    """
    before = after = 0
    for name, part in list(module.named_modules()):
        if isinstance(part, torch.nn.MultiheadAttention):
            kept = _largest(_scores_of_packed(part), share)
            before, after = before + part.num_heads, after + len(kept)
            if len(kept) < part.num_heads:
                _replace(module, name, FewerHeads(part, kept))
        elif isinstance(part, FewerHeads):
            raise Refused("heads were taken from this attention already; take all of them in one pass")
        elif hasattr(part, "prune_heads") and hasattr(part, "pruned_heads"):
            count, kept = _drop_by_library(part, share)
            before, after = before + count, after + len(kept)
    if not before:
        raise Refused(
            "no attention heads can be taken out: the model has no nn.MultiheadAttention, and no attention of "
            "transformers that can do without some (BERT, RoBERTa, DistilBERT, MPNet, ELECTRA, ViT and others can)"
        )
    return before, after


class FewerHeads(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """`nn.MultiheadAttention` with only some of its heads, called and answering as it does.

    Its own code takes the size of a head to be embedding / heads, so heads cannot be taken out of it in place.
    """

    in_proj_bias = None  # torch's encoder layers look here whether their fused operator fits, which it does not

    def __init__(self, original: torch.nn.MultiheadAttention, kept: list[int]) -> None:
        super().__init__()
        if original.bias_k is not None or original.add_zero_attn:
            raise Refused("heads cannot be taken from attention with add_bias_kv or add_zero_attn; leave those out")
        self.num_heads, self.head_dim, self.batch_first = len(kept), original.head_dim, original.batch_first
        self.embed_dim, self.dropout = original.embed_dim, original.dropout
        self._kept, self._heads_before = list(kept), original.num_heads
        index = torch.cat([torch.arange(self.head_dim) + head * self.head_dim for head in kept])
        weights, biases = _projections(original)
        self.query, self.key, self.value = (
            _linear(weight[index], None if bias is None else bias[index])
            for weight, bias in zip(weights, biases, strict=True)
        )
        self.out_proj = _linear(original.out_proj.weight[:, index], original.out_proj.bias)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,  # noqa: FBT001, FBT002  # nn.MultiheadAttention's own signature
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,  # noqa: FBT001, FBT002  # as above
        is_causal: bool = False,  # noqa: FBT001, FBT002  # a hint; the mask itself is always given
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `nn.MultiheadAttention`: [length, rows, width], or rows first with `batch_first`; or [length, width]."""
        alone = query.dim() == 2
        if alone:
            query, key, value = (part.unsqueeze(0) for part in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        heads = [self._split(layer(part)) for layer, part in zip(self._layers(), (query, key, value), strict=True)]
        mask = self._mask(attn_mask, key_padding_mask, query)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = heads[0] @ heads[1].transpose(-2, -1) * self.head_dim**-0.5
            weights = functional.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            mixed = weights @ heads[2]
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], mask, dropout)
        result = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if alone:
            return result.squeeze(0), None if weights is None else weights.squeeze(0)
        return result if self.batch_first else result.transpose(0, 1), weights

    def _layers(self) -> tuple[Any, Any, Any]:
        return self.query, self.key, self.value

    def _split(self, states: torch.Tensor) -> torch.Tensor:
        """[rows, length, heads * size] -> [rows, heads, length, size]."""
        return states.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _mask(self, attn_mask: Any, padding: Any, like: torch.Tensor) -> torch.Tensor | None:
        """Both masks as one that is added to the scores [rows, heads, length, length]."""
        parts = []
        if attn_mask is not None:
            added = _added(attn_mask, like)
            if added.dim() == 3:  # one a row and head
                added = added.unflatten(0, (-1, self._heads_before))[:, self._kept]
            parts.append(added)
        if padding is not None:
            parts.append(_added(padding, like)[:, None, None, :])
        return sum(parts[1:], parts[0]) if parts else None


def _added(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A mask as numbers to add; of truths, those that are True are shut out."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def _projections(part: torch.nn.MultiheadAttention) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    """The weights [width, ...] and biases of query, key and value."""
    weights = (
        list(part.in_proj_weight.chunk(3))
        if part._qkv_same_embed_dim  # noqa: SLF001  # the only place that says how they are kept
        else [part.q_proj_weight, part.k_proj_weight, part.v_proj_weight]
    )
    return weights, [None] * 3 if part.in_proj_bias is None else list(part.in_proj_bias.chunk(3))


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def _scores_of_packed(part: torch.nn.MultiheadAttention) -> torch.Tensor:
    weights, _ = _projections(part)
    return _scores(weights[2], part.out_proj.weight, part.num_heads)


def _scores(value: torch.Tensor, output: torch.Tensor, heads: int) -> torch.Tensor:
    """[heads] from the value weight [heads * size, width] and the output weight [width, heads * size]."""
    rows, columns = value.detach().unflatten(0, (heads, -1)), output.detach().unflatten(1, (heads, -1))
    return rows.flatten(1).norm(dim=1) * columns.transpose(0, 1).flatten(1).norm(dim=1)


def _largest(scores: torch.Tensor, share: float) -> list[int]:
    """The heads that stay, in their order."""
    kept = max(1, len(scores) - int(len(scores) * share + _ROUNDING))
    return sorted(scores.argsort(descending=True, stable=True)[:kept].tolist())


def _drop_by_library(part: Any, share: float) -> tuple[int, list[int]]:
    """Lets an attention module of transformers take out its own heads; returns their number before, and those kept."""
    count = next(
        getattr(inner, name)
        for inner in reversed(list(part.modules()))
        for name in _HEAD_COUNTS
        if hasattr(inner, name)
    )
    value, output = _named_linear(part, _VALUE_NAMES), _named_linear(part, _OUTPUT_NAMES)
    kept = _largest(_scores(value.weight, output.weight, count), share)
    # It numbers heads as they were before any was taken out.
    numbers = [number for number in range(count + len(part.pruned_heads)) if number not in part.pruned_heads]
    part.prune_heads({numbers[head] for head in range(count) if head not in kept})
    return count, kept


def _named_linear(part: torch.nn.Module, names: tuple[str, ...]) -> torch.nn.Linear:
    found: Iterator[torch.nn.Linear] = (
        inner
        for name, inner in part.named_modules()
        if name.rpartition(".")[2] in names and isinstance(inner, torch.nn.Linear)
    )
    layer = next(found, None)
    if layer is None:
        raise Refused(
            f"heads cannot be taken from {type(part).__name__}: it keeps its weights otherwise than BERT does"
        )
    return layer


def _replace(module: torch.nn.Module, name: str, part: torch.nn.Module) -> None:
    holder, _, own = name.rpartition(".")
    setattr(module.get_submodule(holder), own, part)
