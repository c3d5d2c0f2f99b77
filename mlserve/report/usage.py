"""What the processes and GPUs used over the runs of a measurement, as few points as show it."""

from collections.abc import Sequence

import msgspec
import numpy as np

from mlserve.report.measurement import Recorded
from mlserve.report.readings import Readings, Series, binned

__all__ = ["Usage", "usage"]

_MOST_STRETCHES = 60
# The bench reads twice a second: in shorter stretches some would be empty.
_SHORTEST_S = 1.0


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Means of the readings in stretches, repeats taken together; `at_s` is the middle of each, 0 where the measured
    part begins. None where there was no reading. A share of 1 is a whole GPU.
    """

    at_s: tuple[float, ...]
    server_cores: tuple[float | None, ...]
    generator_cores: tuple[float | None, ...]
    server_bytes: tuple[float | None, ...]
    gpu_utilization: tuple[float | None, ...]
    gpu_bytes: tuple[float | None, ...]


def usage(runs: Sequence[Recorded]) -> Usage | None:
    """What was used while `runs` went on, their warm-up included; None where no run has readings."""
    read = [(one.readings, one.run.window) for one in runs if one.readings is not None]
    if not read:
        return None
    start_s = -max(window.start_s for _, window in read)
    end_s = max(window.duration_s for _, window in read)
    stretches = max(1, min(_MOST_STRETCHES, int((end_s - start_s) / _SHORTEST_S)))
    edges_s = np.linspace(start_s, end_s, stretches + 1)

    def told(name: str) -> tuple[float | None, ...]:
        return binned([(_of(readings, name), window.start_s) for readings, window in read], edges_s)

    return Usage(
        at_s=tuple(((edges_s[:-1] + edges_s[1:]) / 2).tolist()),
        server_cores=told("server_cores"),
        generator_cores=told("generator_cores"),
        server_bytes=told("server_bytes"),
        gpu_utilization=told("gpu_utilization"),
        gpu_bytes=told("gpu_bytes"),
    )


def _of(readings: Readings, name: str) -> Series:
    series: Series = getattr(readings, name)
    return series
