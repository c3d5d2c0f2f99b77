"""A4: a queue takes exactly as many as it is told to, and says so at once to whoever is one too many."""

import time
from contextlib import ExitStack
from functools import partial

import grpc
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.known import publish
from scorecard.load.clients import Told, all_at_once, ask_grpc, ask_http
from scorecard.server import Server, serving_known

__all__ = ["CASE"]

_ROOM, _COME = 8, 10
_RUN_S = {"seconds": 0.15, "short": 0.5, "long": 2.0}
_AT_ONCE_S = 0.1
_FLAGS = ("--max-batch-rows", "1")
_SHED = ("503", "RESOURCE_EXHAUSTED")


def run(stage: Stage) -> Outcome:
    publish(stage.folder / "store", run_s=_RUN_S[stage.form])
    with ExitStack() as stack:
        bound = stack.enter_context(serving_known(stage.folder, *_FLAGS, "--max-queue-rows", str(_ROOM)))
        loose = stack.enter_context(serving_known(stage.folder, *_FLAGS, "--max-queue-rows", str(_ROOM + 1)))
        rounds = 1 if stage.form == "seconds" else 3
        told = {way: [_play(bound, way, _RUN_S[stage.form]) for _ in range(rounds)] for way in ("http", "grpc")}
        spoilt = _play(loose, "http", _RUN_S[stage.form])
    shed = [one for rounds_of in told.values() for each in rounds_of for one in each if one.status in _SHED]
    faults = [f"{way}: {fault}" for way, all_told in told.items() for each in all_told if (fault := _fault(each))]
    return Outcome(
        passed=not faults,
        found="; ".join(faults) or f"{len(shed)} refused in {2 * rounds} rounds, two in each, and all others answered",
        figures=(
            Figure("refused in a round", len(shed) / (2 * rounds), limit="exactly 2"),
            Figure("slowest refusal", 1e3 * max((one.took_s for one in shed), default=0.0), "ms", "at most 100"),
        ),
        control=f"a queue of one more: {_fault(spoilt) or 'nothing was found'}",
        control_failed=bool(_fault(spoilt)),
    )


def _play(server: Server, way: str, run_s: float) -> list[Told]:
    """One request that runs, and then ten at once."""
    with grpc.insecure_channel(server.endpoints.grpc) as channel:
        ask = partial(ask_grpc, channel) if way == "grpc" else partial(ask_http, server)

        def ask_later(number: int) -> Told:
            time.sleep(run_s / 3)  # the first one runs by then
            return ask(number)

        first, *others = all_at_once([partial(ask, 0), *(partial(ask_later, 1 + each) for each in range(_COME))])
    assert first.status in ("200", "OK"), first
    return others


def _fault(told: list[Told]) -> str:
    shed = [one for one in told if one.status in _SHED]
    late = [one for one in shed if one.took_s > _AT_ONCE_S]
    other = [one.status for one in told if one.status not in (*_SHED, "200", "OK")]
    mute = [one for one in shed if one.status == "503" and not one.retry_after.isdigit()]
    return ", ".join(
        [
            *([f"{len(shed)} were refused instead of 2"] if len(shed) != 2 else []),
            *([f"a refusal took {max(one.took_s for one in late):.2f} s"] if late else []),
            *([f"answered {other[0]}"] if other else []),
            *(["a refusal said not when to come again"] if mute else []),
        ]
    )


CASE = Case(
    id="A4",
    title="Exact bound of the queue",
    criterion="one request runs, 8 may wait, 10 come at once: exactly 2 are refused, within 100 ms, over HTTP and gRPC",
    source="Triton's test_max_queue_size",
    run=run,
)
