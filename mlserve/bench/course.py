"""What the generators tell of a run while it goes on, and what is decided by it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from mlserve.bench.generator.job import (
    Calibrated,
    Command,
    Finished,
    Go,
    Message,
    Prepared,
    Started,
    Stop,
    Tick,
    Waiting,
)
from mlserve.bench.measuring.stopping import decide
from mlserve.bench.meeting import Seat
from mlserve.bench.progress import Progress, ProgressMeter
from mlserve.bench.watching.watch import ResourceWatch
from mlserve.errors import RunFileError
from mlserve.runs.load import Plan
from mlserve.runs.samples import OK, SCHEMA, Sample, Samples, read_samples

if TYPE_CHECKING:
    from mlserve.runs.run import Calibration

__all__ = ["ByPlan", "Course", "Decide"]

Decide = Callable[[Samples, float], Stop | None]
"""(all rows so far, warm-up included; seconds since the run's first instant) -> when to stop, None to go on."""

_DECIDE_EVERY_S = 0.5
# Deciding reads all rows: of a long run it is done more seldom, so that it stays a part of a core.
_DECIDE_SHARE = 0.3
_MADE_UP_S = 3.0


class ByPlan:
    """Ends a run when the plan says that enough was seen; `reason` says why it ended."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.reason = ""
        # What deciding imports takes a second, which is not there once the load runs.
        decide(_made_up(), _MADE_UP_S, plan)

    def __call__(self, samples: Samples, elapsed_s: float) -> Stop | None:
        decision = decide(samples, elapsed_s, self._plan)
        self.reason = decision.reason
        return Stop(at_s=decision.at_s) if decision.action == "stop" else None


def _made_up() -> Samples:
    """A thousand requests a second, each answered after a millisecond."""
    rows = [Sample(at, at, None, at + 1_000_000, 1, 0, OK, "") for at in range(0, round(_MADE_UP_S * 1e9), 1_000_000)]
    columns = zip(*rows, strict=True)
    return Samples(
        pa.table([pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], SCHEMA)
    )


class Course:
    """One run's, at its `seat` where another runs beside it. `first_s` is its first instant on `time.monotonic()`; NaN
    before it is known.
    """

    def __init__(
        self,
        directory: Path,
        watch: ResourceWatch,
        on_progress: Callable[[Progress], None],
        decide: Decide | None,
        seat: Seat | None = None,
    ) -> None:
        self._directory, self._watch, self._on_progress, self._decide = directory, watch, on_progress, decide
        self._seat = seat
        self._meter = ProgressMeter()
        self._next_decision_s = _DECIDE_EVERY_S
        self.started_at = ""
        self.first_s = float("nan")
        self.calibration: Calibration | None = None

    def heed(self, message: Message, command: Callable[[Command], None]) -> None:
        """Takes one message; `command` hands back a decision."""
        match message:
            case Waiting():
                self._on_progress(self._meter.waiting(message))
            case Calibrated():
                self.calibration = message.calibration
            case Prepared():
                self._begin(message, command)
            case Started():
                self.started_at = message.started_at
                self.first_s = time.monotonic() + message.lead_s
                self._watch.add_generators(message.pids)
            case Tick():
                if self._seat is not None:
                    self._seat.check()
                self._on_progress(self._meter.add(message))
                if self._decide is not None and message.elapsed_s >= self._next_decision_s:
                    self._ask(self._decide, message.elapsed_s, command)
            case Finished():
                self._watch.look()

    def _begin(self, prepared: Prepared, command: Callable[[Command], None]) -> None:
        """Has the generator begin when whoever runs beside this one does."""
        assert self._seat is not None, "nobody else is waited for"
        start_ns, others = self._seat.arrive((prepared.pid, *self._watch.server_pids))
        self._watch.add_beside(others)
        command(Go(start_ns=start_ns))

    def _ask(self, decide: Decide, elapsed_s: float, command: Callable[[Command], None]) -> None:
        asked_s = time.monotonic()
        try:
            stop = decide(read_samples(self._directory), elapsed_s)
        except RunFileError:  # the generator has just turned its stream into the finished file
            return
        took_s = time.monotonic() - asked_s
        self._next_decision_s = elapsed_s + max(_DECIDE_EVERY_S, took_s / _DECIDE_SHARE)
        if stop is not None:
            self._decide = None
            command(stop)
