"""Whether a converted model answers as its original does, where the two do not compute in the same type.

Trainers of tables compute in float64, ONNX in float32. A value that float32 rounds across the threshold of a tree turns
the row's answer into another one, and no better conversion would mend that. So a row that differs is held against what
the original itself answers when that row moves by one step of float32: a difference within this is rounding, one beyond
it is a wrong conversion. A wrong conversion can still hide on thresholds (`<` for `<=`), but not on few rows: what
rounding explains must stay rare.
"""

from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from mlserve.engines.engine import Engine
from mlserve.errors import EngineError, InvalidRequest, ModelFileError, Refused
from mlserve.model.tensors import Array, Tensors, as_dtype
from mlserve.optimize.evaluation.parity import TOLERANCE, largest_difference
from mlserve.optimize.importers.shapes import Run

__all__ = ["Agreement", "check_agreement", "first_line"]

Mask = npt.NDArray[np.bool_]

_ROWS_EXPLAINED = 64
_MOST_ROUNDED_SHARE = 0.02
_FEATURES_MOVED_ALONE = 512
_SIZE_FLOOR = 1e-3  # as in evaluation.parity: an output that is all but zero has no size to compare with


class Agreement(msgspec.Struct, frozen=True):
    """`rows` that were compared, and those of them on which rounding of the input alone changes the answer.

    `relative` is the largest difference of all others, relative to the output's size.
    """

    rows: int
    rounded_rows: int
    relative: float

    def __str__(self) -> str:
        text = f"agrees with the original to {self.relative:.1e} of each output's size on {self.rows} rows"
        return f"{text} ({self.rounded_rows} more differ by rounding)" if self.rounded_rows else text

    @property
    def warning(self) -> str:
        """What the user must know of rounding; empty where it changes nothing."""
        if not self.rounded_rows:
            return ""
        total = self.rows + self.rounded_rows
        return (
            f"it computes in float32: on {self.rounded_rows} of {total} rows ({self.rounded_rows / total:.1%}) it "
            "answers as the original does for a value one rounding step away"
        )


def check_agreement(original: Run, engine: Engine, trials: Iterable[Tensors]) -> Agreement:
    """Holds `engine` against `original` on each of `trials`, whose floats are as precise as the original takes them.

    Raises Refused, naming the worst output, when they differ beyond rounding, ModelFileError when the original does not
    run.
    """
    rows, rounded, relative = 0, 0, 0.0
    for inputs in trials:
        expected, found = _answers(original, engine, inputs)
        whole = largest_difference(expected, found)
        count = len(next(iter(inputs.values())))
        if whole.acceptable:
            rows, relative = rows + count, max(relative, whole.relative)
            continue
        wrong = _differing_rows(expected, found)
        chosen = np.flatnonzero(wrong)[:_ROWS_EXPLAINED] if wrong is not None else np.array([], int)
        if not chosen.size or not all(_is_rounding(original, inputs, found, row) for row in chosen):
            raise Refused(f"nothing was published: the ONNX file does not give the model's answers: {whole}")
        assert wrong is not None
        kept = largest_difference(_rows(expected, ~wrong), _rows(found, ~wrong))
        rows, rounded, relative = (
            rows + count - int(wrong.sum()),
            rounded + int(wrong.sum()),
            max(relative, kept.relative),
        )
    if rounded > max(1, _MOST_ROUNDED_SHARE * (rows + rounded)):
        raise Refused(
            f"nothing was published: the ONNX file computes in float32, and {rounded} of {rows + rounded} rows come "
            f"out otherwise than in the model; rounding explains each, but at most {_MOST_ROUNDED_SHARE:.0%} may"
        )
    return Agreement(rows, rounded, relative)


def first_line(error: Exception) -> str:
    """What a library's error says first, with its kind."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no reason given'}"


def _answers(original: Run, engine: Engine, inputs: Tensors) -> tuple[Tensors, Tensors]:
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
    try:
        expected = original(inputs)
    except Exception as error:  # a trainer's library may raise anything
        raise ModelFileError(f"the model itself does not run on {shapes}: {first_line(error)}") from error
    narrow = {spec.name: as_dtype(inputs[spec.name], spec.dtype) for spec in engine.inputs}
    try:
        return expected, engine.run(narrow)
    except (EngineError, InvalidRequest) as error:
        raise Refused(f"nothing was published: onnxruntime does not run the ONNX file on {shapes}: {error}") from error


def _differing_rows(expected: Tensors, found: Tensors) -> Mask | None:
    """Of each row, whether an output of it differs; None when the outputs are not even of the same shapes."""
    wrong: list[Mask] = []
    for name, array in expected.items():
        if name not in found or found[name].shape != array.shape:
            return None
        beyond = _beyond(array, found[name], TOLERANCE * _size(array)).reshape(len(array), -1)
        wrong.append(np.asarray(beyond.any(axis=1)))
    return np.asarray(np.logical_or.reduce(wrong))


def _beyond(expected: Array, found: Array, allowed: Any) -> Mask:
    """Where the two differ by more than `allowed`."""
    if expected.dtype.kind != "f":
        return np.asarray(expected != found)
    one, other = expected.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore"):
        close = np.abs(one - other) <= allowed
    return np.asarray(~(close | (one == other) | (np.isnan(one) & np.isnan(other))))


def _size(array: Array) -> float:
    finite = np.abs(array.astype(np.float64))[np.isfinite(array)]
    return max(float(finite.max()) if finite.size else 0.0, _SIZE_FLOOR)


def _rows(tensors: Tensors, chosen: Mask) -> Tensors:
    return {name: array[chosen] for name, array in tensors.items()}


def _is_rounding(original: Run, inputs: Tensors, found: Tensors, row: int) -> bool:
    """Whether the original's answers to `row` and to its neighbours one step of float32 away reach what was found."""
    near = original(_neighbours(inputs, row))
    tied = False
    for name, array in near.items():  # numbers first: two classes that tie may come out either way
        if array.dtype.kind == "f":
            one = array.astype(np.float64)
            moves = np.abs(one - one[:1])
            moves[~np.isfinite(moves)] = np.inf
            # Every input rounds on its own: at worst all their effects add up.
            allowed = moves.sum(axis=0) + TOLERANCE * _size(array)
            if _beyond(array[:1], found[name][row : row + 1], allowed).any():
                return False
            if one.ndim == 2 and one.shape[1] > 1:
                second, first = np.sort(one[0])[-2:]
                tied |= bool(first - second <= 2 * np.max(allowed))
    labels = [(array, found[name][row]) for name, array in near.items() if array.dtype.kind != "f"]
    return tied or all(any(np.array_equal(answer, label) for answer in array) for array, label in labels)


def _neighbours(inputs: Tensors, row: int) -> Tensors:
    """`row` as it is, rounded to float32, and with each number one step of float32 up and down."""
    numbers = {name: array[row] for name, array in inputs.items() if array.dtype.kind == "f"}
    features = [(name, index) for name, values in numbers.items() for index in np.ndindex(values.shape)]
    steps: list[dict[tuple[str, tuple[int, ...]], float]] = [{}]
    ways = [_step(numbers, features, direction) for direction in (0.0, np.inf, -np.inf)]
    steps += ways
    if len(features) <= _FEATURES_MOVED_ALONE:
        steps += [{feature: way[feature]} for feature in features for way in ways]
    near = {name: np.repeat(array[row : row + 1], len(steps), axis=0) for name, array in inputs.items()}
    for position, moved in enumerate(steps):
        for (name, index), value in moved.items():
            near[name][(position, *index)] = value
    return near


def _step(
    numbers: Tensors, features: list[tuple[str, tuple[int, ...]]], direction: float
) -> dict[tuple[str, tuple[int, ...]], float]:
    """Every feature in float32, moved one step towards `direction` unless that is 0."""
    moved = {}
    for name, index in features:
        with np.errstate(over="ignore"):
            value = np.float32(numbers[name][index])
            moved[name, index] = float(np.nextafter(value, np.float32(direction)) if direction else value)
    return moved
