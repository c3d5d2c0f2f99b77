"""From a model's outputs to what a person wants to know: labels, embeddings, values."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from mlserve.model.processing import Activation, AnswerForm, Pooling
from mlserve.model.tensors import Array, Tensors
from mlserve.serve.tasks.task import TaskAnswer
from mlserve.wire import plain

__all__ = ["Answers"]

_APPLIES_FROM = 0.5

Floats = npt.NDArray[np.float64]


class Answers:
    """Answers of one form; `labels` are the names of the classes, by number, or empty for the numbers themselves."""

    def __init__(self, form: AnswerForm, labels: Sequence[str]) -> None:
        self._form, self._labels = form, list(labels)

    @property
    def as_they_are(self) -> bool:
        """Whether an answer holds all that the model gives, padding too."""
        return self._form.kind == "outputs"

    def __call__(self, outputs: Tensors, mask: Array | None = None) -> list[TaskAnswer]:
        """One answer for each row of `outputs`; `mask` [rows, tokens] is 0 where a text has ended."""
        form = self._form
        if form.kind == "outputs":
            return _as_they_are(outputs)
        array = outputs[form.output] if form.output else next(iter(outputs.values()))
        values = array.astype(np.float64)
        match form.kind:
            case "embedding":
                pooled = _pooled(values, form.pooling, mask)
                return [{"embedding": row} for row in _numbers(_unit(pooled) if form.normalize else pooled)]
            case "value":
                return [{"value": value} for value in _numbers(values.reshape(len(values), -1)[:, 0])]
            case "labels":
                return self._all_that_apply(_activated(values, form.activation))
            case "label":
                return self._best(_activated(values, form.activation))

    def _best(self, scores: Floats) -> list[TaskAnswer]:
        if scores.shape[1] == 1:  # one score for two classes: that of the second
            scores = np.concatenate([1.0 - scores, scores], axis=1)
        best = scores.argmax(axis=1)
        top = _numbers(scores[np.arange(len(scores)), best])
        threshold = self._form.threshold
        sure = [threshold is None or (score is not None and score >= threshold) for score in top]
        return [
            {"label": self._name(int(number)) if enough else None, "score": score}
            for number, score, enough in zip(best, top, sure, strict=True)
        ]

    def _all_that_apply(self, scores: Floats) -> list[TaskAnswer]:
        threshold = _APPLIES_FROM if self._form.threshold is None else self._form.threshold
        answers: list[TaskAnswer] = []
        for row, numbers in zip(scores, _numbers(scores), strict=True):
            order = [int(number) for number in np.argsort(-row, kind="stable") if row[number] >= threshold]
            answers.append({"labels": [{"label": self._name(number), "score": numbers[number]} for number in order]})
        return answers

    def _name(self, number: int) -> str:
        return self._labels[number] if number < len(self._labels) else str(number)


def _as_they_are(outputs: Tensors) -> list[TaskAnswer]:
    columns = orjson.loads(plain.write_json(plain.to_columns(outputs, list(outputs))))
    rows = range(len(next(iter(outputs.values()))))
    return [{"outputs": {name: column[row] for name, column in columns.items()}} for row in rows]


def _activated(values: Floats, activation: Activation) -> Floats:
    values = values.reshape(len(values), -1)
    if activation == "sigmoid":
        # Of a number below zero the other form, which does not overflow.
        small = np.exp(-np.abs(values))
        return np.where(values >= 0, 1 / (1 + small), small / (1 + small))
    if activation == "softmax":
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    return values


def _pooled(values: Floats, pooling: Pooling, mask: Array | None) -> Floats:
    """[rows, tokens, size] -> [rows, size], of the tokens that `mask` has not out."""
    if values.ndim < 3 or pooling == "none":
        return values.reshape(len(values), -1)
    if pooling == "cls":
        return np.asarray(values[:, 0])
    kept = np.ones(values.shape[:2]) if mask is None else mask.astype(np.float64)
    if pooling == "max":
        return np.asarray(np.where(kept[:, :, None] > 0, values, -np.inf).max(axis=1))
    return np.asarray((values * kept[:, :, None]).sum(axis=1) / kept.sum(axis=1, keepdims=True))


def _unit(values: Floats) -> Floats:
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.maximum(lengths, 1e-12))


def _numbers(values: Floats) -> list[Any]:
    """`values` as JSON's numbers, of no more digits than a float32 has; NaN and infinity as None."""
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(values, np.float32)
    found: list[Any] = orjson.loads(orjson.dumps(narrow, option=orjson.OPT_SERIALIZE_NUMPY))
    return found
