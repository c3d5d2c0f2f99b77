"""Rows for a model of tables: the user's, as precise as they are, or made up where the model decides something."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from mlserve.errors import DataFileError
from mlserve.model.rows import LABEL_NAMES, Rows, fit_rows, read_columns
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import Array, Tensors, TensorSpec

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["Range", "Ranges", "made_up_rows", "ranges_of", "read_wide", "trials"]

_ROWS_COMPARED = 1024
_BATCH_ROWS = 256
_MADE_UP = (3, 1, 8, 256)


class Range(msgspec.Struct, frozen=True):
    """The lowest and highest value worth trying of each feature; `whole` are those of whole numbers, categories."""

    low: Array
    high: Array
    whole: tuple[int, ...] = ()

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        """Values [rows, features]; a feature beyond the last that has a range is as the last."""
        low, high = (np.pad(bound, (0, max(0, shape[-1] - len(bound))), "edge") for bound in (self.low, self.high))
        values: Array = low + (high - low) * rng.random(shape)
        values[:, list(self.whole)] = np.rint(values[:, list(self.whole)])
        return values


Ranges = dict[str, Range]
"""By the name of the input [rows, features]."""


def trials(
    specs: Sequence[TensorSpec], ranges: Ranges, choices: Mapping[str, Sequence[Any]], rows: Rows | None
) -> Iterator[Tensors]:
    """Inputs to compare two models on, floats as float64: made-up rows of several sizes, then `rows`."""
    rng = np.random.default_rng(2)
    for count in _MADE_UP:
        yield made_up_rows(specs, ranges, choices, count, rng)
    if rows is not None:
        last = min(len(rows), _ROWS_COMPARED)
        for start in range(0, last, _BATCH_ROWS):
            yield rows.batch(start, min(start + _BATCH_ROWS, last))


def made_up_rows(
    specs: Sequence[TensorSpec],
    ranges: Ranges,
    choices: Mapping[str, Sequence[Any]],
    count: int,
    rng: np.random.Generator,
) -> Tensors:
    """`count` rows; a value comes from the input's `choices`, else from its range, else from a normal distribution."""
    made = synthesize(specs, count, rng)
    for name, array in made.items():
        if name in choices:
            made[name] = rng.choice(np.array(choices[name], array.dtype), array.shape)
        elif name in ranges:
            # What float32 cannot hold would be rounded on its way to the model that is compared.
            made[name] = ranges[name].draw(array.shape, rng).astype(np.float32).astype(array.dtype)
        elif array.dtype.kind == "f":
            made[name] = array.astype(np.float32).astype(np.float64)
    return _wide(made)


def read_wide(path: Path, specs: Sequence[TensorSpec], names: Sequence[str] = ()) -> Rows:
    """The rows of a data file, numbers as precise as it has them. `names` are the features of the one matrix input.

    Raises DataFileError, also when the file has these features in another order: nobody could tell later.
    """
    columns = read_columns(path)
    if names and set(names) <= columns.keys():
        found = [name for name in columns if name in names]
        if found != list(names):
            raise DataFileError(
                f"{path} has the model's columns in another order; write them as {', '.join(names[:6])}"
                f"{', ...' if len(names) > 6 else ''}"
            )
        columns = {name: columns[name] for name in columns if name in names or name in LABEL_NAMES}
    wide = [msgspec.structs.replace(spec, dtype="float64") if spec.dtype == "float32" else spec for spec in specs]
    return fit_rows(columns, wide, source=path.name)


def ranges_of(model: "ModelProto") -> Ranges:
    """Around what its first operators compare an input [rows, features] with: thresholds of trees, or a scaler's mean.

    Made-up rows elsewhere would all take the same branch.
    """
    ranges: Ranges = {}
    for node in model.graph.node:
        values = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type.startswith("TreeEnsemble") and "nodes_values" in values:
            found = _thresholds(values)
        elif node.op_type == "Scaler":
            middle, scale = (np.array(values[name].floats) for name in ("offset", "scale"))
            width = 2 / np.where(scale == 0, 1, scale)
            found = Range(middle - width, middle + width)
        else:
            continue
        ranges.setdefault(node.input[0], found)
    return ranges


def _thresholds(values: Mapping[str, Any]) -> Range:
    modes = np.array(values["nodes_modes"].strings)
    features = np.array(values["nodes_featureids"].ints)
    inner = modes != b"LEAF"
    thresholds = np.array(values["nodes_values"].floats)
    count = int(features.max(initial=0)) + 1
    low, high = np.full(count, -1.0), np.ones(count)
    for feature in np.unique(features[inner]):
        mine = thresholds[inner & (features == feature)]
        mine = mine[np.isfinite(mine)]
        if mine.size:
            margin = 0.1 * (mine.max() - mine.min()) or max(1.0, 0.1 * abs(mine.max()))
            low[feature], high[feature] = mine.min() - margin, mine.max() + margin
    return Range(low, high)


def _wide(tensors: Tensors) -> Tensors:
    return {name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in tensors.items()}
