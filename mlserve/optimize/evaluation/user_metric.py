"""A metric of the user's own: a function of predictions and labels, in a module beside their work."""

import math
from collections.abc import Callable

import numpy as np

from mlserve.errors import UsageError
from mlserve.model.tensors import Array
from mlserve.optimize.evaluation.comparison import Comparison
from mlserve.optimize.users_code import load_named
from mlserve.stats import Figure, Floats

__all__ = ["UserFunction", "load_function", "user_figure"]

UserFunction = Callable[[Array, Array], float]
"""(predictions [rows, ...], labels [rows, ...]) -> a figure; higher is better, as scikit-learn's scorers have it."""


def load_function(spec: str) -> UserFunction:
    """`package.module:function`, imported; the working folder is searched first.

    Raises UsageError when there is no such function.
    """
    function: UserFunction = load_named(spec, "--metric")
    if not callable(function):
        raise UsageError(f"--metric {spec} is a {type(function).__name__}; name a function (predictions, labels)")
    return function


def user_figure(function: UserFunction, spec: str, comparison: Comparison) -> tuple[Figure, Figure]:
    """The function of the variant's answers, and of the reference's.

    It must give a number for the rows as they are, else UsageError. A sample redrawn from them may lack what it needs,
    such as one of two classes; it counts as NaN.
    """
    labels = comparison.labels
    assert labels is not None
    for side in (comparison.found, comparison.expected):
        try:
            value = float(function(side, labels))
        except Exception as error:  # the user's own code may raise anything
            raise UsageError(
                f"--metric {spec} failed on predictions {list(side.shape)} and labels {list(labels.shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not math.isfinite(value):
            raise UsageError(f"--metric {spec} gives {value}; it must give a finite number, higher for better answers")
    return _figure(function, comparison.found, labels), _figure(function, comparison.expected, labels)


def _figure(function: UserFunction, predictions: Array, labels: Array) -> Figure:
    def value(counts: Floats) -> float:
        drawn = np.repeat(np.arange(len(labels)), counts.astype(np.int64))
        try:
            return float(function(predictions[drawn], labels[drawn]))
        except Exception:  # as above: the sample lacks what the rows as they are had
            return math.nan

    return lambda counts: np.array([value(sample) for sample in counts])
