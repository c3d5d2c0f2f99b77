"""A real request for a model: what its task takes, else made-up tensors of its types and shapes, always the same."""

import base64
import math
from collections.abc import Collection
from typing import Any

import msgspec
import numpy as np

from mlserve.errors import InvalidRequest
from mlserve.model.synthesis import concrete_shape, synthesize
from mlserve.model.tensors import Array, Tensors, TensorSpec
from mlserve.serve.catalog import ServedModel
from mlserve.wire.signature import Field

__all__ = [
    "example_elements",
    "example_question",
    "example_shapes",
    "example_tensors",
    "example_v2",
    "example_values",
]

# What a page makes on a client's word: more elements than any model's row has in practice.
_MOST_ELEMENTS = 1 << 20
# Ids below this are in every vocabulary.
_SURE_BELOW = 2


def example_question(model: ServedModel) -> dict[str, Any]:
    """The body of a `predict` request that the model answers, as JSON values: a text, an image, or one row of tensors.

    Raises InvalidRequest for a model whose inputs are too large to be made up.
    """
    if model.task is None:
        return {"inputs": {name: example_values(array) for name, array in example_tensors(model).items()}}
    if isinstance(model.task.example, str):
        return {"text": model.task.example}
    return {"image": base64.b64encode(model.task.example).decode()}


def example_v2(model: ServedModel) -> dict[str, Any]:
    """The JSON body of a V2 inference request with one row of tensors. Raises InvalidRequest as `example_question`."""
    tensors = example_tensors(model)
    return {
        "inputs": [
            {
                "name": field.name,
                "datatype": field.datatype,
                "shape": list(tensors[field.name].shape),
                "data": example_values(np.atleast_1d(tensors[field.name])),
            }
            for field in model.signature.inputs.values()
        ]
    }


def example_tensors(model: ServedModel, names: Collection[str] | None = None) -> Tensors:
    """One row for every input, or for those of `names`, always the same. Raises as `example_question` does."""
    fields = [field for field in model.signature.inputs.values() if names is None or field.name in names]
    shapes = example_shapes(model)
    if sum(math.prod(shapes[field.name]) for field in fields) > _MOST_ELEMENTS:
        raise InvalidRequest(f"the inputs of model '{model.signature.name}' are too large for an example")
    return synthesize([_within_vocabulary(field) for field in fields], 1, np.random.default_rng(0))


def example_shapes(model: ServedModel) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of `example_tensors`."""
    return {name: concrete_shape(field.spec, 1, {}) for name, field in model.signature.inputs.items()}


def example_elements(model: ServedModel) -> int:
    """How many elements `example_tensors` has."""
    return sum(map(math.prod, example_shapes(model).values()))


def _within_vocabulary(field: Field) -> TensorSpec:
    if field.dtype.kind in "iu" and field.spec.below is None:
        return msgspec.structs.replace(field.spec, below=_SURE_BELOW)
    return field.spec


def example_values(array: Array) -> Any:
    """`array` as nested lists. Its floats have two decimals, which no type of theirs makes longer."""
    if array.dtype.kind in "OiubSU":
        return array.tolist()
    return (np.round(array.astype(np.float64), 2) + 0.0).tolist()  # no -0.0
