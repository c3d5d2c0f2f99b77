"""When requests are due: one absolute schedule, made before the run and the same for the same seed. Pure."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from mlserve.bench.load.curve import rate_curve
from mlserve.runs.load import Plan, Replay

__all__ = ["schedule"]

_NS = 1e9
# Requests, on average. Long enough that a block's own generator costs nothing beside its numbers.
_BLOCK = 4096

_Floats = npt.NDArray[np.float64]
_Instants = npt.NDArray[np.int64]


def schedule(plan: Plan, trace_ns: bytes = b"") -> _Instants:
    """The instants [n] at which requests are due, in ns since the run's first: sorted, all in [0, plan.longest_s).

    With L(t) the requests due before t on average, which the plan's rate and shape say: `constant`: request i is due
    where L is i. `poisson`: a Poisson process of rate 1, of which an arrival at u is due where L is u; so the number of
    arrivals in any stretch is Poisson with the mean L gives it, and independent of all before (Ross, Introduction to
    Probability Models, nonhomogeneous processes). Both are rounded to a nanosecond.

    A plan that may take longer, or has another rate, sees the same arrivals of the process of rate 1: being extended
    only adds to a schedule, and at twice the rate it is the same one in half the time.

    `replay`: a warm-up like that of a Poisson load, and then `trace_ns`, int64s since the trace's beginning, at the
    shape's speed. A closed loop has no schedule: it is empty.
    """
    if plan.closed:
        return np.empty(0, np.int64)
    curve = rate_curve(plan)
    counts = np.arange(curve.total) if plan.arrivals == "constant" else _poisson(curve.total, plan.seed)
    due_ns: _Instants = np.rint(curve.instants_s(counts) * _NS).astype(np.int64)
    if plan.arrivals != "replay":
        return due_ns[due_ns < round(plan.longest_s * _NS)]
    assert trace_ns, "a replay is scheduled by its trace"
    assert isinstance(plan.shape, Replay)
    start_ns = round(plan.warm_up_s * _NS)
    recorded_ns = np.rint(np.frombuffer(trace_ns, np.int64) / plan.shape.speed).astype(np.int64)
    return np.concatenate([due_ns[due_ns < start_ns], start_ns + recorded_ns])


def _poisson(total: float, seed: int) -> _Floats:
    """The arrivals [n] of a Poisson process of rate 1 in [0, total), sorted.

    Each block is drawn from a generator of its own: given their number, the arrivals in it are independent and uniform
    (Ross, theorem 5.2).
    """
    counts = np.concatenate([np.empty(0), *_blocks(total, seed)])
    return counts[counts < total]


def _blocks(total: float, seed: int) -> Iterator[_Floats]:
    for number in range(int(total // _BLOCK) + 1):
        rng = np.random.default_rng([seed, number])
        yield np.sort(_BLOCK * (number + rng.random(rng.poisson(_BLOCK))))
