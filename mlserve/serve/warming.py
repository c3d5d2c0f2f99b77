"""What a model shows before anybody asks it: that it takes and gives what its manifest says, and runs at all."""

import time
from collections.abc import Sequence

import numpy as np

from mlserve.engines.engine import Engine
from mlserve.errors import EngineError, RequestError
from mlserve.model.artifact import Manifest
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import TensorSpec

__all__ = ["check_interface", "warm_up"]

# What onnxruntime, OpenVINO and PyTorch say when the memory is not there.
_NO_MEMORY = ("failed to allocate memory", "bad_alloc", "bad allocation", "out of memory", "can't allocate memory")


def warm_up(engine: Engine, inputs: Sequence[TensorSpec], max_rows: int) -> tuple[float, float]:
    """Runs one row and a full batch, twice each; how long the last ones took, in seconds.

    0.0 for a model that cannot run made-up rows: its first real requests will tell. Raises EngineError for one that
    takes more memory than there is.
    """
    rng = np.random.default_rng(0)
    elapsed_s: dict[int, float] = {}
    rows = 1
    try:
        for rows in (1, max_rows, 1, max_rows):
            tensors = synthesize(inputs, rows, rng)
            started_s = time.perf_counter()
            engine.run(tensors)
            elapsed_s[rows] = time.perf_counter() - started_s
    except (EngineError, RequestError, MemoryError, ValueError) as error:
        if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY):
            raise EngineError(
                f"a run of {rows} made-up rows takes more memory than there is ({str(error)[:200]}); serve it with "
                "fewer --max-batch-rows, or where there is more"
            ) from error
        return 0.0, 0.0
    return elapsed_s[1], elapsed_s[max_rows]


def check_interface(engine: Engine, manifest: Manifest) -> None:
    """Raises EngineError where what was loaded takes or gives something else than its manifest says."""
    for said, found, verb in ((manifest.inputs, engine.inputs, "takes"), (manifest.outputs, engine.outputs, "gives")):
        loaded = {spec.name: spec for spec in found}
        for spec in said:
            other = loaded.pop(spec.name, None)
            if other is None or not _agree(spec, other):
                raise EngineError(
                    f"its manifest says that it {verb} {spec}, but the model {verb} {other or 'no such tensor'}; "
                    "optimize the model again"
                )
        if loaded and verb == "takes":
            raise EngineError(f"the model takes {next(iter(loaded.values()))}, of which its manifest says nothing")


def _agree(said: TensorSpec, found: TensorSpec) -> bool:
    """Whether the two may be one tensor; a model often knows less of its shape than its manifest does."""
    if said.dtype != found.dtype:
        return False
    if not found.shape:  # a scalar, or a shape that the file does not tell
        return True
    pairs = zip(said.shape, found.shape, strict=False)
    fixed = all(one == other for one, other in pairs if isinstance(one, int) and isinstance(other, int))
    return len(said.shape) == len(found.shape) and fixed
