"""A5: no request is begun that nobody waits for any more, and whoever waited in vain is told so in time."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from math import floor
from pathlib import Path
from typing import Any

import grpc
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.known import publish
from scorecard.load.clients import Told, all_at_once, ask_grpc, ask_http, executed
from scorecard.server import Server, serving_known

__all__ = ["CASE"]

_WAITING, _SPOILT = 50, 8
_LIMIT_S = 0.2
_WITHIN_S = 0.05
_TRIES = 3
_LOGGED_S = 2.0
# Twice the limit: those who come last wait for theirs a little later than those who come first.
_RUN_S = {"seconds": 0.4, "short": 0.4, "long": 1.0}
_LATE = ("504", "DEADLINE_EXCEEDED")
_FLAGS = ("--max-batch-rows", "1", "--log-requests", "1", "--log-file")

# Deadlines are read, and nobody minds them.
_HEEDLESS = """
import mlserve.serve.batching.window as window

right = window.BatchWindow.push

def patient(self, ticket, rows, now_s, key=None, priority=0, deadline_s=float("inf")):
    return right(self, ticket, rows, now_s, key, priority)

window.BatchWindow.push = patient
"""

Ask = Callable[[Server, grpc.Channel, int], Told]
_WAYS: dict[str, Ask] = {
    "V2's timeout": lambda server, _, number: ask_http(server, number, parameters={"timeout": round(_LIMIT_S * 1e6)}),
    "HTTP header": lambda server, _, number: ask_http(
        server, number, headers={"x-envoy-expected-rq-timeout-ms": str(round(_LIMIT_S * 1e3))}
    ),
    "grpc-timeout": lambda _, channel, number: ask_grpc(channel, number, _LIMIT_S),
}


def run(stage: Stage) -> Outcome:
    run_s = _RUN_S[stage.form]
    publish(stage.folder / "store", run_s=run_s)
    logs = [stage.folder / f"requests-{number}.log" for number in range(3)]
    starting = [(logs[0], "guarded", ""), (logs[1], "guarded", _HEEDLESS), (logs[2], "grpcio", "")]
    if stage.form == "seconds":
        starting.pop()
    with ExitStack() as stack, ThreadPoolExecutor(3) as threads:
        servers = [
            threads.submit(
                stack.enter_context, serving_known(stage.folder, *_FLAGS, log, "--grpc-transport", grpc_by, plant=plant)
            )
            for log, grpc_by, plant in starting
        ]
        guarded, heedless, *others = [each.result() for each in servers]
        found = {name: _play(guarded, ask, logs[0]) for name, ask in _WAYS.items()}
        for grpcio in others:
            found["grpc-timeout by grpcio"] = _play(grpcio, _WAYS["grpc-timeout"], logs[2])
        spoilt = _round(heedless, _WAYS["V2's timeout"], logs[1], _SPOILT)
        tracebacks = "".join(each.traceback for each in (guarded, *others))
    faults = [f"{name}: {each.fault}" for name, each in found.items() if each.fault]
    worst = max(found.values(), key=lambda each: each.executed - each.most)
    slowest_s = max(each.slowest_s for each in found.values())
    return Outcome(
        passed=not faults and not tracebacks,
        found="; ".join(faults) + tracebacks
        or f"of {_WAITING} each, {', '.join(f'{each.executed} ran by {name}' for name, each in found.items())}",
        figures=(
            Figure("run", run_s, "s"),
            Figure("executed of 50", worst.executed, limit=f"at most {worst.most}"),
            Figure("begun after the deadline", sum(each.begun_late for each in found.values()), limit="0"),
            Figure("slowest word after the deadline", 1e3 * (slowest_s - _LIMIT_S), "ms", "at most 50"),
        ),
        control=f"a server that heeds no deadline: {spoilt.fault or 'nothing was found'}",
        control_failed=bool(spoilt.fault),
    )


class _Found:
    """What became of one round: what clients were told, how many ran, how long those had waited, and how long the
    shortest run took.
    """

    def __init__(self, told: list[Told], ran: int, waits_s: list[float], shortest_s: float) -> None:
        late = [one for one in told if one.status in _LATE]
        self.executed, self.most = ran, 1 + floor(_LIMIT_S / shortest_s)
        self.begun_late = sum(wait_s > _LIMIT_S + 1e-3 for wait_s in waits_s)
        self.slowest_s = max((one.took_s for one in late), default=0.0)
        other = {one.status for one in told} - {*_LATE, "200", "OK"}
        self.fault = ", ".join(
            [
                *([f"{ran} were run, where {self.most} could be"] if ran > self.most else []),
                *([f"{self.begun_late} were begun after their deadline"] if self.begun_late else []),
                *(["nobody was late"] if not late else []),
                *([f"answered {sorted(other)}"] if other else []),
                *(
                    [f"told {1e3 * (self.slowest_s - _LIMIT_S):.0f} ms after the deadline"]
                    if self.slowest_s > _LIMIT_S + _WITHIN_S
                    else []
                ),
            ]
        )


def _play(server: Server, ask: Ask, log: Path) -> _Found:
    """Asked again where all is well but for the time a word took: other work on the machine keeps that, too."""
    for _ in range(_TRIES):
        found = _round(server, ask, log)
        if not found.fault.startswith("told"):
            break
    return found


def _round(server: Server, ask: Ask, log: Path, count: int = _WAITING) -> _Found:
    """All at once, each with the deadline; then one without, behind which nothing can be left to run."""
    before = executed(server)
    lines = len(_lines(log))
    with grpc.insecure_channel(server.endpoints.grpc) as channel:
        told = all_at_once([partial(ask, server, channel, number) for number in range(count)])
        ask_http(server, count)
    have_run = executed(server) - before
    ran = _logged_runs(log, lines, have_run)
    waits_s = [each["queue_s"] for each in ran[:-1]]  # the last of them is the one without a deadline
    # How long runs take was found out before, and a machine may have become faster.
    return _Found(told, have_run - 1, waits_s, min(each["compute_s"] for each in ran))


def _logged_runs(log: Path, lines: int, count: int) -> list[dict[str, Any]]:
    """What `log` says, behind so many lines, of requests that were run: `count` of them, if they come in time."""
    until_s = time.monotonic() + _LOGGED_S
    while True:
        begun = [json.loads(line) for line in _lines(log)[lines:]]
        ran = [each for each in begun if each["outcome"] == "ok"]
        if len(ran) >= count or time.monotonic() > until_s:
            return ran
        time.sleep(0.01)


def _lines(log: Path) -> list[str]:
    """The whole lines: of one that is just being written a reader may see the first part."""
    return log.read_text().split("\n")[:-1] if log.exists() else []


CASE = Case(
    id="A5",
    title="Deadlines in the queue",
    criterion="50 requests with 200 ms each wait for a model that runs for a second: none is begun after its deadline, "
    "no more are run than could begin, and the others are told within 50 ms of their deadline; by V2's timeout, by a "
    "header, by grpc-timeout on both transports",
    source="TensorFlow Serving #1265, Triton's timeout",
    run=run,
)
