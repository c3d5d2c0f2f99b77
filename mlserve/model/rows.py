"""Rows of real data, read from a file, as the inputs of a model.

    npz, npy            arrays [rows, ...] by input name
    csv, parquet        one column an input, or all number columns together as the one input [rows, columns]
    jsonl               one object a line, one key an input
    txt                 one text a line; also a column `text` of the table formats: needs the model's tokenizer
    a folder            images; see mlserve.model.images

A column named label, labels, target or y that is no input holds the true answers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np

from mlserve.errors import DataFileError
from mlserve.model.artifact import sha256_of
from mlserve.model.images import read_images
from mlserve.model.processing import ImageInput
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import Array, Tensors, TensorSpec, as_dtype, shape_matches
from mlserve.model.tokens import TOKENIZED, TOKENIZER_FILE, open_tokenizer

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "LABEL_NAMES",
    "TEXT_NAMES",
    "TOKENIZER_FILE",
    "ArrayRows",
    "Columns",
    "Rows",
    "SyntheticRows",
    "TextRows",
    "as_matrix",
    "fit_rows",
    "read_columns",
    "read_rows",
]

LABEL_NAMES = ("label", "labels", "target", "y")
TEXT_NAMES = ("text", "sentence")

Columns = dict[str, Array]


class Rows(Protocol):
    """Rows that a model can be fed. `labels` [rows] are the true answers, where the file has them."""

    source: str
    labels: Array | None

    def __len__(self) -> int: ...

    def batch(self, start: int, stop: int) -> Tensors:
        """Rows `start` to `stop` as named inputs `[stop - start, ...]`."""
        ...

    def take(self, indices: Sequence[int]) -> "Rows":
        """Only these rows, in this order."""
        ...


class ArrayRows:
    """Rows held as one array an input."""

    def __init__(self, columns: Columns, source: str, labels: Array | None = None) -> None:
        self.columns, self.source, self.labels = columns, source, labels

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def batch(self, start: int, stop: int) -> Tensors:
        return {name: column[start:stop] for name, column in self.columns.items()}

    def take(self, indices: Sequence[int]) -> "ArrayRows":
        chosen = list(indices)
        labels = None if self.labels is None else self.labels[chosen]
        return ArrayRows({name: column[chosen] for name, column in self.columns.items()}, self.source, labels)


class TextRows:
    """Texts, tokenized a batch at a time and padded to the longest of the batch, as a server would see them."""

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: Path,
        specs: Sequence[TensorSpec],
        source: str,
        labels: Array | None = None,
    ) -> None:
        self.texts, self.source, self.labels = texts, source, labels
        self._specs, self._path, self._tokenizer = specs, tokenizer, open_tokenizer(tokenizer)

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, start: int, stop: int) -> Tensors:
        encodings = self._tokenizer.encode_batch(list(self.texts[start:stop]))
        return {
            spec.name: np.array([getattr(encoding, TOKENIZED[spec.name]) for encoding in encodings], spec.dtype)
            for spec in self._specs
        }

    def take(self, indices: Sequence[int]) -> "TextRows":
        labels = None if self.labels is None else self.labels[list(indices)]
        return TextRows([self.texts[index] for index in indices], self._path, self._specs, self.source, labels)


class SyntheticRows:
    """Made-up rows, the same for the same seed."""

    labels: Array | None = None

    def __init__(
        self, specs: Sequence[TensorSpec], rows: int, seed: int = 0, *, chosen: Sequence[int] | None = None
    ) -> None:
        self.source = f"synthetic rows (seed {seed})"
        self._made = specs, rows, seed
        self._chosen = np.arange(rows) if chosen is None else np.asarray(chosen)
        fixed = {spec.name for spec in specs if not (spec.shape and isinstance(spec.shape[0], str))}
        made_up = synthesize(specs, rows, np.random.default_rng(seed))
        self._whole = {name: array for name, array in made_up.items() if name in fixed}
        self._by_row = {name: array[self._chosen] for name, array in made_up.items() if name not in fixed}

    def __len__(self) -> int:
        return len(self._chosen)

    def batch(self, start: int, stop: int) -> Tensors:
        return self._whole | {name: array[start:stop] for name, array in self._by_row.items()}

    def take(self, indices: Sequence[int]) -> "SyntheticRows":
        return SyntheticRows(*self._made, chosen=[int(self._chosen[index]) for index in indices])


def read_rows(
    path: Path, specs: Sequence[TensorSpec], tokenizer: Path | None = None, images: ImageInput | None = None
) -> Rows:
    """The rows of `path` as inputs for `specs`.

    Texts are tokenized with the model's own `tokenizer` file, and images brought into the form `images` where the model
    has one.

    Raises DataFileError when the file cannot be read, or its columns do not fit the inputs.
    """
    if path.is_dir():
        return read_images(path, specs, images)
    return fit_rows(read_columns(path), specs, source=_label_source(path), tokenizer=tokenizer)


def read_columns(path: Path) -> Columns:
    """Every column of a data file as an array [rows, ...]; texts as an object array.

    Raises DataFileError for an unknown ending, a file that cannot be read, no rows, or columns of different length.
    """
    if path.is_dir():
        raise DataFileError(f"{path} is a folder, which holds images; this model takes a table: {', '.join(_READERS)}")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataFileError(f"{path} cannot be read as data; use one of {', '.join(_READERS)}, or a folder of images")
    try:
        columns = reader(path)
    except OSError as error:
        raise DataFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file fails in as many ways as there are parsers and decompressors
        raise DataFileError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    lengths = {name: len(column) if column.ndim else 0 for name, column in columns.items()}
    if not lengths or not all(lengths.values()):
        raise DataFileError(f"{path} holds no rows")
    if len(set(lengths.values())) > 1:
        raise DataFileError(f"{path}: columns have different numbers of rows: {lengths}")
    return columns


def fit_rows(columns: Columns, specs: Sequence[TensorSpec], source: str, tokenizer: Path | None = None) -> Rows:
    """`columns` arranged as inputs for `specs`, converted to their types without losing anything.

    Raises DataFileError naming both sides when they do not fit.
    """
    names = [spec.name for spec in specs]
    label_name = next((name for name in LABEL_NAMES if name in columns and name not in names), None)
    labels = columns[label_name] if label_name else None
    features = {name: column for name, column in columns.items() if name != label_name}
    text = next((features[name] for name in TEXT_NAMES if name in features and name not in names), None)
    if text is not None and not all(name in features for name in names):
        if tokenizer is None or not tokenizer.is_file():
            raise DataFileError(f"{source} holds text, but the model came without a tokenizer; give its inputs {names}")
        untold = [name for name in names if name not in TOKENIZED]
        if untold:
            raise DataFileError(f"{source} holds text, but a tokenizer gives no {', '.join(untold)}; give them too")
        return TextRows([str(value) for value in text], tokenizer, specs, source, labels)
    arranged = _arrange(features, specs, source)
    return ArrayRows({spec.name: _convert(arranged[spec.name], spec, source) for spec in specs}, source, labels)


def _arrange(features: Columns, specs: Sequence[TensorSpec], source: str) -> Columns:
    if all(spec.name in features for spec in specs):
        return features
    if len(specs) == 1:
        (spec,) = specs
        if len(features) == 1:
            (column,) = features.values()
            narrow = column.ndim == 1 and spec.shape[1:] == (1,)  # one number a row is a matrix too
            return {spec.name: column[:, None] if narrow else column}
        matrix = as_matrix(features)
        if matrix is not None and shape_matches(matrix.shape, ("rows", *spec.shape[1:])):
            return {spec.name: matrix}
    inputs = ", ".join(str(spec) for spec in specs)
    raise DataFileError(f"{source} has the columns {', '.join(features)}; the model takes {inputs}")


def as_matrix(features: Columns) -> Array | None:
    """All columns side by side [rows, columns] when each is one number a row; else None."""
    if features and all(column.ndim == 1 and column.dtype.kind in "iufb" for column in features.values()):
        return np.column_stack(list(features.values()))
    return None


def _convert(array: Array, spec: TensorSpec, source: str) -> Array:
    if not shape_matches(array.shape, ("rows", *spec.shape[1:])):
        raise DataFileError(
            f"{source}: rows for input '{spec.name}' have shape {list(array.shape[1:])}, "
            f"the model takes {spec.wire_shape[1:]}"
        )
    if spec.dtype == "object":
        return as_dtype(array, "object")
    if array.dtype.kind not in "biuf":
        raise DataFileError(f"{source}: input '{spec.name}' is {spec.dtype}, the file has text or objects for it")
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit is told below
        converted = as_dtype(array, spec.dtype)
    fits = np.isfinite(array) == np.isfinite(converted) if spec.dtype.startswith("float") else converted == array
    if not np.all(fits):
        raise DataFileError(f"{source}: values of input '{spec.name}' do not fit {spec.dtype}")
    return converted


def _label_source(path: Path) -> str:
    return f"{path.name} (sha256 {sha256_of(path)[:12]})"


def _read_npz(path: Path) -> Columns:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read_npy(path: Path) -> Columns:
    with path.open("rb") as file:
        return {"input": np.lib.format.read_array(file, allow_pickle=False)}


def _read_csv(path: Path) -> Columns:
    import pandas

    return _table(pandas.read_csv(path))


def _read_parquet(path: Path) -> Columns:
    import pandas

    return _table(pandas.read_parquet(path))


def _read_jsonl(path: Path) -> Columns:
    lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    rows = [msgspec.json.decode(line, type=dict[str, Any]) for line in lines]
    names = rows[0].keys() if rows else []
    for number, row in enumerate(rows, 1):
        if row.keys() != names:
            raise ValueError(f"line {number} has the keys {list(row)}, line 1 has {list(names)}")
    return {name: _stack([row[name] for row in rows], name) for name in names}


def _read_txt(path: Path) -> Columns:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return {"text": np.array([line for line in lines if line and not line.startswith("#")], object)}


def _table(frame: "DataFrame") -> Columns:
    for name in frame.select_dtypes(exclude=["number", "bool"]):
        if frame[name].isna().any():
            raise ValueError(f"column {name!r} has an empty cell in row {int(frame[name].isna().argmax()) + 1}")
    return {str(name): _stack(frame[name].tolist(), str(name)) for name in frame.columns}


def _stack(values: list[Any], name: str) -> Array:
    try:
        array = np.array(values)
    except ValueError as error:
        raise ValueError(f"rows of column {name!r} have different shapes; pad them to one") from error
    return array.astype(object) if array.dtype.kind in "US" else array


_READERS = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
    ".txt": _read_txt,
}
