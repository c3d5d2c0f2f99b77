"""V2's classification extension: of an output only its largest elements, as texts `value:index[:label]`."""

from collections.abc import Mapping, Sequence

import numpy as np

from mlserve.model.tensors import Array, Tensors, TensorSpec
from mlserve.wire.signature import Signature

__all__ = ["classify"]


def classify(
    signature: Signature, classes: Mapping[str, int], outputs: Tensors, labels: Sequence[str]
) -> tuple[Signature, Tensors]:
    """`outputs` with those that `classes` names as texts, and the signature that describes them.

    An output [rows, ...] becomes texts [rows, k], the best first, k the number wanted or all there are; for a model
    without rows, [k]. The index counts a row's elements as they lie. `labels` are for outputs of as many elements a
    row.
    """
    answered = dict(outputs)
    specs = []
    for name, most in classes.items():
        array = outputs[name]
        texts = _texts(array.reshape(len(array) if signature.together else 1, -1), most, labels)
        answered[name] = texts if signature.together else texts[0]
        specs.append(TensorSpec(name, "object", answered[name].shape))
    return signature.with_outputs(specs), answered


def _texts(rows: Array, most: int, labels: Sequence[str]) -> Array:
    """The largest `most` elements of each row [rows, elements] as texts [rows, most]."""
    order = _largest_first(rows)[:, :most]
    endings = [f":{index}" for index in range(rows.shape[1])]
    if len(labels) == rows.shape[1]:
        endings = [f"{ending}:{label}" for ending, label in zip(endings, labels, strict=True)]
    texts = np.empty(order.shape, object)
    for row, indices in enumerate(order):
        # numpy's scalars print the fewest digits that mean the same value.
        texts[row] = [f"{rows[row, index]!s}{endings[index]}" for index in indices]
    return texts


def _largest_first(rows: Array) -> Array:
    """The indices of each row's elements, the largest first.

    Of equal ones the first comes first; NaN counts as the least.
    """
    keys = rows if rows.dtype.kind in "iu" else np.where(np.isnan(rows), -np.inf, rows.astype(np.float64))
    # Sorted backwards and turned around, so that equal elements keep their order and no sign is changed (which an
    # unsigned or the least integer would not survive).
    backwards = np.argsort(keys[:, ::-1], axis=1, kind="stable")[:, ::-1]
    order: Array = rows.shape[1] - 1 - backwards
    return order
