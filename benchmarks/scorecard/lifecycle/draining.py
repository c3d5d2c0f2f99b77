"""B1: a server that is told to stop loses nothing, as long as who chooses among servers heeds its readiness."""

import threading
import time
from contextlib import suppress

import grpc
from grpc_health.v1 import health_pb2
from scorecard.capacity import find_capacity
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.driver import Driven, Load, driving
from scorecard.server import Server, serving_both, serving_known

__all__ = ["CASE"]

_SHARE = 0.7
_WAYS = ("http", "http-new", "grpc")
_STEP_S = {"seconds": 0.2, "short": 1.0, "long": 5.0}
_ROUNDS = {"seconds": 1, "short": 4, "long": 100}
_BEFORE_S = {"seconds": 0.5, "short": 2.0, "long": 5.0}
_LAME_DUCK_S, _DRAIN_S = 1.0, 20.0
# How often a load balancer asks here, and how late the answer may tell that the signal has come.
_PROBE_S, _MOST_S = 0.005, 0.1
# What the processes of a busy machine need to end.
_END_S = 5.0
# Much longer than the criterion allows.
_PATIENCE_S = 0.5

_HASTY = """
import os
import mlserve.serve.life.leaving as leaving

async def hasty(*_, **__):
    os._exit(0)

leaving.leave = hasty
"""


class _Probe:
    """A load balancer's eyes: readiness, liveness and gRPC's health of `server`, asked again and again."""

    def __init__(self, server: Server) -> None:
        self._server, self._over = server, threading.Event()
        self.turned_s = self.health_turned_s = 0.0
        self.dead: list[str] = []
        self._threads = [threading.Thread(target=one) for one in (self._watch_readiness, self._watch_liveness)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Asks no more."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _watch_readiness(self) -> None:
        with grpc.insecure_channel(self._server.endpoints.grpc) as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            while not self._over.wait(_PROBE_S) and not (self.turned_s and self.health_turned_s):
                with suppress(OSError, grpc.RpcError):
                    if not self.turned_s and self._server.request("GET", "/v2/health/ready").status == 503:
                        self.turned_s = time.perf_counter()
                    found = health_pb2.HealthCheckResponse.FromString(check(b"", timeout=5))
                    if not self.health_turned_s and found.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                        self.health_turned_s = time.perf_counter()

    def _watch_liveness(self) -> None:
        while not self._over.wait(_PROBE_S):
            try:
                status = self._server.request("GET", "/v2/health/live").status
            except OSError:  # the ports are closed: that is the end
                if self.turned_s and time.perf_counter() - self.turned_s > 0.8 * _LAME_DUCK_S:
                    return
                self.dead.append("refused")
            else:
                if status != 200:
                    self.dead.append(str(status))


def run(stage: Stage) -> Outcome:
    rounds: list[Outcome] = []
    flags = ("--workers", "2", "--lame-duck", f"{_LAME_DUCK_S:g}s", "--drain", f"{_DRAIN_S:g}s")
    with serving_both(stage.folder, *flags, plant=_HASTY) as (sound, hasty):
        coarse = stage.form == "seconds"
        mixed = Load(per_s=1, seconds=1, ways=_WAYS)
        capacity = find_capacity(
            sound.endpoints, mixed, _STEP_S[stage.form], first_per_s=800.0, halvings=1 if coarse else 3
        )
        per_s = _SHARE * capacity.per_s
        rounds.append(_stop_under_load(sound, per_s, _BEFORE_S[stage.form]))
        spoilt = _stop_under_load(hasty, min(per_s, 1000.0), 0.5)
    for number in range(1, _ROUNDS[stage.form]):
        folder = stage.folder / f"round-{number}"
        folder.mkdir()
        with serving_known(folder, *flags) as server:
            rounds.append(_stop_under_load(server, per_s, _BEFORE_S[stage.form]))
    bad = [outcome.found for outcome in rounds if not outcome.passed]
    return Outcome(
        passed=not bad,
        found="; ".join(bad[:3]) or f"{len(rounds)} signals; the last: {rounds[-1].found}",
        figures=(
            Figure("capacity", capacity.per_s, "requests/s"),
            Figure("signals", len(rounds)),
            *_worst(rounds),
        ),
        control=f"a server that ends at once when it is told to stop: {spoilt.found}",
        control_failed=not spoilt.passed,
    )


def _stop_under_load(server: Server, per_s: float, before_s: float) -> Outcome:
    """SIGTERM while it answers; the load goes elsewhere as soon as the readiness says so."""
    probe = _Probe(server)
    try:
        with driving(server.endpoints, Load(per_s=per_s, seconds=before_s + 30.0, ways=_WAYS)) as running:
            time.sleep(before_s)
            told_s = time.perf_counter()
            server.process.terminate()
            while not probe.turned_s and time.perf_counter() - told_s < _PATIENCE_S:
                time.sleep(_PROBE_S)
            running.stop()
        status = server.process.wait(_DRAIN_S + _END_S)
    finally:
        probe.end()
    return _judge(running.driven, probe, told_s, status, server.traceback)


def _judge(driven: Driven, probe: _Probe, told_s: float, status: int, traceback: str) -> Outcome:
    ready_s = probe.turned_s - told_s if probe.turned_s else float("inf")
    health_s = probe.health_turned_s - told_s if probe.health_turned_s else float("inf")
    faults = [
        driven.not_ok,
        f"readiness turned after {1e3 * ready_s:.0f} ms" if ready_s > _MOST_S else "",
        f"gRPC's health turned after {1e3 * health_s:.0f} ms" if health_s > _MOST_S else "",
        f"liveness: {', '.join(probe.dead[:3])}" if probe.dead else "",
        f"exit status {status}" if status else "",
        traceback,
    ]
    fault = "; ".join(filter(None, faults))
    return Outcome(
        passed=not fault,
        found=fault or f"{driven.count()} requests, all answered rightly; not ready {1e3 * ready_s:.0f} ms after",
        figures=(
            Figure("requests", driven.count()),
            Figure("lost, wrong, refused", driven.count() - driven.count("ok"), limit="0"),
            Figure("readiness 503 after the signal", 1e3 * ready_s, "ms", "below 100"),
            Figure("gRPC NOT_SERVING after the signal", 1e3 * health_s, "ms", "below 100"),
        ),
    )


def _worst(rounds: list[Outcome]) -> list[Figure]:
    """Counts over all rounds, and of times the longest."""
    by_round = zip(*(outcome.figures for outcome in rounds), strict=True)
    return [
        Figure(each[0].name, (max if each[0].unit else sum)(one.value for one in each), each[0].unit, each[0].limit)
        for each in by_round
    ]


CASE = Case(
    id="B1",
    title="SIGTERM at 70% of capacity",
    criterion="HTTP kept and new and gRPC, behind a balancer that heeds readiness: nothing lost, wrong or refused; "
    "readiness 503 and gRPC NOT_SERVING within 100 ms of the signal, liveness 200 to the end; exit 0",
    source="Triton #8253 and #6230, TF Serving #1853, TorchServe #2008 are open",
    run=run,
)
