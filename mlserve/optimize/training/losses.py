"""What is made small in training: the distance to true answers, to a teacher's answers, and to its hidden states."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from mlserve.errors import DataFileError

__all__ = [
    "AnswerKind",
    "answer_kind",
    "hidden_loss",
    "imitation_loss",
    "make_bridges",
    "pair_loss",
    "task_loss",
]

AnswerKind = Literal["scores", "probabilities", "embedding", "number"]
"""`scores`: logits of classes [..., classes]; `probabilities`: the same after softmax; `embedding`: a direction
[..., dimensions]; `number`: values that mean what they are."""

_EMBEDDING_TASKS = ("feature-extraction", "sentence-similarity", "image-feature-extraction")
_EMBEDDINGS = ("embedding", "hidden_state", "pooler_output")
_SUMS_TO = 1e-3
_TINY = 1e-8
_PICTURES = 4  # dimensions


def answer_kind(name: str, answer: Tensor, *, task: str = "unknown", labels: Tensor | None = None) -> AnswerKind:
    """What the output `name` of a teacher means, by the task, its name, its values, and the labels, if there are any.

    An output of which nothing is known is a `number` (or many): to be met as it is.
    """
    if task in _EMBEDDING_TASKS or any(word in name for word in _EMBEDDINGS):
        return "embedding"
    if answer.ndim < 2 or answer.shape[-1] == 1 or not answer.is_floating_point():
        return "number"
    classes = labels is not None and not labels.is_floating_point() and answer.ndim == 2
    if not (classes or "classification" in task or "logits" in name):
        return "number"
    spread = answer.detach()
    sums_to_one = (spread.sum(-1) - 1).abs().max() < _SUMS_TO and spread.min() >= 0
    return "probabilities" if sums_to_one else "scores"


def task_loss(outputs: Mapping[str, Tensor], labels: Tensor, task: str = "unknown") -> Tensor:
    """The distance of a model's answers from the true ones `labels` [rows], a mean over rows.

    Cross-entropy for class numbers, binary cross-entropy for 0 and 1 against one score or probability a row, mean
    squared error for values. The answers are the output `logits`, else the first. Raises DataFileError when the labels
    do not fit them.
    """
    name = "logits" if "logits" in outputs else next(iter(outputs))
    answer = outputs[name]
    if answer.ndim == 0 or labels.shape != answer.shape[:1]:
        raise DataFileError(
            f"labels have shape {list(labels.shape)}, the output '{name}' {list(answer.shape)}; give one label a row"
        )
    flat = answer.reshape(len(answer), -1)
    if flat.shape[1] > 1 and task != "regression":
        return _class_loss(flat, labels, name)
    if flat.shape[1] > 1:
        raise DataFileError(f"the output '{name}' has {flat.shape[1]} values a row, the labels one; give no labels")
    values = flat[:, 0]
    binary = not labels.is_floating_point() and bool(((labels == 0) | (labels == 1)).all()) and task != "regression"
    if not binary:
        return functional.mse_loss(values, labels.to(values.dtype))
    if values.detach().min() >= 0 and values.detach().max() <= 1:
        return functional.binary_cross_entropy(values, labels.to(values.dtype))
    return functional.binary_cross_entropy_with_logits(values, labels.to(values.dtype))


def _class_loss(answer: Tensor, labels: Tensor, name: str) -> Tensor:
    classes = answer.shape[1]
    if labels.is_floating_point() or labels.min() < 0 or labels.max() >= classes:
        raise DataFileError(
            f"labels must be class numbers from 0 to {classes - 1}: '{name}' has {classes} values a row"
        )
    if answer_kind(name, answer, labels=labels) == "probabilities":
        return functional.nll_loss(answer.clamp_min(_TINY).log(), labels)
    return functional.cross_entropy(answer, labels)


def imitation_loss(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    *,
    kinds: Mapping[str, AnswerKind] | None = None,
    temperature: float = 2.0,
    mask: Tensor | None = None,
) -> Tensor:
    """The distance of a student's answers from its teacher's: the mean over outputs, each a mean over rows.

    Class scores: cross-entropy of the targets softened by `temperature` T, less its least value (Kullback-Leibler),
    times T^2, so that gradients do not depend on T (Hinton et al. 2015). Embeddings: one minus the cosine, and the
    squared distance in units of the teacher's mean square. Numbers: mean squared error (logits too may be met so: Ba
    and Caruana 2014). `kinds` says which is which, by output; without it `answer_kind` does. `mask` [rows, tokens]
    leaves the padding out of outputs [rows, tokens, ...].
    """
    losses = []
    for name, wanted in teacher.items():
        if not wanted.is_floating_point():
            continue
        kind = kinds[name] if kinds is not None else answer_kind(name, wanted)
        losses.append(_answer_loss(*_unpadded(student[name], wanted, mask), kind, temperature))
    return torch.stack(losses).mean()


def _answer_loss(found: Tensor, wanted: Tensor, kind: AnswerKind, temperature: float) -> Tensor:
    match kind:
        case "scores":
            return _soft_loss(found / temperature, wanted / temperature) * temperature**2
        case "probabilities":
            return _soft_loss(found.clamp_min(_TINY).log(), wanted.clamp_min(_TINY).log())
        case "embedding":
            return (1 - functional.cosine_similarity(found, wanted, dim=-1)).mean() + _relative_error(found, wanted)
        case "number":
            return functional.mse_loss(found, wanted)


def _soft_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the distributions that logits [..., classes] stand for, a mean over the rest."""
    one, other = functional.log_softmax(found, -1), functional.log_softmax(wanted, -1)
    return (other.exp() * (other - one)).sum(-1).mean()


def hidden_loss(
    found: Sequence[Tensor], wanted: Sequence[Tensor], bridges: torch.nn.ModuleList, mask: Tensor | None = None
) -> Tensor:
    """The squared distance of hidden states, layer by layer, each in units of the teacher's mean square; a mean.

    `bridges`, made by `make_bridges`, take a student's states to its teacher's width. Romero et al. 2015 (FitNets),
    Jiao et al. 2020 (TinyBERT).
    """
    losses = []
    for bridge, mine, teachers in zip(bridges, found, wanted, strict=True):
        mapped = bridge(mine.movedim(1, -1)).movedim(-1, 1) if mine.ndim == _PICTURES else bridge(mine)
        losses.append(_relative_error(*_unpadded(mapped, teachers, mask)))
    return torch.stack(losses).mean()


def make_bridges(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> torch.nn.ModuleList:
    """A linear map to be learned for each pair of states of different width; nothing is done where it is the same.

    The width is the last dimension, or the second of pictures [rows, channels, height, width].
    """
    bridges = []
    for mine, teachers in zip(found, wanted, strict=True):
        axis = 1 if mine.ndim == _PICTURES else -1
        same = mine.shape[axis] == teachers.shape[axis]
        bridges.append(
            torch.nn.Identity() if same else torch.nn.Linear(mine.shape[axis], teachers.shape[axis], bias=False)
        )
    return torch.nn.ModuleList(bridges)


def pair_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """How differently two sets of embeddings [rows, dimensions] order the batch: the squared difference of the cosines
    of all pairs of rows. Relations instead of points: Park et al. 2019; cosines as relation: Tung and Mori 2019.
    """
    one, other = functional.normalize(found, dim=-1), functional.normalize(wanted, dim=-1)
    return functional.mse_loss(one @ one.T, other @ other.T)


def _relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    return functional.mse_loss(found, wanted) / wanted.square().mean().clamp_min(_TINY)


def _unpadded(found: Tensor, wanted: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both [rows, tokens, ...] as [real tokens, ...]; as they are where `mask` is not about them."""
    if mask is None or wanted.ndim < 3 or mask.shape != wanted.shape[:2]:
        return found, wanted
    real = mask.bool()
    return found[real], wanted[real]
