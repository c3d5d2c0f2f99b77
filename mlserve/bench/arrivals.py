"""When requests are due: one absolute schedule, made before the run and the same for the same seed. Pure."""

import math

import numpy as np
import numpy.typing as npt

from mlserve.runs.run import Arrivals

__all__ = ["schedule"]

_NS = 1e9


def schedule(arrivals: Arrivals, rate_per_s: float, duration_s: float, seed: int) -> npt.NDArray[np.int64]:
    """The instants [n] at which requests are due, in ns since the schedule's start: sorted, all in [0, duration).

    `constant`: request i is due at i / rate, rounded to a nanosecond.
    `poisson`: independent users. The number of arrivals is Poisson(rate * duration) and, given their number, they are
    uniform over the duration; the gaps between them are then exponential with mean 1 / rate (Ross, Introduction to
    Probability Models, theorem 5.2).
    """
    end_ns = round(duration_s * _NS)
    if arrivals == "constant":
        count = math.ceil(rate_per_s * duration_s)
        due_ns: npt.NDArray[np.int64] = np.rint(np.arange(count) * (_NS / rate_per_s)).astype(np.int64)
        return due_ns[due_ns < end_ns]
    rng = np.random.default_rng(seed)
    return np.sort(rng.integers(end_ns, size=rng.poisson(rate_per_s * duration_s), dtype=np.int64))
