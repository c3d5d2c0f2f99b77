"""Zeros among the weights of a PyTorch model: which weights may be zero, which ones to choose, and keeping them so."""

from collections.abc import Iterator
from typing import Any

import msgspec
import torch

from mlserve.errors import Refused

__all__ = ["Masks", "Weight", "count_of", "largest_masks", "prunable_weights", "two_of_four_masks", "zero_share"]

# Layers whose weights are factors of a product -> the axis along which that product sums.
_SUMMED_AXIS = {
    "Linear": 1,
    "NonDynamicallyQuantizableLinear": 1,
    "Conv1d": 1,
    "Conv2d": 1,
    "Conv3d": 1,
    "Conv1D": 0,  # transformers' own: a Linear with its weight [in, out]
    "ConvTranspose1d": 0,
    "ConvTranspose2d": 0,
    "ConvTranspose3d": 0,
    "MultiheadAttention": 1,
    "LSTM": 1,
    "GRU": 1,
    "RNN": 1,
}
# The same in a graph of ATen operators, which is what torch.export leaves of a module.
_PRODUCTS = ("linear", "conv1d", "conv2d", "conv3d", "convolution", "lstm", "gru")
_GROUP = 4
_GROUP_ZEROS = 2


class Weight(msgspec.Struct, frozen=True):
    """A weight that may have zeros, and the axis along which the product it belongs to sums."""

    name: str
    value: Any
    summed_axis: int


class Masks:
    """Which weights stay. `apply` sets the others to zero: now, and after every step that may have changed them."""

    def __init__(self, weights: list[Weight], kept: list[torch.Tensor]) -> None:
        self._pairs = [(weight.value, ~stays) for weight, stays in zip(weights, kept, strict=True)]

    def apply(self) -> None:
        with torch.no_grad():
            for value, gone in self._pairs:
                value.masked_fill_(gone, 0.0)


def prunable_weights(module: torch.nn.Module) -> list[Weight]:
    """The weights of matrix products and convolutions, each once; tables that are looked up in are none.

    Raises Refused when there are none.
    """
    found = list(_weights_of_layers(module))
    if not found and isinstance(module, torch.fx.GraphModule):
        found = list(_weights_of_graph(module))
    weights = list({id(weight.value): weight for weight in found}.values())
    if not weights:
        raise Refused("nothing can be pruned: the model has no Linear, convolution, attention or LSTM of torch's own")
    return weights


def largest_masks(weights: list[Weight], zeros: float, *, per_layer: bool) -> Masks:
    """Keeps all but the share `zeros` of smallest magnitude: of all weights together, or of each by itself.

    Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks".
    """
    magnitudes = [weight.value.detach().abs().flatten() for weight in weights]
    if per_layer:
        kept = [_largest(magnitude, zeros) for magnitude in magnitudes]
    else:
        kept = list(_largest(torch.cat(magnitudes), zeros).split([len(magnitude) for magnitude in magnitudes]))
    return Masks(weights, [stays.reshape(weight.value.shape) for weight, stays in zip(weights, kept, strict=True)])


def two_of_four_masks(weights: list[Weight]) -> tuple[Masks, list[str]]:
    """Keeps the two of largest magnitude in every four neighbours along the summed axis; also the names left as they
    are, because that axis is no multiple of four.

    For a convolution these are neighbours among the input channels, as NVIDIA's sparse tensor cores read them (Mishra
    et al. 2021, "Accelerating Sparse Deep Neural Networks"). Raises Refused when no weight can take the pattern.
    """
    fitting = [weight for weight in weights if weight.value.shape[weight.summed_axis] % _GROUP == 0]
    if not fitting:
        raise Refused(
            "2:4 needs weights whose inputs are a multiple of four, and this model has none; use unstructured"
        )
    left = [weight.name for weight in weights if all(weight is not other for other in fitting)]
    return Masks(fitting, [_two_of_four(weight) for weight in fitting]), left


def count_of(weights: list[Weight]) -> int:
    """How many numbers they hold."""
    return sum(int(weight.value.numel()) for weight in weights)


def zero_share(weights: list[Weight]) -> float:
    """Which share of `weights` is exactly zero."""
    zeros = sum(int((weight.value == 0).sum()) for weight in weights)
    return zeros / count_of(weights)


def _largest(magnitude: torch.Tensor, zeros: float) -> torch.Tensor:
    """True for all but exactly round(len * zeros) of `magnitude` [n]; of equals, the first go."""
    count = round(len(magnitude) * zeros)
    kept = torch.ones(len(magnitude), dtype=torch.bool)
    if count:
        threshold = magnitude.kthvalue(count).values
        below, level = magnitude < threshold, (magnitude == threshold).nonzero().flatten()
        kept[below] = False
        kept[level[: count - int(below.sum())]] = False
    return kept


def _two_of_four(weight: Weight) -> torch.Tensor:
    last = weight.value.detach().abs().movedim(weight.summed_axis, -1)
    groups = last.reshape(-1, _GROUP)
    kept = torch.ones_like(groups, dtype=torch.bool)
    kept.scatter_(1, groups.argsort(dim=1, stable=True)[:, :_GROUP_ZEROS], value=False)
    return kept.reshape(last.shape).movedim(-1, weight.summed_axis)


def _weights_of_layers(module: torch.nn.Module) -> Iterator[Weight]:
    parts = list(module.named_modules())
    tables = {
        id(weight) for _, part in parts if _kinds(part) & {"Embedding", "EmbeddingBag"} for weight in part.parameters()
    }
    for name, part in parts:
        axis = next((_SUMMED_AXIS[kind] for kind in _kinds(part) if kind in _SUMMED_AXIS), None)
        if axis is None:
            continue
        for own, value in part.named_parameters(recurse=False):
            if "weight" in own and value.ndim > 1 and id(value) not in tables:
                yield Weight(f"{name}.{own}" if name else own, value, axis)


def _kinds(part: torch.nn.Module) -> set[str]:
    """The names of its class and of those it is made from; TorchScript keeps only its own."""
    return {kind.__name__ for kind in type(part).__mro__} | {getattr(part, "original_name", "")}


def _weights_of_graph(module: Any) -> Iterator[Weight]:
    parameters = dict(module.named_parameters())
    for node in module.graph.nodes:
        name = getattr(node.target, "_opname", "")
        if node.op == "call_function" and name in _PRODUCTS:
            for source in node.all_input_nodes:
                value = parameters.get(str(source.target)) if source.op == "get_attr" else None
                if value is not None and value.ndim > 1:
                    yield Weight(str(source.target), value, 1)
