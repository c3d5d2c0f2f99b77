"""What a student learns from: its teacher's answers, the states between its layers, and labels."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch.nn import functional

from mlserve.errors import Refused
from mlserve.model.rows import Rows
from mlserve.optimize.training.loop import as_tensors, batches, grouped
from mlserve.optimize.training.losses import (
    AnswerKind,
    answer_kind,
    hidden_loss,
    imitation_loss,
    make_bridges,
    pair_loss,
    task_loss,
)
from mlserve.optimize.training.students import Student
from mlserve.optimize.training.trainee import Trainee

__all__ = ["Aims", "Teaching"]

_KEPT_ANSWERS_BYTES = 512_000_000
_FIRST_ROWS = 32

Answers = dict[str, torch.Tensor]


class Aims(NamedTuple):
    """What training makes small, weighted; see `Distill`. `hidden` asks for what is left between layers too."""

    temperature: float
    soft_weight: float
    hard_weight: float
    hidden: bool
    seed: int


class Teaching:
    """The loss of a distillation. As a context it watches the layers that are compared, and lets go of them after.

    `bridges` are weights of its own, to be trained with the student.

    The teacher's answers are asked for once, where they have one shape and fit into memory, and only the student runs
    from then on; else the teacher answers every batch again.
    """

    def __init__(self, trainee: Trainee, student: Student, rows: Rows, aims: Aims) -> None:
        self._trainee, self._rows, self._aims = trainee, rows, aims
        self._teacher, self._student = trainee.module, student.module
        self._first = as_tensors(rows.batch(0, min(_FIRST_ROWS, len(rows))))
        self.kinds = self._kinds()
        if not self.kinds:
            raise Refused("the model answers in integers only, which cannot be imitated step by step; give its scores")
        self._watches: tuple[_Watch, ...] = ()
        self._pairs = student.pairs if aims.hidden else ()
        self._kept: Answers | None = None
        self.bridges = torch.nn.ModuleList()
        if self.embeds:
            _switch_dropout_off(student.module)

    @property
    def embeds(self) -> bool:
        """Whether every answer is an embedding: there, labels are of no use."""
        return set(self.kinds.values()) == {"embedding"}

    def __enter__(self) -> Self:
        self._watches = tuple(_Watch(layers) for layers in zip(*self._pairs, strict=True))
        if self._watches:
            mine, teachers = self._watches
            self._answer_both(self._first)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self._aims.seed)
                self.bridges = make_bridges(mine.states, teachers.states)
        else:
            self._kept = self._answers_once()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for watch in self._watches:
            watch.end()

    def __call__(self, inputs: Answers, labels: torch.Tensor | None, indices: list[int]) -> torch.Tensor:
        """The loss of the rows `indices`, as `fit` asks for it."""
        aims, mask = self._aims, inputs.get("attention_mask")
        wanted = self._wanted(inputs, indices)
        found = self._trainee.answer(self._student, inputs)
        loss = aims.soft_weight * imitation_loss(
            found, wanted, kinds=self.kinds, temperature=aims.temperature, mask=mask
        )
        for name, kind in self.kinds.items():
            if kind == "embedding" and wanted[name].ndim == 2:
                loss = loss + aims.soft_weight * pair_loss(found[name], wanted[name])
        if labels is not None and aims.hard_weight and not self.embeds:
            loss = loss + aims.hard_weight * task_loss(found, labels, self._trainee.task)
        if self._watches:
            mine, teachers = self._watches
            loss = loss + hidden_loss(mine.states, teachers.states, self.bridges, mask)
        return loss

    def likeness(self, indices: list[int]) -> str:
        """How like its teacher the student answers to the rows `indices`, in words, by its first output."""
        if not indices:
            return "no validation rows: how like its teacher it answers is not known here"
        name, kind = next(iter(self.kinds.items()))
        found, wanted = [], []
        with torch.no_grad():
            for numbers, inputs, _ in batches(self._rows, grouped(indices, _FIRST_ROWS)):
                expected = self._wanted(inputs, numbers)[name]
                answer = self._trainee.answer(self._student, inputs)[name]
                mask = inputs.get("attention_mask")
                real = mask.bool() if mask is not None and mask.shape == expected.shape[:2] else ...
                found.append(answer[real].reshape(-1, answer.shape[-1]) if kind != "number" else answer.flatten())
                wanted.append(expected[real].reshape(-1, answer.shape[-1]) if kind != "number" else expected.flatten())
        return _MEASURES[kind](torch.cat(found), torch.cat(wanted)).format(rows=f"{len(indices)} validation rows")

    def _kinds(self) -> dict[str, AnswerKind]:
        count = len(next(iter(self._first.values())))
        labels = None if self._rows.labels is None else self._rows.labels[:count]
        known = None if labels is None or labels.dtype.kind not in "biuf" else torch.from_numpy(labels.copy())
        answers = self._ask(self._first)
        return {
            name: answer_kind(name, answer, task=self._trainee.task, labels=known)
            for name, answer in answers.items()
            if answer.is_floating_point()
        }

    def _ask(self, inputs: Answers) -> Answers:
        with torch.no_grad():
            return self._trainee.answer(self._teacher, inputs)

    def _answer_both(self, inputs: Answers) -> None:
        self._ask(inputs)
        with torch.no_grad():
            self._trainee.answer(self._student, inputs)

    def _wanted(self, inputs: Answers, indices: list[int]) -> Answers:
        if self._kept is None:
            answers = self._ask(inputs)
            return {name: answers[name] for name in self.kinds}
        return {name: kept[indices] for name, kept in self._kept.items()}

    def _answers_once(self) -> Answers | None:
        """The teacher's answers to all rows; None where they are of several shapes, or too many to keep."""
        first = self._ask(self._first)
        row_bytes = sum(first[name][0].nbytes for name in self.kinds)
        if row_bytes * len(self._rows) > _KEPT_ANSWERS_BYTES:
            return None
        self._trainee.on_step(f"distill: the teacher answers {len(self._rows)} rows")
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in self.kinds}
        for start in range(0, len(self._rows), _FIRST_ROWS):
            answers = self._ask(as_tensors(self._rows.batch(start, min(start + _FIRST_ROWS, len(self._rows)))))
            for name, kept in parts.items():
                if answers[name].shape[1:] != first[name].shape[1:]:
                    return None
                kept.append(answers[name])
        return {name: torch.cat(kept) for name, kept in parts.items()}


class _Watch:
    """What some layers gave when they last ran."""

    def __init__(self, layers: tuple[torch.nn.Module, ...]) -> None:
        self._states: list[torch.Tensor | None] = [None] * len(layers)
        self._hooks = [layer.register_forward_hook(self._note(number)) for number, layer in enumerate(layers)]

    @property
    def states(self) -> list[torch.Tensor]:
        return [state for state in self._states if state is not None]

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._states.clear()

    def _note(self, number: int) -> Callable[[Any, Any, Any], None]:
        def hook(_layer: Any, _inputs: Any, result: Any) -> None:
            self._states[number] = result[0] if isinstance(result, tuple | list) else result

        return hook


def _switch_dropout_off(module: torch.nn.Module) -> None:
    """A student that is to meet every number of its teacher's answers learns it slower through noise."""
    for part in module.modules():
        if isinstance(part, torch.nn.modules.dropout._DropoutNd):  # noqa: SLF001  # what all forms of it have in common
            part.p = 0.0


def _agreement(found: torch.Tensor, wanted: torch.Tensor) -> str:
    return (
        f"names its teacher's class on {float((found.argmax(-1) == wanted.argmax(-1)).float().mean()):.1%} of {{rows}}"
    )


def _cosine(found: torch.Tensor, wanted: torch.Tensor) -> str:
    cosine = functional.cosine_similarity(found, wanted, dim=-1)
    return f"mean cosine to its teacher {float(cosine.mean()):.4f} on {{rows}} (least {float(cosine.min()):.4f})"


def _explained(found: torch.Tensor, wanted: torch.Tensor) -> str:
    """R^2 with the teacher's answers as the truth."""
    spread = float((wanted - wanted.mean()).square().sum())
    return f"explains {1 - float((found - wanted).square().sum()) / max(spread, 1e-12):.1%} of its teacher on {{rows}}"


_MEASURES: dict[AnswerKind, Callable[[torch.Tensor, torch.Tensor], str]] = {
    "scores": _agreement,
    "probabilities": _agreement,
    "embedding": _cosine,
    "number": _explained,
}
