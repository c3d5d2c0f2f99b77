"""What a fitted scikit-learn model takes: one matrix, one text a row, or named columns of numbers and texts."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from mlserve.errors import UnknownInputError
from mlserve.model.tensors import Tensors, TensorSpec
from mlserve.optimize.importers.interface import ROWS

__all__ = ["TableInputs", "sklearn_inputs", "sklearn_steps"]

_DTYPE_OF_KIND = {"O": "object", "U": "object", "S": "object", "i": "int64", "u": "int64", "b": "bool"}


class TableInputs(msgspec.Struct, frozen=True):
    """`specs` of the inputs; `columns` when they are the columns of a table rather than one array.

    `names` are those the model knows its features by, and `choices` values that an input of categories was fitted on.
    """

    specs: tuple[TensorSpec, ...]
    columns: bool = False
    names: tuple[str, ...] = ()
    choices: dict[str, list[Any]] = {}
    assumed: tuple[str, ...] = ()

    def table(self, inputs: Tensors) -> Any:
        """`inputs` as the model's own `predict` takes them."""
        if not self.columns:
            return inputs[self.specs[0].name]
        import pandas

        frame = pandas.DataFrame({spec.name: inputs[spec.name] for spec in self.specs})
        return frame if self.names else frame.to_numpy()


def sklearn_inputs(model: Any, stated: Sequence[TensorSpec], source: str) -> TableInputs:
    """The inputs of a fitted `model`: as the user `stated` them, else as it was fitted.

    Raises UnknownInputError when the model does not say.
    """
    names = tuple(str(name) for name in getattr(model, "feature_names_in_", ()))
    kinds, choices = _encoded(model, names)
    if stated:
        return TableInputs(tuple(stated), len(stated) > 1, names, choices)
    if _reads_text(model):
        spec = TensorSpec("text", "object", (ROWS,))
        words = list(getattr(_first(model), "vocabulary_", {"text": 0}))
        return TableInputs((spec,), choices={"text": words})
    if names and (kinds or _chooses_columns(model)):
        specs = tuple(TensorSpec(name, kinds.get(name, "float32"), (ROWS,)) for name in names)
        told = ", ".join(f"{spec.name} {spec.dtype}" for spec in specs[:6])
        return TableInputs(specs, True, names, choices, (f"inputs {told}{', ...' if len(specs) > 6 else ''}",))
    count = getattr(model, "n_features_in_", None)
    if count is None:
        raise UnknownInputError(
            f"{source} does not say how many features it takes; state it with --input input:float32:batch,N"
        )
    return TableInputs((TensorSpec("input", "float32", (ROWS, int(count))),), names=names)


def sklearn_steps(model: Any) -> list[Any]:
    """The model itself, or the steps of a pipeline, the first first; a search stands for what it found."""
    model = getattr(model, "best_estimator_", model)
    if hasattr(model, "steps"):
        return [part for _, step in model.steps for part in sklearn_steps(step)]
    return [model]


def _first(model: Any) -> Any:
    return sklearn_steps(model)[0]


def _reads_text(model: Any) -> bool:
    return hasattr(_first(model), "analyzer") and not hasattr(_first(model), "transformers_")


def _chooses_columns(model: Any) -> bool:
    return any(hasattr(step, "transformers_") for step in sklearn_steps(model))


def _encoded(model: Any, names: Sequence[str]) -> tuple[dict[str, str], dict[str, list[Any]]]:
    """Of the columns that an encoder of categories or a reader of text takes: their types, and values it knows."""
    kinds: dict[str, str] = {}
    choices: dict[str, list[Any]] = {}
    for step, columns in _columnsklearn_steps(model, names):
        values = getattr(step, "categories_", None)
        if values is not None and len(values) == len(columns):
            for name, categories in zip(columns, values, strict=True):
                found = [value for value in categories if value == value and value is not None]  # noqa: PLR0124  # NaN
                kind = np.asarray(categories).dtype.kind
                if kind in _DTYPE_OF_KIND:
                    kinds[name] = _DTYPE_OF_KIND[kind]
                choices[name] = found
        elif hasattr(step, "analyzer"):
            kinds |= dict.fromkeys(columns, "object")
            choices |= {name: list(getattr(step, "vocabulary_", {"text": 0})) for name in columns}
        elif getattr(getattr(step, "statistics_", None), "dtype", np.dtype(float)).kind == "O":
            kinds |= dict.fromkeys(columns, "object")
    return kinds, choices


def _columnsklearn_steps(model: Any, names: Sequence[str]) -> Iterator[tuple[Any, list[str]]]:
    """Every transformer that takes columns as they come in, with their names."""
    first = _first(model)
    if not hasattr(first, "transformers_"):
        yield first, list(names)
        return
    for _, transformer, columns in first.transformers_:
        if isinstance(transformer, str):  # "drop" or "passthrough"
            continue
        chosen = [names[0]] if columns is None else _column_names(columns, names)
        for step in sklearn_steps(transformer):
            yield step, chosen


def _column_names(columns: Any, names: Sequence[str]) -> list[str]:
    if isinstance(columns, str):
        return [columns]
    if isinstance(columns, slice):
        return list(names[columns])
    if isinstance(columns, int):
        columns = [columns]
    chosen = np.asarray(columns)
    if chosen.dtype.kind == "b":
        return [name for name, taken in zip(names, chosen, strict=True) if taken]
    return [str(names[int(column)]) if isinstance(column, int | np.integer) else str(column) for column in columns]
