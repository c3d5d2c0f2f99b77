"""What the generator costs by itself: the run's own requests at the run's own rate, sent by the same process to a
server that answers at once.
"""

import time
from collections.abc import Callable, Iterable, Sequence

import msgspec
import numpy as np

from mlserve.bench.clients.client import Client
from mlserve.bench.generator.generator import Generator, Share
from mlserve.bench.generator.job import Address, Job, Tick
from mlserve.errors import BenchError
from mlserve.runs.load import Flat, Plan
from mlserve.runs.run import Calibration
from mlserve.runs.samples import OK, Sample
from mlserve.stats import Floats, minimum_samples, quantile

__all__ = ["calibrate", "calibration_of", "calibration_plan", "combine"]

# For connections, and for caches of the processor and of ours.
_WARM_UP_S = 0.5
_LEAST_S, _MOST_S = 1.0, 5.0
_REQUESTS = 460
# Of one generator: at less, a few seconds would see hardly a request.
_LEAST_PER_S = 10.0
# A null server that does not answer in this time is stuck.
_TIMEOUT_S = 5.0
_LEAD_S = 0.1


def calibrate(job: Job, share: Share, open_client: Callable[[Address, Job], Client]) -> Calibration:
    """Sends this generator's share of the load to `job.null_server` for a second or a few, by `calibration_plan`.

    Answers are not checked. Raises BenchError when none comes.
    """
    assert job.null_server is not None, "there is nothing to calibrate against"
    plan = calibration_plan(job.plan, share.of)
    trial = msgspec.structs.replace(job, plan=plan, address=job.null_server, trace_ns=b"", expected=())
    rows = _Rows()
    generator = Generator(trial, share, open_client(trial.address, trial), lambda _: None, rows)
    generator.run(time.monotonic_ns() + round(_LEAD_S * 1e9))
    return calibration_of(rows.rows, plan)


def calibration_plan(plan: Plan, generators: int) -> Plan:
    """`plan` at one rate, for so long that each of `generators` counts a few hundred requests, if that is not too long.

    A shape that changes is calibrated at the rate that it starts from, and a closed loop with its users.
    """
    rate_per_s = 0.0 if plan.closed else max(plan.rate_per_s, _LEAST_PER_S * generators)
    return msgspec.structs.replace(
        plan,
        rate_per_s=rate_per_s,
        arrivals="poisson" if plan.arrivals == "replay" else plan.arrivals,
        shape=Flat(),
        warm_up_s=_WARM_UP_S,
        duration_s=_LEAST_S if plan.closed else min(max(_REQUESTS * generators / rate_per_s, _LEAST_S), _MOST_S),
        timeout_s=min(plan.timeout_s, _TIMEOUT_S),
        find_warm_up=False,
        precision=0.0,
        max_duration_s=0.0,
        check_answers=False,
    )


def calibration_of(rows: Iterable[Sample], plan: Plan) -> Calibration:
    """What the rows of a run by `plan` say: of its good answers, without the warm-up.

    With fewer than `minimum_samples(0.99)` of them, the p99 is the largest value. Raises BenchError where there are
    none.
    """
    start_ns = round(plan.warm_up_s * 1e9)
    good = [row for row in rows if row.status == OK and row.scheduled_ns >= start_ns]
    if not good:
        raise BenchError("the null server answered nothing, so nobody knows what the generator costs by itself")
    latency_s = np.array([row.done_ns - row.scheduled_ns for row in good if row.done_ns is not None]) / 1e9
    lag_s = np.array([row.sent_ns - row.scheduled_ns for row in good if row.sent_ns is not None]) / 1e9
    return Calibration(
        requests=len(good),
        p50_s=quantile(latency_s, 0.5),
        p99_s=_p99(latency_s),
        lag_p99_s=_p99(lag_s),
        achieved_per_s=len(good) / plan.duration_s,
    )


def combine(calibrations: Sequence[Calibration]) -> Calibration:
    """That of generators which were calibrated at the same time: the sum of their rates, the worst of their times."""
    return Calibration(
        requests=sum(each.requests for each in calibrations),
        p50_s=max(each.p50_s for each in calibrations),
        p99_s=max(each.p99_s for each in calibrations),
        lag_p99_s=max(each.lag_p99_s for each in calibrations),
        achieved_per_s=sum(each.achieved_per_s for each in calibrations),
    )


class _Rows:
    """A sink that keeps what it takes."""

    def __init__(self) -> None:
        self.rows: list[Sample] = []

    def take(self, rows: Sequence[Sample], tick: Tick) -> None:
        self.rows += rows


def _p99(values: Floats) -> float:
    return quantile(values, 0.99 if len(values) >= minimum_samples(0.99) else 1.0)
