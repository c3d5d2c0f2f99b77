"""Whether rows may run together: the law that row i of the output comes from row i of the input, tried out."""

from collections.abc import Sequence

import numpy as np

from mlserve.engines.engine import Engine
from mlserve.errors import EngineError, RequestError
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import Array, TensorSpec, batchable

__all__ = ["rows_independent"]

# The same rows in another batch differ by rounding, and in an int8 model by the scale that their batch-mates shift.
_SAME_WITHIN = 0.1


def rows_independent(engine: Engine, inputs: Sequence[TensorSpec]) -> bool:
    """Whether made-up rows get the same answers together as alone.

    A model without a dynamic row dimension has no rows to run together. One that cannot run made-up rows is taken at
    its word, the dynamic row dimension.
    """
    if not batchable([*inputs, *engine.outputs]):
        return False
    rows = synthesize(inputs, 3, np.random.default_rng(0))
    try:
        together = engine.run(rows)
        alone = [engine.run({name: array[row : row + 1] for name, array in rows.items()}) for row in range(3)]
    except (EngineError, RequestError):
        return True
    return all(
        len(array) == 3 and all(len(one[name]) == 1 for one in alone) and _same(array, [one[name] for one in alone])
        for name, array in together.items()
    )


def _same(together: Array, alone: list[Array]) -> bool:
    joined = np.concatenate(alone)
    if joined.shape != together.shape:
        return False
    if together.dtype.kind != "f":
        return True  # labels and texts follow from scores; near a tie they may flip where the scores agree
    difference = np.linalg.norm((together - joined).astype(np.float64))
    return bool(difference <= _SAME_WITHIN * np.linalg.norm(joined.astype(np.float64)) + 1e-6)
