"""How much of a model's quality a variant keeps, measured on rows against its reference."""

from collections.abc import Callable, Iterator

import numpy as np

from mlserve.engines.engine import Engine
from mlserve.errors import DataFileError
from mlserve.model.artifact import Accuracy
from mlserve.model.rows import Rows
from mlserve.model.tensors import Array
from mlserve.optimize.evaluation.comparison import Comparison
from mlserve.optimize.evaluation.drop import measure_drop
from mlserve.optimize.evaluation.figures import cosines, pair_spearman, r2
from mlserve.optimize.evaluation.metrics import Metric, default_metric

__all__ = ["Answers", "answer_rows", "judge"]

Answers = Array
"""One output of a model [rows, ...] for every row it was asked."""

_BATCH_ROWS = 32


def answer_rows(
    engine: Engine, rows: Rows, on_rows: Callable[[int], None] = lambda _: None, *, output: str = ""
) -> Answers:
    """What `engine` answers to `rows`, in batches as they would be served; `on_rows` hears how many are done.

    `output` is the one that is judged (`metrics.judged_output`), by default the first.
    """
    name = output or engine.outputs[0].name
    batches: list[Array] = []
    for start, stop in _batches(engine, rows):
        batches.append(np.atleast_1d(engine.run(rows.batch(start, stop))[name]))
        on_rows(stop)
    return _joined(batches)


def judge(
    found: Answers,
    expected: Answers,
    rows: Rows,
    *,
    task: str,
    reference: str = "fp32",
    metric: Metric | None = None,
    split: str = "",
    names: tuple[str, ...] = (),
) -> Accuracy:
    """How a variant's answers `found` compare with those of the variant `reference`, `expected`, row by row.

    `metric` is by default the one that fits the output (`metrics.default_metric`). It is held against the rows' labels
    where there are any that it can use, else against the reference's answers; `basis` says which. `names` are those of
    the classes, `split` says which rows these are. Whatever the metric, the details tell the agreement with the
    reference: for numbers the cosine of the rows' outputs (for embeddings also the rank correlation of pair
    similarities) or R^2 for a single one, for labels and texts the share of equal answers.

    Raises Refused when `found` is not finite where the reference is, DataFileError when the reference never is, or
    when the metric is not defined for output and labels.
    """
    labels = None if rows.labels is None else rows.labels[: len(found)]
    comparison = Comparison(found, expected, rows.source, labels, names)
    details = _agreement(comparison, embedding=task == "feature-extraction")
    chosen = metric or default_metric(comparison)
    comparison = chosen.settle(comparison)
    drop = measure_drop(chosen, chosen.figures(comparison), comparison)
    labelled = comparison.labels is not None
    details |= {chosen.name: drop.value} | ({f"reference_{chosen.name}": drop.best} if labelled else {})
    return Accuracy(
        metric=chosen.name,
        value=drop.value,
        loss=drop.loss,
        rows=len(found),
        data=rows.source,
        reference=reference,
        details=details,
        basis="labels" if labelled else f"agreement with {reference}",
        split=split,
        loss_low=drop.low,
        loss_high=drop.high,
    )


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


def _agreement(comparison: Comparison, *, embedding: bool) -> dict[str, float]:
    if not comparison.numeric:
        pairs = zip(comparison.found, comparison.expected, strict=True)
        return {"agreement": float(np.mean([np.array_equal(one, other) for one, other in pairs]))}
    found, expected = comparison.vectors()
    once = np.ones((1, len(found)))
    figures: dict[str, float] = {}
    if comparison.width == 1:
        figures["r2"] = float(r2(found, expected)(once)[0])
    else:
        each = cosines(found, expected)
        figures |= {"cosine": float(each.mean()), "cosine_min": float(each.min())}
        if not embedding or len(expected) <= 2:
            figures["top1_agreement"] = float(np.mean(found.argmax(1) == expected.argmax(1)))
    if embedding and comparison.width > 1 and len(expected) > 2:
        order = float(pair_spearman(found, expected)(once)[0])
        figures |= {} if np.isnan(order) else {"pair_spearman": order}
    figures["largest_error"] = float(np.max(np.abs(found - expected)))
    return figures
