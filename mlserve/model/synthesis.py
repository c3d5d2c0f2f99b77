"""Made-up inputs for a model whose real ones are not at hand: right shapes, plausible values, seeded."""

from collections.abc import Sequence

import numpy as np

from mlserve.model.tensors import Array, Tensors, TensorSpec, numpy_dtype

__all__ = ["SEQUENCE_LENGTH", "concrete_shape", "synthesize"]

SEQUENCE_LENGTH = 16
_IMAGE_SIDE = 224
# Small enough for any vocabulary seen in practice, large enough that rows differ.
_UNKNOWN_BOUND = 100


def synthesize(
    specs: Sequence[TensorSpec], rows: int, rng: np.random.Generator, sizes: dict[str, int] | None = None
) -> Tensors:
    """Inputs with `rows` rows for `specs`; `sizes` gives the size of named dynamic dimensions beyond the rows.

    Floats are standard normal. Integers lie in [0, below); masks are ones and token types zeros, as a text of full
    length has them. A dynamic dimension without a size is 16 long, or 224 in an image `[rows, channels, h, w]`.
    """
    return {spec.name: _values(spec, concrete_shape(spec, rows, sizes or {}), rng) for spec in specs}


def concrete_shape(spec: TensorSpec, rows: int, sizes: dict[str, int]) -> tuple[int, ...]:
    """`spec.shape` with `rows` for a dynamic first dimension and a size for every other dynamic one."""
    image = len(spec.shape) == 4 and spec.dtype.startswith("float")
    shape = []
    for position, dim in enumerate(spec.shape):
        if isinstance(dim, int):
            shape.append(dim)
        elif position == 0:
            shape.append(rows)
        else:
            shape.append(sizes.get(dim, _IMAGE_SIDE if image and position >= 2 else SEQUENCE_LENGTH))
    return tuple(shape)


def _values(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if spec.dtype == "object":
        return np.array([f"text {number}" for number in rng.integers(1000, size=shape).ravel()], object).reshape(shape)
    if spec.dtype == "bool":
        return rng.integers(2, size=shape).astype(bool)
    if spec.dtype.startswith(("float", "bfloat")):
        return rng.standard_normal(shape).astype(numpy_dtype(spec.dtype))
    if "mask" in spec.name:
        return np.ones(shape, spec.dtype)
    if "token_type" in spec.name or "segment" in spec.name:
        return np.zeros(shape, spec.dtype)
    bound = min(spec.below or _UNKNOWN_BOUND, int(np.iinfo(spec.dtype).max))
    return rng.integers(bound, size=shape).astype(spec.dtype)
