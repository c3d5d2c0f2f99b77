"""Whole channels and attention heads taken out of a network, so that less is left to compute."""

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from mlserve.errors import Refused
from mlserve.optimize.training.heads import FewerHeads, drop_heads
from mlserve.optimize.training.trainee import Trainee

__all__ = ["shrink"]

_WIDE, _NARROW = 16, 8
# What kernels like a number of channels to be a multiple of, where there are enough of them for it to matter.
_ROUND_WIDE, _ROUND_NARROW = 8, 4


def shrink(trainee: Trainee, *, channels: float = 0, heads: float = 0) -> tuple[str, ...]:
    """Takes these shares of the channels of every layer, and of the heads of every attention, out of `trainee.module`.

    Channels are those of convolutions and of linear layers, the inner ones of a transformer's feed-forward parts among
    them. Those that make up an output stay, and so do those that attention or a recurrent layer reads or writes. Which
    go is chosen by the norm of all weights that belong to a channel. Returns what was done, in words.

    Raises Refused, with the module as it was or half changed, when nothing can be taken out or the model does not run
    afterwards.
    """
    before = trainee.shapes()
    notes = []
    if heads:
        had, have = drop_heads(trainee.module, heads)
        if had == have:
            raise Refused(f"no attention head was taken out: {heads:.0%} of what each attention has is less than one")
        notes.append(f"attention heads: {had} -> {have}")
    if channels:
        widths = _drop_channels(trainee, channels, _fit_to_go(trainee, channels, before))
        if not widths:
            raise Refused(
                "no channels can be taken out: every layer's make up an output, belong to attention or a recurrent "
                "layer, or are too few"
            )
        had, have = (sum(counts) for counts in zip(*widths.values(), strict=True))
        notes.append(f"channels: {had} -> {have}, without those of outputs, attention and recurrent layers")
    after = trainee.shapes()
    if after != before:
        raise Refused(f"the outputs would change their shapes: {before} -> {after}; nothing can be taken out here")
    return tuple(notes)


def _fit_to_go(trainee: Trainee, share: float, shapes: dict[str, tuple[int, ...]]) -> set[str]:
    """The layers whose channels can be taken out so that the model still runs and its outputs keep their `shapes`.

    It is tried on copies: of all layers together and, when that breaks the model, of one after another. What breaks it
    is code that counts channels itself, such as home-made attention that divides them among its heads.
    """
    together, whole = _try_on_copy(trainee, share, None, shapes)
    if whole:
        return together
    return {name for name in sorted(together) if _try_on_copy(trainee, share, {name}, shapes)[1]}


def _try_on_copy(
    trainee: Trainee, share: float, names: set[str] | None, shapes: dict[str, tuple[int, ...]]
) -> tuple[set[str], bool]:
    """The layers among `names` that lose channels, and whether the model holds without those."""
    original = trainee.module
    trainee.module = copy.deepcopy(original)
    try:
        widths = _drop_channels(trainee, share, names)
        try:
            return set(widths), trainee.shapes() == shapes
        except Refused:
            return set(widths), False
    finally:
        trainee.module = original


def _drop_channels(trainee: Trainee, share: float, names: set[str] | None) -> dict[str, tuple[int, int]]:
    """Prunes with torch_pruning (Fang et al. 2023, "DepGraph"), each group of coupled layers by itself; returns the
    first layer of each with how many channels it had and has. `names`: only the groups that begin with these layers.
    """
    from torch_pruning.pruner import BasePruner
    from torch_pruning.pruner.importance import GroupMagnitudeImportance

    module = trainee.module
    left_alone = _left_alone(module)
    names_of = {layer: name for name, layer in module.named_modules()}
    widths = {}
    with _all_traced(module), _as_refusal():
        pruner = BasePruner(
            module,
            trainee.example(2),
            GroupMagnitudeImportance(),
            pruning_ratio=share,
            pruning_ratio_dict=_rounded_shares(module, share),
            forward_fn=lambda run, inputs: _ends(trainee.answer(run, inputs)),
        )
        for group in pruner.step(interactive=True):
            if any(item.dep.target.module in left_alone or _is_end(item.dep.target) for item in group):
                continue
            layer, idxs = group[0].dep.target.module, group[0].idxs
            if names is None or names_of[layer] in names:
                had = pruner.DG.get_out_channels(layer)
                widths[names_of[layer]] = (had, had - len(idxs))
                group.prune()
    return widths


def _rounded_shares(module: torch.nn.Module, share: float) -> dict[Any, float]:
    """The share to take from each layer, so that a number of channels stays that kernels like."""
    shares = {}
    for layer in module.modules():
        width = getattr(layer, "out_channels", getattr(layer, "out_features", None))
        if isinstance(width, int) and isinstance(layer, torch.nn.Linear | torch.nn.modules.conv._ConvNd):  # noqa: SLF001  # the one class all convolutions have in common
            # A little more than what stays: the pruner rounds down, and the quotient may be a hair below.
            shares[layer] = 1.0 - (_rounded(width * (1.0 - share), width) + 0.01) / width
    return {layer: value for layer, value in shares.items() if value > 0}


def _rounded(wanted: float, width: int) -> int:
    """The number of channels to keep of `width`: a multiple of 8 from 16 on, of 4 from 8 on; at least one."""
    step = _ROUND_WIDE if wanted >= _WIDE else _ROUND_NARROW if wanted >= _NARROW else 1
    return min(width, max(1, round(wanted / step) * step))


@contextlib.contextmanager
def _as_refusal() -> Iterator[None]:
    """torch_pruning warns of what it guesses, which the check of shapes judges, and fails on what it cannot follow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Exception as error:  # as many kinds as there are graphs
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            raise Refused(
                f"torch-pruning cannot follow the channels of this model ({type(error).__name__}: {reason}); use "
                "unstructured or 2:4 pruning"
            ) from error


@contextlib.contextmanager
def _all_traced(module: torch.nn.Module) -> Iterator[None]:
    """The pruner follows gradients from layer to layer: for that, every weight must have one."""
    before = {name: weight.requires_grad for name, weight in module.named_parameters()}
    for weight in module.parameters():
        weight.requires_grad_(weight.is_floating_point())
    try:
        with torch.enable_grad():
            yield
    finally:
        for name, weight in module.named_parameters():
            weight.requires_grad_(before.get(name, True))


def _ends(outputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Every output behind an operator of its own, so that the pruner's graph has an end for it."""
    return [tensor * 1.0 for tensor in outputs.values() if tensor.grad_fn is not None]


def _is_end(node: Any) -> bool:
    return not node.outputs


def _left_alone(module: torch.nn.Module) -> set[Any]:
    """Recurrent layers and all modules that attention is made of: their widths hang together in ways of their own."""
    return {
        inner
        for part in module.modules()
        if "attention" in type(part).__name__.lower()
        or isinstance(part, FewerHeads | torch.nn.RNNBase)
        or hasattr(part, "head_dim")
        for inner in part.modules()
    }
