"""C1: workers are killed under load, again and again."""

import time

import psutil
from scorecard.capacity import find_capacity_for
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.driver import Driven, Load, driving
from scorecard.server import Server, serving_both

__all__ = ["CASE", "listens"]

_SHARE = 0.5
_WAYS = ("http", "http-new", "grpc")
_STEP_S = {"seconds": 0.2, "short": 1.0, "long": 5.0}
_KILLS = {"seconds": 1, "short": 4, "long": 12}
_EVERY_S = {"seconds": 1.0, "short": 5.0, "long": 5.0}
_MOST_S = 2.0

# Nobody takes the place of a worker that has died, nor speaks for it.
_NO_SUCCESSOR = """
import sys
import mlserve.serve.life.last_words as last_words

last_words.appoint = lambda: None
if "serve" in sys.argv:
    import mlserve.serve.supervisor as supervisor

    supervisor._Supervisor._look = lambda *_: None
"""


class _Replaced(list[float]):
    """After how many seconds each killed worker had a successor that has ports open; infinite for never."""

    def wait(self, server: Server, before: set[int], patience_s: float) -> None:
        """Notes how long it takes from now until as many workers as before serve, one of them new."""
        started_s = time.monotonic()
        while time.monotonic() - started_s < patience_s:
            serving = {worker.pid for worker in server.workers if listens(worker)}
            if len(serving) >= len(before) and serving - before:
                self.append(time.monotonic() - started_s)
                return
            time.sleep(0.02)
        self.append(float("inf"))


def run(stage: Stage) -> Outcome:
    began_s = time.monotonic()
    with serving_both(stage.folder, "--workers", "2", plant=_NO_SUCCESSOR) as (sound, broken):
        start_s = time.monotonic() - began_s
        mixed = Load(per_s=1, seconds=1, ways=_WAYS)
        capacity = find_capacity_for(_SHARE, stage.form, sound.endpoints, mixed, _STEP_S[stage.form], first_per_s=400.0)
        per_s = capacity.share(_SHARE, stage.form)
        outcome = _play(sound, per_s, start_s, _KILLS[stage.form], _EVERY_S[stage.form])
        spoilt = _play(broken, min(per_s, 500.0), start_s, 1, 0.5)
    return Outcome(
        passed=outcome.passed and not sound.traceback,
        found=outcome.found + sound.traceback,
        figures=(Figure("capacity", capacity.per_s, "requests/s"), *outcome.figures),
        control=f"a server whose dead workers nobody replaces or speaks for: {spoilt.found}",
        control_failed=not spoilt.passed,
    )


def _play(server: Server, per_s: float, start_s: float, kills: int, every_s: float) -> Outcome:
    """`start_s` is how long this machine takes to start a server."""
    replaced, patience_s = _Replaced(), _MOST_S + start_s + 1.0
    load = Load(per_s=per_s, seconds=kills * (every_s + patience_s) + 2 * every_s, ways=_WAYS)
    with driving(server.endpoints, load) as running:
        time.sleep(every_s / 2)
        for number in range(kills):
            workers = server.workers
            workers[number % len(workers)].kill()
            began_s = time.monotonic()
            replaced.wait(server, {worker.pid for worker in workers}, patience_s)
            time.sleep(max(every_s - (time.monotonic() - began_s), 0.0))
        running.stop()
    return _judge(running.driven, replaced, start_s, _count_zombies(server))


def _judge(driven: Driven, replaced: _Replaced, start_s: float, zombies: int) -> Outcome:
    lost = driven.count("lost")
    late_s = max(replaced) - start_s
    faults = [
        f"{lost} requests had no answer: {'; '.join(driven.examples('lost')[:2])}" if lost else "",
        f"{driven.count('wrong')} wrong answers" if driven.count("wrong") else "",
        f"a successor served {max(replaced):.2f} s after a kill, of which starting takes {start_s:.2f} s"
        if late_s > _MOST_S
        else "",
        f"{zombies} zombies" if zombies else "",
    ]
    fault = "; ".join(filter(None, faults))
    good = f"{len(replaced)} kills, {driven.count()} requests; each that failed was told so"
    return Outcome(
        passed=not fault,
        found=fault or good,
        figures=(
            Figure("kills", len(replaced)),
            Figure("requests", driven.count()),
            Figure("ok", driven.count("ok")),
            Figure("failed, and told so", driven.count("shed", "error")),
            Figure("without an answer", lost, limit="0"),
            Figure("without an answer, per kill", lost / len(replaced)),
            Figure("longest until a successor serves", max(replaced), "s", f"at most {_MOST_S + start_s:.2f}"),
        ),
    )


def _count_zombies(server: Server) -> int:
    """Dead children that nobody has collected."""
    return sum(child.status() == psutil.STATUS_ZOMBIE for child in server.supervisor.children(recursive=True))


def listens(worker: psutil.Process) -> bool:
    """Whether it has its ports open: HTTP's, which it may have from the start, and gRPC's."""
    try:
        return len({one.laddr.port for one in worker.net_connections() if one.status == "LISTEN"}) >= 2
    except psutil.Error:
        return False


CASE = Case(
    id="C1",
    title="Workers killed at 50% of capacity",
    criterion="at half the capacity, and 3,000/s at most: "
    "only requests of the killed worker fail, each told so by 503 or UNAVAILABLE; it is replaced within 2 s "
    "and the time that starting takes; no zombie",
    source="TorchServe recovers within 5 minutes, Ray checks health every 10 s",
    run=run,
)
