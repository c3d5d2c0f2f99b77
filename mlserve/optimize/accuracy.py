"""How much of a model's quality a variant keeps, measured on rows against its reference."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from mlserve.engines.engine import Engine
from mlserve.errors import DataFileError, Refused
from mlserve.model.artifact import Accuracy
from mlserve.model.rows import Rows
from mlserve.model.tensors import Array

__all__ = ["measure_accuracy"]

Floats = npt.NDArray[np.float64]
OnRows = Callable[[int], None]

_BATCH_ROWS = 32
_MOST_PAIRS = 20_000
_FEWEST_CLASS_ROWS = 2


def measure_accuracy(
    candidate: Engine, reference: Engine, rows: Rows, *, task: str, on_rows: OnRows = lambda _: None
) -> Accuracy:
    """Runs both engines on `rows`, as they would be served, and compares their first output, row by row.

    With labels the headline figure is the real accuracy (or R^2 for labels that are no classes), and `loss` how much
    of the reference's was lost. Without, it is agreement with the reference: the mean cosine of the rows' outputs (for
    embeddings also the rank correlation of pair similarities), the share of equal answers for integers and texts, or
    R^2 for a single number a row.

    Raises Refused when the candidate gives values that are not finite.
    """
    found, expected = _outputs(candidate, reference, rows, on_rows)
    details: dict[str, float] = {}
    if found.dtype.kind != "f":
        metric, value = (
            "agreement",
            float(np.mean([np.array_equal(a, b) for a, b in zip(found, expected, strict=True)])),
        )
        loss = 1 - value
    else:
        one, other = _flat(found), _flat(expected)
        if not np.isfinite(one[np.isfinite(other)]).all():
            raise Refused(
                "nothing was published: the variant gives values that are not finite where fp32 gives numbers"
            )
        details = _agreement(one, other, embedding=task == "feature-extraction")
        metric = "r2" if one.shape[1] == 1 else "cosine"
        value, loss = details[metric], 1 - details[metric]
    if rows.labels is not None:
        metric, value, best = _against_labels(found, expected, rows.labels, rows.source)
        details |= {metric: value, f"reference_{metric}": best}
        loss = best - value
    return Accuracy(metric, value, loss, len(found), rows.source, "fp32", details)


def _outputs(candidate: Engine, reference: Engine, rows: Rows, on_rows: OnRows) -> tuple[Array, Array]:
    name = reference.outputs[0].name
    found: list[Array] = []
    expected: list[Array] = []
    for start, stop in _batches(candidate, rows):
        inputs = rows.batch(start, stop)
        found.append(np.atleast_1d(candidate.run(inputs)[name]))
        expected.append(np.atleast_1d(reference.run(inputs)[name]))
        on_rows(stop)
    return _joined(found), _joined(expected)


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
        figures["pair_spearman"] = _pair_spearman(found, expected)
        del figures["top1_agreement"]
    figures["largest_error"] = float(np.max(np.abs(found - expected)))
    return figures


def _cosine(one: Floats, other: Floats) -> Floats:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    same = np.all(one == other, axis=1)
    cosine: Floats = np.where(same, 1.0, np.sum(one * other, axis=1) / np.where(lengths > 0, lengths, 1.0))
    return cosine


def _pair_spearman(found: Floats, expected: Floats) -> float:
    """Rank correlation of the similarities of all pairs of rows: whether a search would order its results alike."""
    from scipy.stats import spearmanr

    first, second = np.triu_indices(len(expected), k=1)
    if len(first) > _MOST_PAIRS:
        chosen = np.random.default_rng(0).choice(len(first), _MOST_PAIRS, replace=False)
        first, second = first[chosen], second[chosen]
    similarity = [_cosine(side[first], side[second]) for side in (found, expected)]
    return float(spearmanr(*similarity).statistic)


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
    if one.shape[1] >= _FEWEST_CLASS_ROWS:
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
