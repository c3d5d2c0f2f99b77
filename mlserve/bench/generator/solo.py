"""The generator that is alone: the whole schedule from one process."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gevent
from gevent.event import AsyncResult

from mlserve.bench.generator.ending import told_over
from mlserve.bench.generator.file_sink import FileSink
from mlserve.bench.generator.generator import Share
from mlserve.bench.generator.job import Calibrated, Command, Finished, Go, Job, Prepared, Started
from mlserve.bench.generator.part import Part
from mlserve.bench.generator.pipe import Pipe

__all__ = ["Solo"]

_LEAD_S = 0.3


class Solo:
    """Under a Locust of its own. `pipe` leads to `mlserve bench`. Runs once, when Locust first starts its test, however
    often its page is told to start or to change the number of users.
    """

    def __init__(self, environment: Any, job: Job, pipe: Pipe) -> None:
        self._environment, self._runner, self._job, self._pipe = environment, environment.runner, job, pipe
        self._sink = FileSink(Path(job.directory), pipe.send)
        self._part = Part(environment, job, Share(), self._sink)
        self._begun = self._over = False
        self._told: AsyncResult[int] = AsyncResult()
        environment.events.test_start.add_listener(lambda **_: self._begin())
        environment.events.test_stopping.add_listener(lambda **_: self._stop(0.0))
        environment.events.quitting.add_listener(lambda **_: self._close())
        pipe.follow(self._obey)

    def _begin(self) -> None:
        if self._over:
            gevent.spawn_later(_LEAD_S, self._runner.stop)
        elif not self._begun:
            self._begun = True
            gevent.spawn(self._run_on)

    def _run_on(self) -> None:
        with told_over(self._environment, self._pipe):
            try:
                self._run()
            finally:
                self._over = True

    def _run(self) -> None:
        pipe = self._pipe
        calibration = self._part.prepare()
        if calibration is not None:
            pipe.send(Calibrated(calibration=calibration))
        start_ns = self._start_ns()
        started_at = datetime.now(UTC).isoformat(timespec="seconds")
        lead_s = (start_ns - time.monotonic_ns()) / 1e9
        pipe.send(Started(started_at=started_at, pids=(os.getpid(),), lead_s=lead_s))
        total = self._part.run(start_ns)
        self._over = True
        self._close()
        pipe.send(Finished(end_s=total.end_s, cpus=(total.cpu,), ok=total.ok, failed=total.failed))
        pipe.close()

    def _start_ns(self) -> int:
        """The run's first instant: soon, or when it is told."""
        if not self._job.waits:
            return time.monotonic_ns() + round(_LEAD_S * 1e9)
        self._pipe.send(Prepared(pid=os.getpid()))
        start_ns: int = self._told.get()
        return start_ns

    def _obey(self, command: Command) -> None:
        if isinstance(command, Go):
            self._told.set(command.start_ns)
        else:
            self._stop(command.at_s)

    def _stop(self, at_s: float) -> None:
        """At `at_s` since the first instant, or now if that is over."""
        if not self._over:
            self._part.stop(min(max(at_s, self._part.elapsed_s), self._job.plan.end_s))

    def _close(self) -> None:
        self._part.flush()
        self._sink.close()
