"""What a model shows before anybody asks it: that it takes and gives what its manifest says, and runs at all."""

import time
from collections.abc import Sequence
from math import inf

import numpy as np

from mlserve.engines.engine import Engine
from mlserve.errors import EngineError, RequestError
from mlserve.model.artifact import Manifest
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import TensorSpec

__all__ = ["check_interface", "warm_up"]

_LEAST_TURNS, _MOST_TURNS = 2, 6
# A load may be so much longer for a better idea of how long runs take.
_LITTLE_S = 0.1
# After each run a rest of so many times its length, in which whoever had to wait for it catches up: on busy cores a
# dozen runs one after the other make everybody's queue a dozen runs longer. At most so long, or a slow model would take
# minutes to load.
_RESTS, _LONGEST_REST_S = 4.0, 0.5

# What onnxruntime, OpenVINO and PyTorch say when the memory is not there.
_NO_MEMORY = ("failed to allocate memory", "bad_alloc", "bad allocation", "out of memory", "can't allocate memory")


def warm_up(
    engine: Engine, inputs: Sequence[TensorSpec], max_rows: int, *, gently: bool = False
) -> tuple[float, float]:
    """Runs one row and a full batch, in turns; how long the quickest of each took after the first, in seconds.

    Twice at least, and up to six times where that takes little: while another version serves on the same cores, one
    run alone says little. `gently`: with rests between runs, for whoever is served on these cores meanwhile.

    0.0 for a model that cannot run made-up rows: its first real requests will tell. Raises EngineError for one that
    takes more memory than there is.
    """
    rng = np.random.default_rng(0)
    quickest_s: dict[int, float] = {}
    rows, ran_s = 1, 0.0
    try:
        for turn in range(_MOST_TURNS):
            if turn >= _LEAST_TURNS and ran_s > _LITTLE_S:
                break
            for rows in (1, max_rows):
                tensors = synthesize(inputs, rows, rng)
                started_s = time.perf_counter()
                engine.run(tensors)
                took_s = time.perf_counter() - started_s
                ran_s += took_s
                if turn:  # the first run of an engine makes what the others find
                    quickest_s[rows] = min(took_s, quickest_s.get(rows, inf))
                if gently:
                    time.sleep(min(_RESTS * took_s, _LONGEST_REST_S))
    except (EngineError, RequestError, MemoryError, ValueError) as error:
        if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY):
            raise EngineError(
                f"a run of {rows} made-up rows takes more memory than there is ({str(error)[:200]}); serve it with "
                "fewer --max-batch-rows, or where there is more"
            ) from error
        return 0.0, 0.0
    return quickest_s[1], quickest_s[max_rows]


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
