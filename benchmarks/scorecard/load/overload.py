"""A2: three times too much is asked, and the server does what it can, tells the others at once, and stays itself."""

import http.client
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
from scorecard.case import Case, Figure, Form, Outcome, Stage
from scorecard.driver import Load, Way, drive, driving
from scorecard.known import publish
from scorecard.server import Server, serving_known

from mlserve.stats import quantile

__all__ = ["CASE"]

_RUN_S, _ROWS = 0.02, 4
_TIMES_CAPACITY = 3.0
_QUIET_S = {"seconds": 0.8, "short": 2.0, "long": 10.0}
_WAIT_S = {"seconds": 0.5, "short": 1.0, "long": 2.0}
_SECONDS = {"seconds": 1.5, "short": 12.0, "long": 60.0}
_PROBED = ("/v2/health/live", "/metrics")
_PROBE_S, _PROBE_EVERY_S = 0.1, 0.05
_GOODPUT = 0.9
_PLATEAU = 1.1
_AFTER_S = 2.0
# Of a dozen requests the middle one varies by more.
_BACK = {"seconds": 1.25, "short": 1.1, "long": 1.1}
_TRIES = 3
_WAYS: tuple[Way, ...] = ("http", "http", "grpc")
_FLAGS = ("--max-batch-rows", str(_ROWS))


def run(stage: Stage) -> Outcome:
    wait_s = _WAIT_S[stage.form]
    publish(stage.folder / "store", run_s=_RUN_S)
    with ExitStack() as stack, ThreadPoolExecutor(2) as threads:
        starting = [
            serving_known(stage.folder, *_FLAGS, "--max-wait", f"{wait_s}s"),
            serving_known(stage.folder, *_FLAGS, "--max-wait", "1h", "--drain", "1h", "--max-queue-rows", "1000000"),
        ]
        servers = [threads.submit(stack.enter_context, each) for each in starting]
        bounded, unbounded = [each.result() for each in servers]
        for plays in range(1, _TRIES + 1):  # noqa: B007  # told below
            played = _Played(bounded, stage.form, _SECONDS[stage.form], _QUIET_S[stage.form])
            if not played.fault or played.is_wrong:
                break
        spoilt = _Played(unbounded, stage.form, 0.6 + wait_s, 0.5, played.capacity_per_s)
        unbounded.process.kill()  # its queue holds more than anybody waits for
    return Outcome(
        passed=not played.fault and not bounded.traceback,
        found=played.fault + bounded.traceback
        or f"{played.driven.count('ok')} answered, {played.driven.count('shed')} refused at three times the capacity",
        figures=(*played.figures, Figure("plays", plays, limit=f"at most {_TRIES}")),
        control=f"a queue without bounds: {spoilt.fault or 'nothing was found'}",
        control_failed=bool(spoilt.fault),
    )


class _Played:
    """Quiet, full, three times too much, quiet again, and full again. A known `capacity_per_s` is not measured."""

    def __init__(self, server: Server, form: Form, seconds: float, quiet_s: float, capacity_per_s: float = 0.0) -> None:
        self.wait_s, self.back = _WAIT_S[form], _BACK[form]
        quiet = Load(per_s=15, seconds=quiet_s)
        self.before_s = drive(server.endpoints, quiet).quantile_s(0.5)
        before_per_s = capacity_per_s or _capacity_per_s(server, self.wait_s)
        load = Load(per_s=_TIMES_CAPACITY * max(before_per_s, _ROWS / _RUN_S), seconds=seconds, ways=_WAYS, seed=2)
        probing = _Probing(server)
        with driving(server.endpoints, load) as running, probing:
            while running.now_s < seconds:
                time.sleep(0.05)
        self.driven = running.driven
        self.probes_s, self.failed_probes, self.rss_bytes = probing.took_s, probing.failed, probing.rss_bytes
        time.sleep(min(_AFTER_S, quiet_s))
        self.after_s = drive(server.endpoints, quiet).quantile_s(0.5)
        # On both sides: the machine's own speed may drift by a tenth meanwhile.
        self.capacity_per_s = capacity_per_s or (before_per_s + _capacity_per_s(server, self.wait_s)) / 2

    @property
    def goodput_per_s(self) -> float:
        """Good answers a second while the load went on, after the first tenth of it."""
        return self.driven.per_s(from_s=0.1 * self.driven.load.seconds)

    @property
    def service_s(self) -> float:
        """The p99 of a run with nobody before it, about: twice what the middle one takes."""
        return 2 * max(self.before_s, _RUN_S)

    @property
    def growth(self) -> float:
        """The memory at the end as a share of that in the middle."""
        half = len(self.rss_bytes) // 2
        return self.rss_bytes[-1] / self.rss_bytes[half] if self.rss_bytes else float("nan")

    @property
    def is_wrong(self) -> bool:
        """Whether something happened that no other work on the machine excuses."""
        return bool(self.driven.fault or self.driven.count("error") or self.failed_probes)

    @property
    def fault(self) -> str:
        """What is not as it should be; empty for nothing."""
        driven, probe_s = self.driven, _p99_s(self.probes_s)
        accepted_s, limit_s = driven.quantile_s(0.99), self.wait_s + 2 * self.service_s
        faults = [
            driven.fault,
            f"{driven.count('error')} errors: {driven.examples('error')[:1]}" if driven.count("error") else "",
            f"goodput {self.goodput_per_s / self.capacity_per_s:.2f} of the capacity"
            if not self.goodput_per_s >= _GOODPUT * self.capacity_per_s
            else "",
            f"the p99 of the accepted was {accepted_s:.2f} s, with {limit_s:.2f} s allowed"
            if not accepted_s <= limit_s
            else "",
            "nothing was refused" if not driven.count("shed") else "",
            f"memory still grew, to {self.growth:.2f} times" if not self.growth <= _PLATEAU else "",
            f"{self.failed_probes} of health and metrics failed" if self.failed_probes else "",
            f"the p99 of health and metrics was {1e3 * probe_s:.0f} ms" if not probe_s <= _PROBE_S else "",
            f"afterwards the p50 was {self.after_s / self.before_s:.2f} times that before"
            if not self.after_s <= self.back * self.before_s
            else "",
        ]
        return "; ".join(filter(None, faults))

    @property
    def figures(self) -> tuple[Figure, ...]:
        """What was measured."""
        return (
            Figure("capacity", self.capacity_per_s, "requests/s"),
            Figure("load", self.driven.load.per_s, "requests/s"),
            Figure("goodput", 100 * self.goodput_per_s / self.capacity_per_s, "% of capacity", "at least 90"),
            Figure("refused", self.driven.count("shed")),
            Figure("p99 of the accepted", 1e3 * self.driven.quantile_s(0.99), "ms",
                   f"at most {1e3 * (self.wait_s + 2 * self.service_s):.0f}"),
            Figure("p99 of the refused", 1e3 * self.driven.quantile_s(0.99, "shed"), "ms"),
            Figure("p99 of health and metrics", 1e3 * _p99_s(self.probes_s), "ms", "at most 100"),
            Figure("memory at the end", self.growth, "times that in the middle", "at most 1.1"),
            Figure("p50 afterwards", self.after_s / self.before_s, "times that before", f"at most {self.back:g}"),
            Figure("driver's core", 100 * self.driven.cpu_share, "%"),
        )  # fmt: skip


def _capacity_per_s(server: Server, wait_s: float) -> float:
    """Asked in the same ways as the overload, and for health and metrics, too, which share the core with the model;
    until the queue is full, which takes twice its bound at this load: to refuse is not the capacity's.
    """
    full = Load(per_s=1.5 * _ROWS / _RUN_S, seconds=2 * wait_s, ways=_WAYS, seed=1)
    with _Probing(server):
        return drive(server.endpoints, full).per_s(from_s=0.1 * full.seconds)


class _Probing:
    """Asks for health and metrics while it is entered, and looks at the server's memory."""

    def __init__(self, server: Server) -> None:
        self._server, self._ending = server, threading.Event()
        self.took_s, self.failed, self.rss_bytes = list[float](), 0, list[int]()

    def __enter__(self) -> None:
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._ending.wait(_PROBE_EVERY_S):
            for path in _PROBED:
                started_s = time.perf_counter()
                try:
                    good = self._server.request("GET", path).status == http.client.OK
                except OSError:
                    good = False
                self.took_s.append(time.perf_counter() - started_s)
                self.failed += not good
            self.rss_bytes.append(self._server.rss_bytes())


def _p99_s(took_s: list[float]) -> float:
    return quantile(np.array(took_s), 0.99) if took_s else float("nan")


CASE = Case(
    id="A2",
    title="Three times the capacity",
    criterion="at least 90% of the capacity is answered, within the bound of the queue and two service times (p99); "
    "all others are refused; memory is flat; health and metrics are answered within 100 ms (p99), all of them; within "
    "2 s afterwards the p50 is back within 10% (in the form of seconds, which asks a dozen requests: 25%)",
    source="TensorFlow Serving's batching README, Envoy's overload manager",
    run=run,
)
