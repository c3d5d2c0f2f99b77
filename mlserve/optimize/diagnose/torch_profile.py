"""Where the time of a torch model goes, by torch's own profiler around the engine's runs."""

import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from statistics import median
from typing import Any

import msgspec

from mlserve.engines.engine import Engine, EngineSettings
from mlserve.model.tensors import Tensors
from mlserve.optimize.diagnose.facts import Operation, Profile, Tensor
from mlserve.optimize.diagnose.subject import Model

__all__ = ["profile_engine", "profile_torch"]

_WARM_UP = 2
_RUNS = 7
_NOTE = (
    "torch's profiler tells an operator's calls together, not node by node, its work as torch counts it (matrix "
    "products and convolutions), and neither bytes nor the precision of a kernel"
)

_LAUNCHES = "the times of a CUDA device are those of starting its kernels, and of waiting for the last at the end"


def profile_torch(model: Model, settings: EngineSettings, batches: Mapping[int, Tensors]) -> tuple[Profile, ...]:
    """One profile for each of `batches` (rows -> inputs). Raises EngineError when the model does not load or run."""
    with closing(model.open(settings)) as engine:
        profiles = tuple(profile_engine(engine, inputs, rows) for rows, inputs in batches.items())
    if settings.device == "cpu":
        return profiles
    return tuple(msgspec.structs.replace(profile, notes=(*profile.notes, _LAUNCHES)) for profile in profiles)


def profile_engine(engine: Engine, inputs: Tensors, batch_rows: int) -> Profile:
    """The profile of an engine that runs torch in this process: one operation for each operator and input shapes."""
    from torch.autograd.profiler_legacy import profile

    for _ in range(_WARM_UP):
        engine.run(inputs)
    times_s: dict[tuple[str, str], list[float]] = defaultdict(list)
    seen: dict[tuple[str, str], Any] = {}
    taken: list[float] = []
    for _ in range(_RUNS):
        # The newer profiler (Kineto) tells no more about a CPU, and it writes to the terminal.
        with profile(record_shapes=True, with_flops=True) as recorded:
            started_s = time.perf_counter()
            engine.run(inputs)
            taken.append(time.perf_counter() - started_s)
        for event in recorded.key_averages(group_by_input_shape=True):
            key = event.key, str(event.input_shapes)
            times_s[key].append(event.self_cpu_time_total / 1e6)
            seen[key] = event
    operations = tuple(_operation(seen[key], median(values)) for key, values in times_s.items())
    return Profile(batch_rows=batch_rows, runs=_RUNS, run_s=median(taken), operations=operations, notes=(_NOTE,))


def _operation(event: Any, self_s: float) -> Operation:
    shapes = [tuple(shape) for shape in event.input_shapes if shape and all(isinstance(dim, int) for dim in shape)]
    return Operation(
        name=f"{event.key} {' '.join(map(str, shapes))} x{event.count}".replace("  ", " "),
        operator=event.key.removeprefix("aten::"),
        provider="torch CPU",
        self_s=self_s,
        precision="",
        flops=int(event.flops or 0),
        moved_bytes=None,
        outputs=tuple(Tensor("", shape) for shape in shapes[:1]),
    )
