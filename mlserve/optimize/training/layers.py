"""The repeated layers of a network, and networks with fewer of them."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch.nn import functional

from mlserve.errors import Refused
from mlserve.optimize.training.trainee import Trainee

__all__ = ["block_influence", "drop_layers", "evenly_spaced", "layer_count", "layer_stacks"]

_FEWEST_LAYERS = 2
# What configurations call the number of layers, and modules that count their own.
_COUNTS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers", "depth")
_INFLUENCE_ROWS = 64
_INFLUENCE_BATCH_ROWS = 16

Stack: TypeAlias = "torch.nn.ModuleList | torch.nn.Sequential"


def layer_stacks(module: torch.nn.Module) -> dict[str, Stack]:
    """The longest stacks of like layers in `module`, by name; several only where they are of one length.

    Layers are alike when they are of one class and their parameters have the same names and shapes; a layer is made of
    other modules. Stacks inside layers do not count. Empty when there are none.
    """
    found: dict[str, Stack] = {}
    for name, part in module.named_modules():
        inside = any(not outer or name.startswith(f"{outer}.") for outer in found)
        if isinstance(part, torch.nn.ModuleList | torch.nn.Sequential) and not inside and _alike(list(part)):
            found[name] = part
    longest = max(map(len, found.values()), default=0)
    return {name: stack for name, stack in found.items() if len(stack) == longest}


def layer_count(module: torch.nn.Module) -> int:
    """How many layers the stacks of `module` have; 0 when there are none."""
    return max(map(len, layer_stacks(module).values()), default=0)


def drop_layers(module: torch.nn.Module, keep: Sequence[int]) -> None:
    """Leaves only the layers numbered `keep` (the first is 0) in every stack of `module`, in their order.

    Whatever counted the layers, such as a Hugging Face configuration, counts those that are left. Raises Refused when
    there is no stack, or it has no such layers.
    """
    stacks = layer_stacks(module)
    if not stacks:
        raise Refused("no layers can be dropped: the model has no stack of two or more layers that are alike")
    count = layer_count(module)
    kept = sorted(set(keep))
    if not kept or kept[0] < 0 or kept[-1] >= count:
        raise Refused(f"layers {list(keep)} cannot be kept: there are {count}, numbered 0 to {count - 1}")
    for stack in stacks.values():
        layers = [stack[number] for number in kept]
        del stack[:]
        stack.extend(layers)
        _renumber(layers)
    for name in stacks:
        _recount(_owners(module, name), count, kept)


def evenly_spaced(count: int, keep: int) -> list[int]:
    """`keep` of `count` layers, the first and the last among them where there is room, the others evenly between.

    `evenly_spaced(6, 3)`  # [0, 2, 5]: as DistilBERT's students begin (Sanh et al. 2019), with the last layer too
    """
    if keep == 1:
        return [0]
    return [int(number * (count - 1) / (keep - 1)) for number in range(keep)]


def block_influence(trainee: Trainee, stack: Stack) -> list[float]:
    """How much each layer of `stack` changes what passes through it: 1 - cos(before, after), mean over the rows.

    Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", equation 1. Padding
    does not count where the model is told of it by an `attention_mask`.
    """
    sums, weights = [0.0] * len(stack), [0.0] * len(stack)
    mask: torch.Tensor | None = None

    def watch(number: int) -> Any:
        def hook(_layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], result: Any) -> None:
            before, after = _stream(arguments, keywords), _stream((result,), {})
            total, weight = _distance(before, after, mask)
            sums[number] += total
            weights[number] += weight

        return hook

    hooks = [layer.register_forward_hook(watch(number), with_kwargs=True) for number, layer in enumerate(stack)]
    trainee.module.eval()
    try:
        with torch.no_grad():
            for inputs in _batches(trainee):
                mask = inputs.get("attention_mask")
                trainee.answer(trainee.module, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [total / weight if weight else 0.0 for total, weight in zip(sums, weights, strict=True)]


def _batches(trainee: Trainee) -> list[dict[str, torch.Tensor]]:
    rows = trainee.rows
    if rows is None:
        return [trainee.example(_INFLUENCE_BATCH_ROWS)]
    count = min(len(rows), _INFLUENCE_ROWS)
    return [
        {name: torch.from_numpy(array.copy()) for name, array in rows.batch(start, stop).items()}
        for start in range(0, count, _INFLUENCE_BATCH_ROWS)
        for stop in [min(start + _INFLUENCE_BATCH_ROWS, count)]
    ]


def _stream(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> torch.Tensor:
    """What passes through a layer: the first tensor it is given, or gives."""
    for value in (*arguments, *keywords.values()):
        first = value[0] if isinstance(value, tuple | list) and value else value
        if isinstance(first, torch.Tensor) and first.is_floating_point():
            return first
    raise Refused('how much each layer does cannot be measured: its input is no tensor; use choose = "spacing"')


def _distance(before: torch.Tensor, after: torch.Tensor, mask: torch.Tensor | None) -> tuple[float, float]:
    """The sum of 1 - cos over all positions, and how many there are; vectors are [..., width], or whole rows."""
    if before.shape != after.shape:
        raise Refused(
            f"layers cannot be dropped: one takes {list(before.shape)} and gives {list(after.shape)}, so the next does "
            "not fit without it"
        )
    if before.ndim != 3:
        before, after = before.flatten(1), after.flatten(1)
    distance = 1.0 - functional.cosine_similarity(before, after, dim=-1)
    weight = mask.to(distance) if mask is not None and mask.shape == distance.shape else torch.ones_like(distance)
    return float((distance * weight).sum()), float(weight.sum())


def _alike(layers: list[torch.nn.Module]) -> bool:
    first, *others = layers or [torch.nn.Identity()]
    if len(layers) < _FEWEST_LAYERS or not list(first.children()):
        return False
    return all(type(other) is type(first) and _form(other) == _form(first) for other in others)


def _form(layer: torch.nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, weight.shape) for name, weight in layer.named_parameters()]


def _renumber(layers: list[torch.nn.Module]) -> None:
    """Modules that know which layer they belong to, as those with caches do."""
    for number, layer in enumerate(layers):
        for part in layer.modules():
            for name in ("layer_idx", "layer_id"):
                if type(getattr(part, name, None)) is int:
                    setattr(part, name, number)


def _owners(module: torch.nn.Module, stack: str) -> list[Any]:
    """The modules that hold the stack of this name, and their configurations, each once."""
    names = stack.split(".")
    holders = [module.get_submodule(".".join(names[:depth])) for depth in range(len(names))]
    configs = [holder.config for holder in holders if hasattr(holder, "config")]
    return list({id(owner): owner for owner in (*holders, *configs)}.values())


def _recount(owners: list[Any], before: int, kept: list[int]) -> None:
    for owner in owners:
        for name in _COUNTS:
            if type(getattr(owner, name, None)) is int and getattr(owner, name) == before:
                setattr(owner, name, len(kept))
        types = getattr(owner, "layer_types", None)
        if isinstance(types, list) and len(types) == before:
            owner.layer_types = [types[number] for number in kept]
