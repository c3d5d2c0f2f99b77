"""The process that asks a server at several paces and in bursts, with the clients that load tests use.

python -m mlserve.tuning.prediction.asking_process JOB RESULT    (started by `transport`)
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gevent
import msgspec
import numpy as np

from mlserve.bench.cores import own_cores
from mlserve.bench.generator.generator import Generator, Share, open_client
from mlserve.bench.generator.job import Job, Tick
from mlserve.runs.load import Plan
from mlserve.runs.samples import OK, Sample
from mlserve.stats import Floats
from mlserve.tuning.prediction.bursts import BurstCost, burst_cost
from mlserve.tuning.prediction.processor import MOST_WAITED, Counts, read_counts, used_s
from mlserve.tuning.prediction.tails import with_shared_tail
from mlserve.tuning.prediction.times import Phase

__all__ = ["AskingJob", "AskingResult", "main"]

_LEAD_S = 0.1
# At most so many requests a second, and so much of what the server bears if each comes alone.
_BUSY_PER_S, _BUSY = 3000.0, 0.5
_RESTED_PER_S, _RESTED = 80.0, 0.05
# From the one to the other by equal factors, and so much of the time for each, since slow ones have few requests. After
# a pause as long as this a longer one makes no difference.
_PROBE, _SHARES = 0.05, (0.15, 0.15, 0.2, 0.25)
_LONGEST_GAP_S = 0.01
_BURSTS = 0.2
_FEWEST = 20
_LEAST_GAP_S = 1e-5
_WARM_UP_S = 0.1
# The machine is now faster and now slower, for seconds: all paces take turns, so that it falls on all of them alike.
_ROUNDS = 3
_LONGER = (2, 6)
# Of what a generator hands over every tenth of a second, so many make a slice.
_TAKES, _PAUSE_S = 3, 0.0005


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
    client_s: float = 0.0
    phases: tuple[Phase, ...] = ()
    others: float = 0.0


class _Slice(NamedTuple):
    """The rows of some tenths of a second, and what cores and processes did meanwhile."""

    rows: Sequence[Sample]
    counts: Counts


class _Slices:
    """A sink that keeps what it takes, with what others did meanwhile.

    To ask that takes the time of several requests, and what is due then leaves late: it is asked seldom, and a little
    at a time.
    """

    def __init__(self, asking: AskingJob) -> None:
        self._cpus, self._pids = {*asking.cpus, *own_cores()}, [os.getpid(), *asking.pids]
        self._slices: list[_Slice] = []
        self._rows: list[Sample] = []
        self._takes, self._before = 0, read_counts(self._cpus, self._pids)

    def take(self, rows: Sequence[Sample], tick: Tick) -> None:
        self._rows += rows
        self._takes += 1
        if self._takes % _TAKES == 0:
            self._cut(partial(gevent.sleep, _PAUSE_S))

    def end(self) -> list[_Slice]:
        """All of it, when nothing is due any more."""
        self._cut()
        return self._slices

    def _cut(self, between: Callable[[], object] | None = None) -> None:
        counts = read_counts(self._cpus, self._pids, between)
        self._slices.append(_Slice(self._rows, counts.since(self._before)))
        self._rows, self._before = [], counts


class _Asked(NamedTuple):
    """What one pace showed: what passes outside the server [n] (seconds); the rest of its phase; the processor time of
    the generator by request; and what others used of the cores meanwhile, of all their time.
    """

    rate_per_s: float
    gap_s: float
    turn_s: float | None
    outside_s: Floats
    client_s: float
    others_s: float
    whole_s: float


class _Pace:
    """Requests evenly spaced, in several loads: of each the first tenth of a second is not counted."""

    def __init__(self, asking: AskingJob, rate_per_s: float, budget_s: float) -> None:
        self._asking, self._budget_s = asking, budget_s
        self._plan = msgspec.structs.replace(
            asking.usual.plan, arrivals="constant", rate_per_s=rate_per_s, warm_up_s=_WARM_UP_S
        )
        self._slices: list[_Slice] = []
        self._spent_s = self._client_s = 0.0

    def ask(self, times: float) -> None:
        """One more load, of so many times its whole time."""
        duration_s = max(times * self._budget_s, _FEWEST / _ROUNDS / self._plan.rate_per_s)
        plan = msgspec.structs.replace(self._plan, duration_s=duration_s)
        before_s, own_before_s = used_s(self._asking.pids), time.process_time()
        self._slices += _asked_by(self._asking, plan)
        self._spent_s += used_s(self._asking.pids) - before_s
        self._client_s += time.process_time() - own_before_s

    def asked(self, request_s: float) -> _Asked:
        """What all its loads showed, without what others disturbed.

        A busy machine may answer hardly any in so short a time: then there are longer loads. Raises ValueError where
        too few answers are good all the same.
        """
        for longer in (*_LONGER, None):
            found = self.found(request_s)
            if found is not None:
                return found
            if longer:
                self.ask(longer)
        rows = self._rows()
        good, faults = [row for row in rows if row.status == OK], {row.status for row in rows} - {OK}
        raise ValueError(
            f"{len(good)} of {len(rows)} requests were answered in time and told where theirs went; "
            f"{', '.join(sorted(faults)) or 'none failed'}"
        )

    def found(self, request_s: float) -> _Asked | None:
        """None where too few answers are good."""
        rows, calm = self._rows(), _calm(self._slices)
        good = [row for row in rows if row.status == OK]
        timed = [row for row in good if row.compute_ns is not None]
        warm = [row for each in calm for row in each.rows if row.status == OK and row.scheduled_ns >= _WARM_UP_S * 1e9]
        untimed = [row for row in warm if row.compute_ns is None]
        if not timed or len(untimed) < _FEWEST or len(good) <= len(rows) / 2:
            return None
        run_s = float(np.median([row.compute_ns or 0 for row in timed])) / 1e9
        outside_s = np.array([(row.done_ns or 0) - row.scheduled_ns for row in untimed]) / 1e9 - run_s
        return _Asked(
            rate_per_s=self._plan.rate_per_s,
            gap_s=max(1 / self._plan.rate_per_s - self._spent_s / len(good), _LEAST_GAP_S),
            turn_s=_turn_s(good, timed, self._spent_s - len(good) * request_s, run_s),
            outside_s=np.maximum(outside_s, 0.0),
            client_s=self._client_s / len(rows),
            others_s=sum(each.counts.others_s for each in calm),
            whole_s=sum(each.counts.whole_s for each in calm),
        )

    def _rows(self) -> list[Sample]:
        return [row for each in self._slices for row in each.rows]


def main() -> None:
    """Asks as the job says."""
    asking = msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=AskingJob)
    try:
        result = _asked(asking)
    except ValueError as error:
        result = AskingResult(fault=str(error))
    Path(sys.argv[2]).write_bytes(msgspec.msgpack.encode(result))


def _asked(asking: AskingJob) -> AskingResult:
    """The bursts first: they show how many requests the server bears that come after a pause, and a load as large as
    that allows how many it bears that do not.
    """
    budget_s = asking.budget_s
    cost = burst_cost(asking.timed, asking.pids, _BURSTS * budget_s)
    busy = _Pace(asking, _busy_per_s(cost.turn_s, cost.request_s), _PROBE * budget_s)
    busy.ask(1)
    found = busy.found(cost.request_s)
    turn_s = cost.turn_s if found is None or found.turn_s is None else min(found.turn_s, cost.turn_s)
    paces = [_Pace(asking, rate_per_s, share * budget_s) for rate_per_s, share in _paces(turn_s, cost)]
    for _ in range(_ROUNDS):
        for pace in paces:
            pace.ask(1 / _ROUNDS)
    asked = [pace.asked(cost.request_s) for pace in paces]
    levels = with_shared_tail([each.outside_s for each in asked], [1 / each.rate_per_s for each in asked])
    phases = tuple(
        Phase(gap_s=each.gap_s, outside_s=outside_s, turn_s=each.turn_s)
        for each, outside_s in zip(asked, levels, strict=True)
    )
    others = max(0.0, sum(each.others_s for each in asked)) / sum(each.whole_s for each in asked)
    return AskingResult(cost=cost, client_s=asked[0].client_s, phases=phases, others=min(others, 1.0))


def _busy_per_s(turn_s: float, request_s: float) -> float:
    return min(_BUSY_PER_S, _BUSY / (turn_s + request_s))


def _paces(warm_turn_s: float, cost: BurstCost) -> list[tuple[float, float]]:
    """(rate, share of the time), busiest first."""
    busy_per_s = _busy_per_s(warm_turn_s, cost.request_s)
    rested_per_s = min(_RESTED_PER_S, _RESTED / (cost.turn_s + cost.request_s))
    first, *between, last = zip(np.geomspace(busy_per_s, rested_per_s, len(_SHARES)).tolist(), _SHARES, strict=True)
    return [first, *(pace for pace in between if 1 / pace[0] < _LONGEST_GAP_S), last]


def _asked_by(asking: AskingJob, plan: Plan) -> list[_Slice]:
    """A load."""
    job = msgspec.structs.replace(asking.usual, plan=plan)
    sink = _Slices(asking)
    generator = Generator(job, Share(), open_client(job.address, job), lambda _: None, sink)
    generator.run(time.monotonic_ns() + round(_LEAD_S * 1e9))
    return sink.end()


def _calm(slices: Sequence[_Slice]) -> Sequence[_Slice]:
    """All of them where others hardly had the cores; else the half, of those with rows, in which ours waited least."""
    if sum(each.counts.others_s for each in slices) <= MOST_WAITED * sum(each.counts.whole_s for each in slices):
        return slices
    some = sorted((each for each in slices if each.rows), key=lambda each: each.counts.waited_s / each.counts.whole_s)
    return some[: (len(some) + 1) // 2]


def _turn_s(good: Sequence[Sample], timed: Sequence[Sample], spent_s: float, run_s: float) -> float | None:
    """Processor time of a turn of the server at this pace, in each of which it ran once: what is left of `spent_s`."""
    shares = [row.rows / row.batch_rows for row in timed if row.batch_rows]
    if not shares:
        return None
    runs = len(good) * float(np.mean(shares))
    return max(0.0, spent_s / runs - run_s)


if __name__ == "__main__":
    main()
