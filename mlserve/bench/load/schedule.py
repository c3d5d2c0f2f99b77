"""When requests are due: one absolute schedule, made before the run and the same for the same seed. Pure."""

import math

import numpy as np
import numpy.typing as npt

from mlserve.runs.load import Flat, Plan

__all__ = ["schedule"]

_NS = 1e9


def schedule(plan: Plan, trace_ns: bytes = b"") -> npt.NDArray[np.int64]:
    """The instants [n] at which requests are due, in ns since the run's first: sorted, all in [0, plan.longest_s).

    A run that is stopped earlier has sent the beginning of it. `constant`: request i is due when i requests were due
    on average, rounded to a nanosecond. `poisson`: independent users. The number of arrivals is Poisson with the mean
    of the whole and, given their number, they are independent (Ross, Introduction to Probability Models, theorem 5.2).
    """
    assert isinstance(plan.shape, Flat), "to come"
    rate_per_s, duration_s = plan.rate_per_s, plan.longest_s
    end_ns = round(duration_s * _NS)
    if plan.arrivals == "constant":
        count = math.ceil(rate_per_s * duration_s)
        due_ns: npt.NDArray[np.int64] = np.rint(np.arange(count) * (_NS / rate_per_s)).astype(np.int64)
        return due_ns[due_ns < end_ns]
    rng = np.random.default_rng(plan.seed)
    return np.sort(rng.integers(end_ns, size=rng.poisson(rate_per_s * duration_s), dtype=np.int64))
