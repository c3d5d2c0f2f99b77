"""What an engine is fed: the arrays of a request, in the order of the model's inputs, of the types and shapes it takes.

onnxruntime checks this itself. OpenVINO converts another type in silence, and an input that is missing keeps the
values of the run before: somebody else's.
"""

from collections.abc import Sequence

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import Array, Tensors, TensorSpec, shape_matches

__all__ = ["arrays_in_order"]


def arrays_in_order(inputs: Tensors, specs: Sequence[TensorSpec]) -> list[Array]:
    """The arrays for `specs`, in their order.

    Raises InvalidRequest when one is missing or more than these are given, for another type or shape than the spec's,
    and for integers that are not below the spec's bound (a token that the vocabulary lacks).
    """
    if len(inputs) != len(specs) or any(spec.name not in inputs for spec in specs):
        raise InvalidRequest(
            f"the model takes {', '.join(spec.name for spec in specs)}, not {', '.join(inputs) or 'nothing'}"
        )
    arrays = [inputs[spec.name] for spec in specs]
    for array, spec in zip(arrays, specs, strict=True):
        if array.dtype.name != spec.dtype or not shape_matches(array.shape, spec.shape):
            found = f"{array.dtype.name}:{','.join(map(str, array.shape))}"
            raise InvalidRequest(f"the model refused these values: it takes {spec}, not {found}")
        if spec.below is not None and (array.max() >= spec.below or array.min() < -spec.below):
            raise InvalidRequest(f"the model refused these values: '{spec.name}' must be below {spec.below}")
    return arrays
