"""The process that asks a server at several paces and in bursts, with the clients that load tests use.

python -m mlserve.tuning.prediction.asking_process JOB RESULT    (started by `transport`)
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from mlserve.bench.cores import own_cores
from mlserve.bench.generator.generator import Generator, Share, open_client
from mlserve.bench.generator.job import Job, Tick
from mlserve.runs.load import Plan
from mlserve.runs.samples import OK, Sample
from mlserve.tuning.prediction.bursts import BurstCost, burst_cost
from mlserve.tuning.prediction.processor import MOST_WAITED, Others, used_s, waited_s
from mlserve.tuning.prediction.times import Phase, levels_of

__all__ = ["AskingJob", "AskingResult", "main"]

_LEAD_S = 0.1
# At most so many requests a second, and so much of what the server bears if each comes alone.
_BUSY_PER_S, _BUSY = 1500.0, 0.5
_RESTED_PER_S, _RESTED = 80.0, 0.05
# From the one to the other by equal factors, and so much of the time for each, since slow ones have few requests. After
# a pause as long as this a longer one makes no difference.
_SHARES = (0.15, 0.15, 0.2, 0.3)
_LONGEST_GAP_S = 0.01
_BURSTS = 0.2
_FEWEST = 20
_LEAST_GAP_S = 1e-5
_WARM_UP_S = 0.1
_LONGER = (1, 3, 9)


class AskingJob(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of `timed`, all of which ask where their time went, and of `usual`, of which some do, as in a load
    test, since the answer costs the server some time; for about `budget_s`; to a server whose processes are `pids`, on
    the cores `cpus`.
    """

    timed: Job
    usual: Job
    pids: tuple[int, ...]
    cpus: tuple[int, ...]
    budget_s: float


class AskingResult(msgspec.Struct, frozen=True, kw_only=True):
    """See PathTimes; `fault` says why there is nothing."""

    fault: str = ""
    cost: BurstCost | None = None
    phases: tuple[Phase, ...] = ()
    others: float = 0.0


class _Slice(NamedTuple):
    """The rows of about a tenth of a second; how long threads of ours waited for a core meanwhile; and what others used
    of all the cores' time.
    """

    rows: Sequence[Sample]
    waited_s: float
    others_s: float
    whole_s: float


class _Slices:
    """A sink that keeps what it takes, with what others did meanwhile."""

    def __init__(self, asking: AskingJob) -> None:
        self.slices: list[_Slice] = []
        self._cpus, self._pids = {*asking.cpus, *own_cores()}, [os.getpid(), *asking.pids]
        self._others, self._waited_s = Others(self._cpus, self._pids), waited_s(self._pids)

    def take(self, rows: Sequence[Sample], tick: Tick) -> None:
        others_s, whole_s = self._others.spent()
        now_s = waited_s(self._pids)
        self.slices.append(_Slice(list(rows), now_s - self._waited_s, others_s, whole_s))
        self._others, self._waited_s = Others(self._cpus, self._pids), now_s


class _Asked(NamedTuple):
    """What one pace showed, and what others used of the cores meanwhile, of all their time."""

    phase: Phase
    others_s: float
    whole_s: float


def main() -> None:
    """Asks as the job says."""
    asking = msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=AskingJob)
    try:
        result = _asked(asking)
    except ValueError as error:
        result = AskingResult(fault=str(error))
    Path(sys.argv[2]).write_bytes(msgspec.msgpack.encode(result))


def _asked(asking: AskingJob) -> AskingResult:
    """The bursts first: they show how many requests the server bears."""
    plan, budget_s = asking.usual.plan, asking.budget_s
    cost = burst_cost(asking.timed, asking.pids, _BURSTS * budget_s)
    asked = []
    for rate_per_s, share in _paces(1 / (cost.turn_s + cost.request_s)):
        even = msgspec.structs.replace(plan, arrivals="constant", rate_per_s=rate_per_s, duration_s=share * budget_s)
        asked.append(_phase(asking, even, cost.request_s))
    others = max(0.0, sum(each.others_s for each in asked)) / sum(each.whole_s for each in asked)
    return AskingResult(cost=cost, phases=tuple(each.phase for each in asked), others=min(others, 1.0))


def _paces(most_per_s: float) -> list[tuple[float, float]]:
    """(rate, share of the time) for a server that bears `most_per_s` if each request comes alone, busiest first."""
    busy_per_s, rested_per_s = min(_BUSY_PER_S, _BUSY * most_per_s), min(_RESTED_PER_S, _RESTED * most_per_s)
    first, *between, last = zip(np.geomspace(busy_per_s, rested_per_s, len(_SHARES)).tolist(), _SHARES, strict=True)
    return [first, *(pace for pace in between if 1 / pace[0] < _LONGEST_GAP_S), last]


def _phase(asking: AskingJob, plan: Plan, request_s: float) -> _Asked:
    """Requests by `plan`, of which the first tenth of a second is not counted, nor what others disturbed.

    A busy machine may answer hardly any in so short a time, which is then made longer. Raises ValueError where too few
    answers are good all the same.
    """
    for longer in _LONGER:
        duration_s = max(longer * plan.duration_s, _FEWEST / plan.rate_per_s)
        before_s = used_s(asking.pids)
        slices = _asked_by(asking, msgspec.structs.replace(plan, duration_s=duration_s, warm_up_s=_WARM_UP_S))
        spent_s = used_s(asking.pids) - before_s
        rows = [row for each in slices for row in each.rows]
        good = [row for row in rows if row.status == OK]
        timed = [row for row in good if row.compute_ns is not None]
        calm = _calm(slices)
        warm = [row for each in calm for row in each.rows if row.status == OK and row.scheduled_ns >= _WARM_UP_S * 1e9]
        untimed = [row for row in warm if row.compute_ns is None]
        if timed and len(untimed) >= _FEWEST and len(good) > len(rows) / 2:
            run_s = float(np.median([row.compute_ns or 0 for row in timed])) / 1e9
            return _Asked(
                _phase_of(
                    rows,
                    untimed,
                    run_s,
                    spent_s / len(good),
                    _turn_s(good, timed, spent_s - len(good) * request_s, run_s),
                ),
                sum(each.others_s for each in calm),
                sum(each.whole_s for each in calm),
            )
    faults = ", ".join(sorted({row.status for row in rows} - {OK})) or "none failed"
    raise ValueError(f"{len(good)} of {len(rows)} requests were answered in time and told where theirs went; {faults}")


def _asked_by(asking: AskingJob, plan: Plan) -> list[_Slice]:
    """A load."""
    job = msgspec.structs.replace(asking.usual, plan=plan)
    sink = _Slices(asking)
    generator = Generator(job, Share(), open_client(job.address, job), lambda _: None, sink)
    generator.run(time.monotonic_ns() + round(_LEAD_S * 1e9))
    return sink.slices


def _calm(slices: Sequence[_Slice]) -> Sequence[_Slice]:
    """All of them where others hardly had the cores; else the half, of those with rows, in which ours waited least."""
    if sum(each.others_s for each in slices) <= MOST_WAITED * sum(each.whole_s for each in slices):
        return slices
    some = sorted((each for each in slices if each.rows), key=lambda each: each.waited_s / each.whole_s)
    return some[: (len(some) + 1) // 2]


def _turn_s(good: Sequence[Sample], timed: Sequence[Sample], spent_s: float, run_s: float) -> float | None:
    """Processor time of a turn of the server at this pace, in each of which it ran once: what is left of `spent_s`."""
    shares = [row.rows / row.batch_rows for row in timed if row.batch_rows]
    if not shares:
        return None
    runs = len(good) * float(np.mean(shares))
    return max(0.0, spent_s / runs - run_s)


def _phase_of(
    rows: Sequence[Sample], untimed: Sequence[Sample], run_s: float, each_s: float, turn_s: float | None
) -> Phase:
    """`each_s` is what the server spent on each request: so long it was not idle."""
    outside_s = np.array([(row.done_ns or 0) - row.scheduled_ns for row in untimed]) / 1e9 - run_s
    due_s = np.array([row.scheduled_ns for row in rows]) / 1e9
    return Phase(
        gap_s=max(float(np.ptp(due_s)) / len(due_s) - each_s, _LEAST_GAP_S),
        outside_s=levels_of(np.maximum(outside_s, 0.0)),
        turn_s=turn_s,
    )


if __name__ == "__main__":
    main()
