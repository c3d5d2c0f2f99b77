"""Two models' answers to the same rows, and the truth they are both held against."""

import msgspec
import numpy as np
import numpy.typing as npt

from mlserve.errors import DataFileError, Refused
from mlserve.model.tensors import Array
from mlserve.stats import Floats

__all__ = ["Comparison", "Numbers"]

Numbers = npt.NDArray[np.int64]

_NAMED = 5


class Comparison(msgspec.Struct, frozen=True):
    """One output of a variant, `found` [rows, ...], and of the reference, `expected`, for the rows of `source`.

    `labels` [rows, ...] are the true answers; without them the reference's answers are the truth. `names` are those of
    the classes, by class number. Everything below raises DataFileError where output or labels are of another kind,
    and Refused where `found` is not finite and the reference is.
    """

    found: Array
    expected: Array
    source: str
    labels: Array | None = None
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.found)

    @property
    def width(self) -> int:
        """How many values a row of the output has."""
        return int(np.prod(self.expected.shape[1:]))

    @property
    def numeric(self) -> bool:
        """Whether the output is of floats, so scores, embeddings or quantities and not labels or texts."""
        return self.expected.dtype.kind == "f"

    def without_labels(self) -> "Comparison":
        """The same answers, held against the reference's."""
        return msgspec.structs.replace(self, labels=None)

    def classes(self) -> tuple[Numbers, Numbers, Numbers]:
        """The class of every row [rows]: the variant's, the reference's, the true one."""
        if not self.numeric:
            return self._coded()
        found, expected, truth = self.scores()
        return found.argmax(1), expected.argmax(1), truth

    def scores(self) -> tuple[Floats, Floats, Numbers]:
        """Scores of the classes [rows, classes] of both, and the true class [rows].

        A single output a row is that of two classes: a probability when the reference's are all within 0 and 1, else
        a logit.
        """
        if not self.numeric or np.prod(self.expected.shape[2:]) != 1:
            raise self._unfit("one score a class [rows, classes]")
        self.vectors()  # for its check that values are finite
        found, expected = (_lowest_where_missing(array) for array in (self.found, self.expected))
        if expected.shape[1] == 1:
            cut = 0.5 if expected.min() >= 0 and expected.max() <= 1 else 0.0
            found, expected = (np.column_stack([cut - array, array - cut]) for array in (found, expected))
        if self.labels is None:
            return found, expected, expected.argmax(1)
        return found, expected, self._class_numbers(expected.shape[1])

    def quantities(self) -> tuple[Floats, Floats, Floats]:
        """Numbers [rows, width] of both, and the true ones."""
        if self.expected.dtype.kind not in "fiub":
            raise self._unfit("numbers")
        found, expected = self.vectors()
        if self.labels is None:
            return found, expected, expected
        if self.labels.dtype.kind not in "fiub" or self.labels.size != expected.size:
            raise DataFileError(
                f"{self.source}: labels are {self.labels.dtype} {list(self.labels.shape)}, the model gives "
                f"{self.width} numbers for each of {len(self)} rows; give as many numbers, or another --metric"
            )
        truth = _flat(self.labels)
        if not np.isfinite(truth).all():
            raise DataFileError(f"{self.source}: some labels are not finite; leave their rows out")
        return found, expected, truth

    def vectors(self) -> tuple[Floats, Floats]:
        """Both as one line of numbers a row; where the reference is not finite (a masked score), both count as zero."""
        one, other = _flat(self.found), _flat(self.expected)
        finite = np.isfinite(other)
        if not finite.any():
            raise DataFileError(
                f"the model answers {self.source} without one finite number; give rows it is made for with --data"
            )
        if not np.isfinite(one[finite]).all():
            raise Refused(
                "nothing was published: the variant gives values that are not finite where the model gives numbers"
            )
        return np.where(finite, one, 0.0), np.where(finite, other, 0.0)

    def _coded(self) -> tuple[Numbers, Numbers, Numbers]:
        """Answers that are labels already, as numbers that are equal where the labels are."""
        if self.width != 1:
            raise self._unfit("one class a row")
        sides = [self.found.ravel(), self.expected.ravel(), self._row_labels()]
        if any(side.dtype.kind in "OUS" for side in sides):
            sides = [np.array([str(value) for value in side.tolist()]) for side in sides]
        if not np.isin(sides[2], sides[1]).any():
            raise DataFileError(
                f"{self.source}: no label is one that the model gives; labels are {_some(sides[2])}, "
                f"the model answers {_some(sides[1])}"
            )
        _, codes = np.unique(np.concatenate(sides), return_inverse=True)
        found, expected, truth = np.split(codes.astype(np.int64), 3)
        return found, expected, truth

    def _row_labels(self) -> Array:
        """The true label of each row [rows]."""
        if self.labels is None:
            return self.expected.ravel()
        if self.labels.shape not in ((len(self),), (len(self), 1)):
            raise DataFileError(
                f"{self.source}: labels have shape {list(self.labels.shape)}, the model gives {len(self)} answers; "
                "give one label each"
            )
        return self.labels.ravel()

    def _class_numbers(self, classes: int) -> Numbers:
        """Labels as class numbers; a label may also be the name of its class."""
        labels = self._row_labels()
        if labels.dtype.kind == "f" and np.array_equal(labels, np.floor(labels)):
            labels = labels.astype(np.int64)
        number_of = {name: number for number, name in enumerate(self.names)}
        texts = [str(label) for label in labels.tolist()]
        if all(text in number_of for text in texts):
            return np.array([number_of[text] for text in texts], np.int64)
        if labels.dtype.kind not in "iub" or labels.min() < 0 or labels.max() >= classes:
            named = f", or names such as {_some(np.array(self.names))}" if self.names else ""
            outputs = "one output" if self.width == 1 else f"{classes} outputs"
            raise DataFileError(
                f"{self.source}: labels must be class numbers from 0 to {classes - 1}{named}, as the model has "
                f"{outputs} a row; they are {_some(labels)}"
            )
        return labels.astype(np.int64)

    def _unfit(self, wanted: str) -> DataFileError:
        return DataFileError(
            f"this metric compares {wanted}; the output judged is {self.expected.dtype} "
            f"{['rows', *self.expected.shape[1:]]}; choose another --metric"
        )


def _flat(array: Array) -> Floats:
    return array.reshape(len(array), -1).astype(np.float64)


def _lowest_where_missing(array: Array) -> Floats:
    flat = _flat(array)
    return np.where(np.isnan(flat), -np.inf, flat)


def _some(values: Array) -> str:
    found = [str(value) for value in np.unique(values).tolist()]
    return ", ".join(found[:_NAMED]) + (", ..." if len(found) > _NAMED else "")
