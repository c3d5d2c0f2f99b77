"""C2: a worker stands still, alive, with its ports open and requests in its hands."""

import time

import psutil
from scorecard.capacity import find_capacity_for
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.driver import Driven, Load, driving
from scorecard.server import Server, serving_both

__all__ = ["CASE"]

_SHARE = 0.5
_WAYS = ("http", "http-new", "grpc")
_STEP_S = {"seconds": 0.2, "short": 1.0, "long": 5.0}
_HANGS = {"seconds": 1, "short": 2, "long": 20}
_HANG_AFTER_S = {"seconds": 1.0, "short": 2.0, "long": 10.0}
_PATIENCE_S = 20.0
# The supervisor looks ten times a second; a busy machine lets it wait.
_MARGIN_S = 1.0

_BLIND = """
import mlserve.serve.life.process as process

process.WorkerProcess.is_hung = lambda *_: False
"""


def run(stage: Stage) -> Outcome:
    limit_s = _HANG_AFTER_S[stage.form]
    flags = ("--workers", "2", "--hang-after", f"{limit_s:g}s")
    with serving_both(stage.folder, *flags, plant=_BLIND) as (sound, blind):
        mixed = Load(per_s=1, seconds=1, ways=_WAYS)
        capacity = find_capacity_for(_SHARE, stage.form, sound.endpoints, mixed, _STEP_S[stage.form], first_per_s=400.0)
        per_s = capacity.share(_SHARE, stage.form)
        outcome = _play(sound, per_s, limit_s, _HANGS[stage.form], _PATIENCE_S)
        spoilt = _play(blind, min(per_s, 200.0), limit_s, 1, limit_s + 1.5)
    return Outcome(
        passed=outcome.passed and not sound.traceback,
        found=outcome.found + sound.traceback,
        figures=(Figure("capacity", capacity.per_s, "requests/s"), *outcome.figures),
        control=f"a supervisor that listens to no heart: {spoilt.found}",
        control_failed=not spoilt.passed,
    )


def _play(server: Server, per_s: float, limit_s: float, hangs: int, patience_s: float) -> Outcome:
    found_s, workers = list[float](), len(server.workers)
    load = Load(per_s=per_s, seconds=hangs * 2 * patience_s, ways=_WAYS, timeout_s=limit_s + 3.0)
    with driving(server.endpoints, load) as running:
        time.sleep(1.0)
        for _ in range(hangs):
            stopped = server.workers[0]
            stopped.suspend()
            began_s = time.monotonic()
            while _lives(stopped) and time.monotonic() - began_s < patience_s:
                time.sleep(0.02)
            found_s.append(time.monotonic() - began_s if not _lives(stopped) else float("inf"))
            while len(server.workers) < workers and time.monotonic() - began_s < patience_s:
                time.sleep(0.02)
            time.sleep(1.0)
        running.stop()
        if stopped.is_running() and found_s[-1] == float("inf"):
            stopped.kill()
    return _judge(running.driven, found_s, limit_s, workers)


def _judge(driven: Driven, found_s: list[float], limit_s: float, workers: int) -> Outcome:
    share = driven.count("ok") / driven.count()
    least, lost = (workers - 1) / workers, driven.count("lost")
    faults = [
        f"a worker that stands still was found after {max(found_s):.2f} s, with a limit of {limit_s:g} s"
        if max(found_s) > limit_s + _MARGIN_S
        else "",
        f"{share:.0%} of the requests were answered" if share < least else "",
        f"{driven.count('wrong')} wrong answers" if driven.count("wrong") else "",
        f"{lost} requests had no answer: {'; '.join(driven.examples('lost')[:2])}" if lost else "",
    ]
    fault = "; ".join(filter(None, faults))
    return Outcome(
        passed=not fault,
        found=fault
        or f"{len(found_s)} times found within {max(found_s):.2f} s; {share:.1%} of the requests were answered",
        figures=(
            Figure("hangs", len(found_s)),
            Figure("longest until found", max(found_s), "s", f"at most {limit_s:g}, and a look"),
            Figure("requests", driven.count()),
            Figure("answered", 100 * share, "%", f"at least {100 * least:.0f}"),
            Figure("failed, and told so", driven.count("shed", "error")),
            Figure("without an answer", lost, limit="0"),
        ),
    )


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


CASE = Case(
    id="C2",
    title="A worker stands still (SIGSTOP)",
    criterion="at half the capacity, and 3,000/s at most: "
    "found within --hang-after and replaced; what waited in it is told so or moved; of n workers' requests "
    "at least (n-1)/n are answered",
    source="TorchServe's response timeout is 120 s",
    run=run,
)
