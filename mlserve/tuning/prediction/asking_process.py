"""The process that asks a server at several paces, with the clients that load tests use.

python -m mlserve.tuning.prediction.asking_process JOB RESULT    (started by `transport`)
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import psutil

from mlserve.bench.generator.generator import Generator, Share, open_client
from mlserve.bench.generator.job import Job, Tick
from mlserve.runs.load import Plan
from mlserve.runs.samples import OK, Sample
from mlserve.tuning.prediction.times import Phase, levels_of

__all__ = ["AskingJob", "AskingResult", "main"]

_LEAD_S = 0.1
_USERS = 16
# At most so many requests a second, and so much of what the server bears.
_BUSY_PER_S, _BUSY = 1500.0, 0.25
_RESTED_PER_S, _RESTED = 80.0, 0.05
_FEWEST = 20
_WARM_UP_S = 0.1
_LONGER = (1, 3, 9)


class AskingJob(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of `job`, of `rows` rows each, which ask where their time went, for about `budget_s`; to a server
    whose processes are `pids`.
    """

    job: Job
    rows: int
    pids: tuple[int, ...]
    budget_s: float


class AskingResult(msgspec.Struct, frozen=True, kw_only=True):
    """See PathTimes; `fault` says why there is nothing."""

    fault: str = ""
    rested: Phase | None = None
    busy: Phase | None = None
    full: Phase | None = None


class _Rows:
    """A sink that keeps what it takes."""

    def __init__(self) -> None:
        self.rows: list[Sample] = []

    def take(self, rows: Sequence[Sample], tick: Tick) -> None:
        self.rows += rows


def main() -> None:
    """Asks as the job says."""
    asking = msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=AskingJob)
    try:
        result = _asked(asking)
    except ValueError as error:
        result = AskingResult(fault=str(error))
    Path(sys.argv[2]).write_bytes(msgspec.msgpack.encode(result))


def _asked(asking: AskingJob) -> AskingResult:
    """The closed loop first: it shows how many requests the server bears."""
    plan, budget_s = asking.job.plan, asking.budget_s
    closed = {"arrivals": "closed", "users": _USERS, "rate_per_s": 0.0}
    full = _phase(asking, msgspec.structs.replace(plan, **closed, duration_s=0.2 * budget_s))
    most_per_s = 1 / full.gap_s
    busy_per_s, rested_per_s = min(_BUSY_PER_S, _BUSY * most_per_s), min(_RESTED_PER_S, _RESTED * most_per_s)
    busy = _phase(asking, msgspec.structs.replace(plan, rate_per_s=busy_per_s, duration_s=0.3 * budget_s))
    rested = _phase(asking, msgspec.structs.replace(plan, rate_per_s=rested_per_s, duration_s=0.5 * budget_s))
    return AskingResult(full=full, busy=busy, rested=rested)


def _phase(asking: AskingJob, plan: Plan) -> Phase:
    """Requests by `plan`, of which the first tenth of a second is not counted.

    A busy machine may answer hardly any in so short a time, which is then made longer. Raises ValueError where too few
    answers are good all the same.
    """
    for longer in _LONGER:
        duration_s = max(longer * plan.duration_s, _FEWEST / plan.rate_per_s if plan.rate_per_s else 0.0)
        rows, used_s = _asked_by(asking, msgspec.structs.replace(plan, duration_s=duration_s, warm_up_s=_WARM_UP_S))
        good = [row for row in rows if row.status == OK and row.compute_ns is not None]
        warm = [row for row in good if row.scheduled_ns >= _WARM_UP_S * 1e9]
        if len(warm) >= _FEWEST and len(good) > len(rows) / 2:
            return _phase_of(asking, rows, good, warm, used_s)
    faults = ", ".join(sorted({row.status for row in rows} - {OK})) or "none failed"
    raise ValueError(f"{len(good)} of {len(rows)} requests were answered in time and told where theirs went; {faults}")


def _asked_by(asking: AskingJob, plan: Plan) -> tuple[list[Sample], float]:
    """The rows of a load, and the processor time that the server used meanwhile."""
    job = msgspec.structs.replace(asking.job, plan=plan)
    sink = _Rows()
    generator = Generator(job, Share(), open_client(job.address, job), lambda _: None, sink)
    before_s = _used_s(asking.pids)
    generator.run(time.monotonic_ns() + round(_LEAD_S * 1e9))
    return sink.rows, _used_s(asking.pids) - before_s


def _phase_of(
    asking: AskingJob, rows: Sequence[Sample], good: Sequence[Sample], warm: Sequence[Sample], used_s: float
) -> Phase:
    shares = np.array([asking.rows / (row.batch_rows or asking.rows) for row in good])
    computed_s = np.array([row.compute_ns or 0 for row in good]) / 1e9
    outside_s = np.array([(row.done_ns or 0) - row.scheduled_ns - (row.compute_ns or 0) for row in warm]) / 1e9
    due_s = np.array([row.scheduled_ns for row in rows]) / 1e9
    return Phase(
        gap_s=float(np.ptp(due_s)) / len(due_s),
        cpu_s=max(0.0, used_s / len(rows) - float((computed_s * shares).mean())),
        turns=float(shares.mean()),
        outside_s=levels_of(outside_s),
    )


def _used_s(pids: Sequence[int]) -> float:
    """The processor time of a server's processes so far."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(each.user + each.system for each in times)


if __name__ == "__main__":
    main()
