"""Where the rows of requests come from: made up from what the model says it takes, or read from real data."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
import numpy as np

from mlserve.bench.payload.sizes import Lengths
from mlserve.errors import DataFileError, UsageError
from mlserve.model.images import image_input, read_images
from mlserve.model.processing import ImageInput
from mlserve.model.rows import Columns, Rows, read_columns, read_rows
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import Array, Tensors, TensorSpec, as_dtype, numpy_dtype, shape_matches

__all__ = ["Batch", "DataRows", "MadeUpRows", "Supply", "read_answers", "read_data", "shaped"]

_BODIES, _BODIES_OF_MANY_LENGTHS = 32, 256


class Batch(NamedTuple):
    """The inputs of one request, and the outputs that it must be answered with; None where they are not known."""

    inputs: Tensors
    outputs: Tensors | None = None


class Supply(Protocol):
    """Rows for requests of any size. `source` says where they come from."""

    source: str

    def batches(self, rows: int) -> Iterator[Batch]:
        """Requests of `rows` rows each, at least one."""
        ...


class MadeUpRows:
    """Rows made up for `inputs`, the same for the same seed.

    `lengths` are for the first open dimension after the rows of every input that is no image, `image_sizes` for the
    open height and width of those that are. Raises UsageError where the model leaves no such size open.
    """

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        seed: int,
        lengths: Lengths | None = None,
        image_sizes: Sequence[tuple[int, int]] = (),
    ) -> None:
        self._inputs, self._seed, self._lengths, self._image_sizes = inputs, seed, lengths, image_sizes
        taken = ", ".join(map(str, inputs))
        if lengths and not any(_open_length(spec) for spec in inputs):
            raise UsageError(f"--lengths: the model leaves no length open, it takes {taken}; leave it out")
        if image_sizes and not any(_open_sides(spec) for spec in inputs):
            raise UsageError(
                f"--image-sizes: the model leaves no size of an image open, it takes {taken}; leave it out"
            )
        self.source = "synthetic rows"
        if lengths:
            self.source += f" of {lengths} tokens"
        if image_sizes:
            self.source += f" of {', '.join(f'{height} x {width}' for height, width in image_sizes)} pixels"

    def batches(self, rows: int) -> Iterator[Batch]:
        rng = np.random.default_rng([self._seed, rows])
        count = _BODIES_OF_MANY_LENGTHS if self._lengths else _BODIES
        quantiles = (rng.permutation(count) + 0.5) / count
        for number in range(count):
            length = self._lengths.at(quantiles[number]) if self._lengths else None
            sides = self._image_sizes[number % len(self._image_sizes)] if self._image_sizes else None
            yield Batch(synthesize([_sized(spec, length, sides) for spec in self._inputs], rows, rng))


class DataRows:
    """Consecutive rows of `data`, from its start; several `data` are the same rows in several forms, used in turn.

    `answers` are the outputs that belong to its rows.
    """

    def __init__(self, data: Sequence[Rows], answers: Columns, path: Path) -> None:
        self._data, self._answers, self._path = data, answers, path
        self.source = data[0].source
        for name, column in answers.items():
            if len(column) != len(data[0]):
                raise DataFileError(
                    f"--expected has {len(column)} rows of '{name}', {path} has {len(data[0])}; give one answer a row"
                )

    def batches(self, rows: int) -> Iterator[Batch]:
        """Raises DataFileError when the file has fewer rows than one request takes."""
        count = len(self._data[0])
        if count < rows:
            raise DataFileError(f"{self._path} has {count} rows, a request takes {rows}; use a smaller --batch")
        for start in range(0, count - rows + 1, rows):
            answers = {name: column[start : start + rows] for name, column in self._answers.items()}
            for data in self._data:
                yield Batch(data.batch(start, start + rows), answers or None)


def read_data(
    path: Path,
    inputs: Sequence[TensorSpec],
    tokenizer: Path | None,
    form: ImageInput | None,
    image_sizes: Sequence[tuple[int, int]],
) -> list[Rows]:
    """The rows of `path`; of a folder of images one set for each of `image_sizes`, where the model leaves them open.

    `form` is how the model takes images, where that is known: else red, green and blue, or gray, as its shape says.
    Raises DataFileError when they do not fit the inputs, UsageError for sizes that cannot be had.
    """
    if not image_sizes:
        return [read_rows(path, inputs, tokenizer, form)]
    if not path.is_dir() or len(inputs) != 1 or not _open_sides(inputs[0]):
        raise UsageError(
            f"--image-sizes: {path} is sent as it is for {', '.join(map(str, inputs))}; sizes are for a folder of "
            "images and a model that leaves their height and width open"
        )
    return [read_images(path, inputs, _of_size(form, inputs, size)) for size in image_sizes]


def read_answers(path: Path, outputs: Sequence[TensorSpec]) -> Columns:
    """The columns of `path` as outputs [rows, ...] of the model, by their names; the only column is the only output.

    Raises DataFileError when it cannot be read, or a column is none of the outputs or of another shape or type.
    """
    columns = read_columns(path)
    if not outputs:  # the server does not tell
        return columns
    specs = {spec.name: spec for spec in outputs}
    if len(columns) == len(specs) == 1:
        columns = dict(zip(specs, columns.values(), strict=True))
    if not all(name in specs for name in columns):
        raise DataFileError(
            f"{path} has the columns {', '.join(columns)}, the model answers with {', '.join(map(str, outputs))}; name "
            "its columns as the outputs"
        )
    return {name: _as_output(column, specs[name], path) for name, column in columns.items()}


def shaped(inputs: Sequence[TensorSpec], shapes: dict[str, tuple[int, ...]]) -> list[TensorSpec]:
    """`inputs` with the sizes that `shapes` give them. Raises ValueError, naming both, where one does not fit."""
    if not shapes:
        return list(inputs)
    missing = [str(spec) for spec in inputs if spec.name not in shapes]
    if missing:
        raise ValueError(f"it has the inputs {', '.join(shapes)}, the model also takes {', '.join(missing)}")
    for spec in inputs:
        shape = shapes[spec.name]
        if len(shape) != len(spec.shape) or any(
            isinstance(dim, int) and dim != size for size, dim in zip(shape, spec.shape, strict=True)
        ):
            raise ValueError(f"its input '{spec.name}' has the shape {list(shape)}, the model takes {spec}")
    return [msgspec.structs.replace(spec, shape=shapes[spec.name]) for spec in inputs]


def _as_output(column: Array, spec: TensorSpec, path: Path) -> Array:
    """`column` as `spec` says; one number a row is also a row of one."""
    if column.ndim == 1 and len(spec.shape) == 2 and spec.shape[1] in (1, "dim1"):
        column = column[:, None]
    fits = shape_matches(column.shape, ("rows", *spec.shape[1:]))
    if fits and (spec.dtype == "object") == (column.dtype.kind == "O"):
        converted = as_dtype(column, spec.dtype)
        if spec.dtype == "object" or numpy_dtype(spec.dtype).kind in "fV" or np.array_equal(converted, column):
            return converted
    raise DataFileError(
        f"{path}: '{spec.name}' has the shape {list(column.shape)} and the type {column.dtype}, the model answers with "
        f"{spec}"
    )


def _is_image(spec: TensorSpec) -> bool:
    return len(spec.shape) == 4 and (numpy_dtype(spec.dtype).kind == "f" or spec.dtype == "uint8")


def _open_length(spec: TensorSpec) -> int:
    """Where the open length is, 0 for none."""
    places = range(1, len(spec.shape)) if not _is_image(spec) else ()
    return next((place for place in places if isinstance(spec.shape[place], str)), 0)


def _open_sides(spec: TensorSpec) -> tuple[int, ...]:
    """Where the open height and width are, both or none."""
    if not _is_image(spec):
        return ()
    sides = (1, 2) if spec.shape[3] in (1, 3) else (2, 3)
    return sides if all(isinstance(spec.shape[side], str) for side in sides) else ()


def _sized(spec: TensorSpec, length: int | None, sides: tuple[int, int] | None) -> TensorSpec:
    """`spec` with an open length of `length` and open sides of `sides`. An image with open channels gets three."""
    shape = list(spec.shape)
    if length is not None and _open_length(spec):
        shape[_open_length(spec)] = length
    if sides is not None:
        for place, side in zip(_open_sides(spec), sides, strict=False):
            shape[place] = side
    if _is_image(spec) and isinstance(shape[1], str) and spec.shape[3] not in (1, 3):
        shape[1] = 3
    return msgspec.structs.replace(spec, shape=tuple(shape))


def _of_size(form: ImageInput | None, inputs: Sequence[TensorSpec], size: tuple[int, int]) -> ImageInput | None:
    if form is None:
        return image_input(inputs, size)
    return msgspec.structs.replace(form, height=size[0], width=size[1], resize=None)
