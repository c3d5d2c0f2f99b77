"""Metrics by name: what each reads of a model's output, how it is computed, and which way is better."""

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
import numpy as np

from mlserve.errors import DataFileError, UsageError
from mlserve.model.tensors import TensorSpec
from mlserve.optimize.evaluation.comparison import Comparison, Numbers
from mlserve.optimize.evaluation.figures import (
    cosines,
    macro_auc,
    macro_f1,
    mean_of_rows,
    pair_spearman,
    r2,
    rms_of_rows,
    spearman,
)
from mlserve.optimize.evaluation.user_metric import load_function, user_figure
from mlserve.stats import Figure, Floats

__all__ = ["Figures", "Metric", "default_metric", "is_error", "judged_output", "parse_metric"]

_TOP = 5
# Each of them costs as much as the function itself, which may be anything.
_USER_RESAMPLES = 200
_SORTING_RESAMPLES = 500
_RESAMPLES = 2000


class Figures(msgspec.Struct, frozen=True):
    """A metric of the variant, `found`, and of the reference, `best`.

    `hits` are, for a share of rows, the rows that each side gets right. `fewest_rows` is, for a metric of decisions
    that none of the rows changed, how few rows a change could be of; 0 where any change would have shown.
    """

    found: Figure
    best: Figure
    hits: tuple[Floats, Floats] | None = None
    fewest_rows: float = 0.0


class Metric(msgspec.Struct, frozen=True):
    """One metric. `figures` raises DataFileError for data it is not defined for.

    `reads` is what it wants of a model with several outputs: the `answer` itself, `numbers`, or `scores` of classes.
    An error (`lower_is_better`) is lost relative to the reference's, everything else in points. `against_labels` is
    None for a metric that needs labels; else it says whether it can use those of a comparison, or must hold the
    variant against the reference. `work` is about how many additions a value of a row costs in each of `resamples`
    samples; 0 where a row is one number for all of them.
    """

    name: str
    figures: Callable[[Comparison], Figures]
    reads: Literal["answer", "numbers", "scores"] = "answer"
    lower_is_better: bool = False
    against_labels: Callable[[Comparison], bool] | None = lambda _: True
    resamples: int = _RESAMPLES
    work: int = 0

    def settle(self, comparison: Comparison) -> Comparison:
        """`comparison` with its labels where this metric can use them, else without.

        Raises DataFileError where it needs labels and there are none.
        """
        if self.against_labels is None:
            if comparison.labels is None:
                raise DataFileError(
                    f"--metric {self.name} needs true answers, and {comparison.source} has no column label, labels, "
                    "target or y; add one, or leave --metric out to measure agreement with the original model"
                )
            return comparison
        usable = comparison.labels is not None and self.against_labels(comparison)
        return comparison if usable else comparison.without_labels()


def parse_metric(text: str) -> Metric:
    """The metric of that name, or the user's own `package.module:function`.

    Raises UsageError for another name, and for a function that cannot be imported.
    """
    if ":" in text:
        function = load_function(text)
        return Metric(
            text,
            lambda comparison: Figures(*user_figure(function, text, comparison)),
            against_labels=None,
            resamples=_USER_RESAMPLES,
        )
    if text not in _METRICS:
        raise UsageError(f"--metric {text!r} is unknown; use {', '.join(_METRICS)} or package.module:function")
    return _METRICS[text]


def is_error(name: str) -> bool:
    """Whether less of the metric `name` is better, so that its loss is a growth."""
    return name in _METRICS and _METRICS[name].lower_is_better


def default_metric(comparison: Comparison) -> Metric:
    """The metric that fits the kind of output and labels.

    With labels: accuracy, or R^2 for quantities. Without: the mean cosine of rows of several numbers, R^2 for one
    number a row, the share of equal answers for labels and texts.
    """
    if not comparison.numeric:
        return _AGREEMENT if comparison.labels is None else _METRICS["accuracy"]
    if comparison.labels is None:
        return _METRICS["r2" if comparison.width == 1 else "cosine"]
    labels = comparison.labels
    if comparison.width == 1:
        binary = labels.dtype.kind in "bi" and set(np.unique(labels).tolist()) <= {0, 1}
        return _METRICS["accuracy" if binary or labels.dtype.kind == "O" else "r2"]
    return _METRICS["r2" if labels.size == comparison.expected.size else "accuracy"]


def judged_output(outputs: Sequence[TensorSpec], metric: Metric | None = None) -> str:
    """The name of the output that `metric` judges: the first, but of a classifier that gives labels and scores, the
    scores for a metric of scores.

    Raises UsageError where there are no scores.
    """
    first = outputs[0]
    if metric is None or metric.reads == "answer":
        return first.name
    floats = next((spec for spec in outputs if spec.dtype.startswith("float")), None)
    if floats is None and metric.reads == "scores":
        raise UsageError(
            f"--metric {metric.name} needs scores of classes, the model gives only {', '.join(map(str, outputs))}; "
            "use --metric accuracy or f1"
        )
    return (floats or first).name


def _accuracy(comparison: Comparison) -> Figures:
    found, expected, truth = comparison.classes()
    return _share(found == truth, expected == truth)


def _top5(comparison: Comparison) -> Figures:
    found, expected, truth = comparison.scores()
    if found.shape[1] <= _TOP:
        raise DataFileError(
            f"--metric top5 says nothing of {found.shape[1]} classes, of which five are nearly all; use accuracy"
        )
    return _share(_among_best(found, truth), _among_best(expected, truth))


def _f1(comparison: Comparison) -> Figures:
    found, expected, truth = comparison.classes()
    unchanged = np.array_equal(found, expected)
    _, sizes = np.unique(truth, return_counts=True)
    # A class of few rows weighs as much as any other, so that is how few rows the figure rests on.
    rests_on = float(len(sizes) * sizes.min()) if unchanged else 0.0
    return Figures(macro_f1(found, truth), macro_f1(expected, truth), fewest_rows=rests_on)


def _auc(comparison: Comparison) -> Figures:
    found, expected, truth = comparison.scores()
    classes = np.unique(truth)
    if len(classes) == 1:
        raise DataFileError(
            f"--metric auc needs rows of at least two classes; all {len(truth)} rows of {comparison.source} that are "
            f"judged are of class {classes[0]}"
        )
    return Figures(macro_auc(found, truth), macro_auc(expected, truth))


def _mae(comparison: Comparison) -> Figures:
    found, expected, truth = comparison.quantities()
    errors, best = (np.abs(side - truth).mean(1) for side in (found, expected))
    return Figures(mean_of_rows(errors), mean_of_rows(best))


def _rmse(comparison: Comparison) -> Figures:
    found, expected, truth = comparison.quantities()
    squares, best = (((side - truth) ** 2).mean(1) for side in (found, expected))
    return Figures(rms_of_rows(squares), rms_of_rows(best))


def _r2(comparison: Comparison) -> Figures:
    found, expected, truth = comparison.quantities()
    return Figures(r2(found, truth), r2(expected, truth))


def _cosine(comparison: Comparison) -> Figures:
    if comparison.width == 1:
        raise DataFileError(
            "--metric cosine compares rows of several numbers, and the model gives one a row; use mae, r2 or spearman"
        )
    found, expected, truth = comparison.quantities()
    return Figures(mean_of_rows(cosines(found, truth)), mean_of_rows(cosines(expected, truth)))


def _spearman(comparison: Comparison) -> Figures:
    found, expected, truth = comparison.quantities()
    if truth.shape[1] == 1:
        figures = Figures(spearman(found[:, 0], truth[:, 0]), spearman(expected[:, 0], truth[:, 0]))
    else:
        figures = Figures(pair_spearman(found, truth), pair_spearman(expected, truth))
    if np.isnan(figures.best(np.ones((1, len(truth))))[0]):
        raise DataFileError(
            f"--metric spearman compares orders, and {comparison.source} gives none: it takes at least 3 rows that "
            "differ"
        )
    return figures


def _equal_answers(comparison: Comparison) -> Figures:
    pairs = zip(comparison.found, comparison.expected, strict=True)
    return _share(np.array([np.array_equal(one, other) for one, other in pairs]), np.ones(len(comparison), bool))


def _share(found: Numbers, expected: Numbers) -> Figures:
    """The share of rows that are right; both [rows], true or false."""
    hits = found.astype(np.float64), expected.astype(np.float64)
    return Figures(mean_of_rows(hits[0]), mean_of_rows(hits[1]), hits)


def _among_best(scores: Floats, truth: Numbers) -> Numbers:
    """Whether fewer than five classes have a higher score than the true one."""
    own = scores[np.arange(len(truth)), truth]
    among: Numbers = np.sum(scores > own[:, None], axis=1) < _TOP
    return among


def _number_each(comparison: Comparison) -> bool:
    """Whether labels are quantities as the output is, as many a row."""
    assert comparison.labels is not None
    return comparison.labels.dtype.kind in "fiub" and comparison.labels.size == comparison.expected.size


_AGREEMENT = Metric("agreement", _equal_answers, against_labels=lambda _: False)

_METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", _accuracy),
        Metric("top5", _top5, reads="scores"),
        Metric("f1", _f1),
        Metric("auc", _auc, reads="scores", against_labels=None, resamples=_SORTING_RESAMPLES, work=20),
        Metric("mae", _mae, reads="numbers", lower_is_better=True),
        Metric("rmse", _rmse, reads="numbers", lower_is_better=True),
        Metric("r2", _r2, reads="numbers", work=1),
        Metric("cosine", _cosine, reads="numbers", against_labels=_number_each),
        Metric("spearman", _spearman, reads="numbers", against_labels=_number_each, resamples=_SORTING_RESAMPLES),
    )
}
