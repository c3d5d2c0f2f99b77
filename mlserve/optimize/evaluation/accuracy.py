"""How much of a model's quality a variant keeps, measured on rows against its reference."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from mlserve.engines.engine import Engine
from mlserve.errors import DataFileError, Refused
from mlserve.model.artifact import Accuracy
from mlserve.model.rows import Rows
from mlserve.model.tensors import Array

__all__ = ["Answers", "answer_rows", "judge"]

Floats = npt.NDArray[np.float64]
Answers = Array
"""A model's first output [rows, ...] for every row it was asked."""

_BATCH_ROWS = 32
_MOST_PAIRS = 20_000
_FEWEST_CLASSES = 2


def answer_rows(engine: Engine, rows: Rows, on_rows: Callable[[int], None] = lambda _: None) -> Answers:
    """What `engine` answers to `rows`, in batches as they would be served; `on_rows` hears how many are done."""
    name = engine.outputs[0].name
    batches: list[Array] = []
    for start, stop in _batches(engine, rows):
        batches.append(np.atleast_1d(engine.run(rows.batch(start, stop))[name]))
        on_rows(stop)
    return _joined(batches)


def judge(found: Answers, expected: Answers, rows: Rows, *, task: str, reference: str = "fp32") -> Accuracy:
    """How a variant's answers `found` compare with those of the variant `reference`, `expected`, row by row.

    With labels the headline figure is the real accuracy (or R^2 for labels that are no classes), and `loss` how much
    of the reference's was lost. Without, it is agreement with the reference: the mean cosine of the rows' outputs (for
    embeddings also the rank correlation of pair similarities), the share of equal answers for integers and texts, or
    R^2 for a single number a row.

    Raises Refused when `found` is not finite where the reference is, DataFileError when the reference never is.
    """
    if found.dtype.kind == "f":
        details = _agreement(*_comparable(found, expected, rows.source), embedding=task == "feature-extraction")
        metric = "r2" if "r2" in details else "cosine"
    else:
        metric = "agreement"
        details = {metric: _share(np.array([np.array_equal(a, b) for a, b in zip(found, expected, strict=True)]))}
    value, best = details[metric], 1.0
    if rows.labels is not None:
        metric, value, best = _against_labels(found, expected, rows.labels, rows.source)
        details |= {metric: value, f"reference_{metric}": best}
    return Accuracy(metric, value, best - value, len(found), rows.source, reference, details)


def _comparable(found: Answers, expected: Answers, source: str) -> tuple[Floats, Floats]:
    """Both as one line of numbers a row; where the reference is not finite (a masked score), both count as zero."""
    one, other = _flat(found), _flat(expected)
    finite = np.isfinite(other)
    if not finite.any():
        raise DataFileError(
            f"the model answers {source} without one finite number; give rows it is made for with --data"
        )
    if not np.isfinite(one[finite]).all():
        raise Refused(
            "nothing was published: the variant gives values that are not finite where the model gives numbers"
        )
    return np.where(finite, one, 0.0), np.where(finite, other, 0.0)


def _batches(engine: Engine, rows: Rows) -> Iterator[tuple[int, int]]:
    first = engine.inputs[0].shape
    size = first[0] if first and isinstance(first[0], int) else _BATCH_ROWS
    whole = len(rows) - len(rows) % size if size != _BATCH_ROWS else len(rows)
    if not whole:
        raise DataFileError(f"{rows.source} has {len(rows)} rows, the model takes {size} at once; give at least {size}")
    for start in range(0, whole, size):
        yield start, min(start + size, len(rows))


def _joined(batches: list[Array]) -> Array:
    """All rows as one array. Outputs that are as long as their batch's texts are cut to the shortest of all."""
    shortest = [min(sizes) for sizes in zip(*(batch.shape[1:] for batch in batches), strict=True)]
    return np.concatenate([batch[(slice(None), *map(slice, shortest))] for batch in batches])


def _flat(array: Array) -> Floats:
    return array.reshape(len(array), -1).astype(np.float64)


def _agreement(found: Floats, expected: Floats, *, embedding: bool) -> dict[str, float]:
    figures: dict[str, float] = {}
    if expected.shape[1] == 1:
        figures["r2"] = _r2(found[:, 0], expected[:, 0])
    else:
        cosine = _cosine(found, expected)
        figures |= {"cosine": float(cosine.mean()), "cosine_min": float(cosine.min())}
        figures["top1_agreement"] = float(np.mean(found.argmax(1) == expected.argmax(1)))
    if embedding and len(expected) > 2:
        del figures["top1_agreement"]
        figures |= _pair_spearman(found, expected)
    figures["largest_error"] = float(np.max(np.abs(found - expected)))
    return figures


def _cosine(one: Floats, other: Floats) -> Floats:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    same = np.all(one == other, axis=1)
    cosine: Floats = np.where(same, 1.0, np.sum(one * other, axis=1) / np.where(lengths > 0, lengths, 1.0))
    return cosine


def _pair_spearman(found: Floats, expected: Floats) -> dict[str, float]:
    """Rank correlation of the similarities of all pairs of rows: whether a search would order its results alike.

    Empty where all pairs are equally similar, so that there is no order.
    """
    from scipy.stats import spearmanr

    first, second = np.triu_indices(len(expected), k=1)
    if len(first) > _MOST_PAIRS:
        chosen = np.random.default_rng(0).choice(len(first), _MOST_PAIRS, replace=False)
        first, second = first[chosen], second[chosen]
    similarity = [_cosine(side[first], side[second]) for side in (found, expected)]
    if any(np.ptp(values) == 0 for values in similarity):
        return {}
    return {"pair_spearman": float(spearmanr(*similarity).statistic)}


def _r2(found: Floats, expected: Floats) -> float:
    """The share of the variance of `expected` that `found` explains; 1.0 when they are equal."""
    residual = float(np.sum((found - expected) ** 2))
    total = float(np.sum((expected - expected.mean()) ** 2))
    if total == 0:
        return 1.0 if residual == 0 else 0.0
    return 1 - residual / total


def _against_labels(found: Array, expected: Array, labels: Array, source: str) -> tuple[str, float, float]:
    """Metric, the candidate's value, the reference's."""
    truth = labels[: len(found)]
    if truth.shape != (len(found),):
        raise DataFileError(
            f"{source}: labels have shape {list(labels.shape)}, the model gives {len(found)} answers; "
            "give one label each"
        )
    if found.dtype.kind != "f":
        return "accuracy", _share(found.ravel() == truth), _share(expected.ravel() == truth)
    one, other = _flat(found), _flat(expected)
    if one.shape[1] >= _FEWEST_CLASSES:
        if truth.dtype.kind not in "iub" or truth.min() < 0 or truth.max() >= one.shape[1]:
            raise DataFileError(
                f"{source}: labels must be class numbers from 0 to {one.shape[1] - 1}, as the model has "
                f"{one.shape[1]} outputs a row"
            )
        return "accuracy", _share(one.argmax(1) == truth), _share(other.argmax(1) == truth)
    if truth.dtype.kind in "bi" and set(np.unique(truth)) <= {0, 1}:
        cut = 0.5 if other.min() >= 0 and other.max() <= 1 else 0.0  # a probability, or a logit
        return "accuracy", _share((one[:, 0] > cut) == truth), _share((other[:, 0] > cut) == truth)
    values = truth.astype(np.float64)
    return "r2", _r2(one[:, 0], values), _r2(other[:, 0], values)


def _share(hits: Array) -> float:
    return float(np.mean(hits))
