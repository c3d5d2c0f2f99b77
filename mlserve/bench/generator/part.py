"""One process's part of a run: prepared, run once, and stopped."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent

from mlserve.bench.generator.generator import Generator, Share, Sink, Total, open_client
from mlserve.bench.generator.job import Job
from mlserve.runs.run import Calibration
from mlserve.runs.samples import DROPPED, OK, Sample

if TYPE_CHECKING:
    from mlserve.bench.clients.client import Client
    from mlserve.bench.generator.user_scenario import UserScenario

__all__ = ["Part"]


class Part:
    """A share of `job`, in this process. `environment` is Locust's, whose statistics see every request."""

    def __init__(self, environment: Any, job: Job, share: Share, sink: Sink) -> None:
        self._environment, self._job, self._share, self._sink = environment, job, share, sink
        self._scenario: UserScenario | None = None
        self._generator: Generator | None = None
        self._start_ns: int | None = None
        self._stop_at_s: float | None = None

    def prepare(self) -> Calibration | None:
        """Connects, or loads the user's scenario and makes its users; asks the null server, if there is one.

        Raises BenchError when the scenario cannot be used.
        """
        job = self._job
        if job.locustfile:
            from mlserve.bench.generator.user_scenario import UserScenario

            self._scenario = scenario = UserScenario(self._environment, job, self._share)
            scenario.make_users()
            observe, sink = scenario.observe, scenario.into(self._sink)
            self._generator = Generator(scenario.job, self._share, scenario, observe, sink)
            return None
        calibration = None
        if job.null_server is not None:
            from mlserve.bench.generator.calibration import calibrate

            calibration = calibrate(job, self._share, open_client)
        client: Client = open_client(job.address, job)
        self._generator = Generator(job, self._share, client, _observer(self._environment, job), self._sink)
        return calibration

    @property
    def elapsed_s(self) -> float:
        """Since the run's first instant; far below zero before one is known."""
        return float("-inf") if self._start_ns is None else (time.monotonic_ns() - self._start_ns) / 1e9

    def run(self, start_ns: int) -> Total:
        """Sends the share, whose first instant is `start_ns` on the monotonic clock; waits for the last answer."""
        assert self._generator is not None, "prepare it first"
        self._start_ns = start_ns
        if self._stop_at_s is not None:
            self.stop(self._stop_at_s)
        if self._scenario is None:
            return self._generator.run(start_ns)
        self._scenario.start_ns = start_ns
        return self._scenario.total_of(self._generator.run(start_ns))

    def stop(self, at_s: float) -> None:
        """Sends what is due before `at_s`, and nothing after; may be called before the first instant, too."""
        if self._start_ns is None:
            self._stop_at_s = at_s
        elif self._generator is not None:
            if self.elapsed_s < 0:
                gevent.spawn_later(-self.elapsed_s, self._generator.stop, at_s)
            else:
                self._generator.stop(at_s)

    def flush(self) -> None:
        """Hands over the rows so far; also where the run is cut short."""
        if self._generator is not None and self._start_ns is not None:
            self._generator.flush()


class _NotAnswered(Exception):
    """What Locust is told of a request that was not answered well."""


def _observer(environment: Any, job: Job) -> Callable[[Sample], None]:
    """Writes each request into Locust's statistics, which costs two thirds of firing its event for it; nobody else
    listens to that here.
    """
    log_request, log_error = environment.stats.log_request, environment.stats.log_error
    method, name = job.plan.protocol, job.name
    faults: dict[str, _NotAnswered] = {}

    def observe(sample: Sample) -> None:
        if sample.status == DROPPED or sample.done_ns is None:
            return
        log_request(method, name, (sample.done_ns - sample.scheduled_ns) / 1e6, 0)
        if sample.status != OK:
            log_error(method, name, faults.setdefault(sample.status, _NotAnswered(sample.status)))

    return observe
