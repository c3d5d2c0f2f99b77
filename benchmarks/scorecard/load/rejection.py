"""A3: to refuse costs next to nothing, and says when to come again."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.driver import Driven, Load, Way, drive
from scorecard.known import publish
from scorecard.server import serving_known

__all__ = ["CASE"]

_RUN_S, _ROWS = 0.02, 4
_TIMES_CAPACITY = 3.0
# Of the refused, nine of ten and ninety-nine of a hundred.
_PROMPT_S, _SHED_S = 0.005, 0.02
_TRIES = 3
_SECONDS = {"seconds": 1.0, "short": 8.0, "long": 60.0}
_FLAGS = ("--max-batch-rows", str(_ROWS), "--max-queue-rows", "16")
_WAYS: tuple[Way, ...] = ("http", "http", "grpc")

# It thinks for a while before it refuses, and says not when to come again.
_RELUCTANT = """
import time
import mlserve.serve.transports.http_reply as http_reply
import mlserve.serve.batching.window as window

right = window.BatchWindow._overloaded

def reluctant(self, wait_s):
    time.sleep(0.01)
    return right(self, wait_s)

window.BatchWindow._overloaded = reluctant
http_reply.retry_field = lambda status, retry_after_s: b""
"""


def run(stage: Stage) -> Outcome:
    publish(stage.folder / "store", run_s=_RUN_S)
    with ExitStack() as stack, ThreadPoolExecutor(2) as threads:
        starting = [serving_known(stage.folder, *_FLAGS, plant=plant) for plant in ("", _RELUCTANT)]
        servers = [threads.submit(stack.enter_context, each) for each in starting]
        sound, reluctant = [each.result() for each in servers]
        flood = drive(sound.endpoints, Load(per_s=2 * _ROWS / _RUN_S, seconds=0.6))
        capacity_per_s = flood.count("ok") / flood.took_s
        too_much_per_s = _TIMES_CAPACITY * max(capacity_per_s, _ROWS / _RUN_S)
        for plays in range(1, _TRIES + 1):  # noqa: B007  # told below
            load = Load(per_s=too_much_per_s, seconds=_SECONDS[stage.form], ways=_WAYS)
            driven = drive(sound.endpoints, load)
            if not _fault(driven) or driven.fault:  # what was lost or wrong is not asked again
                break
        spoilt = drive(reluctant.endpoints, Load(per_s=load.per_s, seconds=1.0, ways=_WAYS))
    fault = _fault(driven)
    shed_s = {way: driven_quantile_s(driven, way) for way in ("http", "grpc")}
    return Outcome(
        passed=not fault and not sound.traceback,
        found=fault + sound.traceback
        or f"{driven.count('shed')} of {driven.count()} refused, p99 {1e3 * driven.quantile_s(0.99, 'shed'):.1f} ms",
        figures=(
            Figure("capacity", capacity_per_s, "requests/s"),
            Figure("load", driven.load.per_s, "requests/s"),
            Figure("refused", driven.count("shed")),
            Figure("p50 of refusals", 1e3 * driven.quantile_s(0.5, "shed"), "ms"),
            Figure("p90 of refusals", 1e3 * driven.quantile_s(0.9, "shed"), "ms", "below 5"),
            Figure("p99 of refusals", 1e3 * driven.quantile_s(0.99, "shed"), "ms", "below 20"),
            Figure("p99 over HTTP", 1e3 * shed_s["http"], "ms"),
            Figure("p99 over gRPC", 1e3 * shed_s["grpc"], "ms"),
            Figure("driver's core", 100 * driven.cpu_share, "%"),
            Figure("plays", plays, limit=f"at most {_TRIES}"),
        ),
        control=f"a server that thinks before it refuses, without Retry-After: {_fault(spoilt) or 'nothing was found'}",
        control_failed=bool(_fault(spoilt)),
    )


def driven_quantile_s(driven: Driven, way: str) -> float:
    """The p99 of refusals that came that way; nan where there are none."""
    import numpy as np

    from mlserve.stats import quantile

    found = [one.latency_s for one in driven.of("shed") if one.way == way]
    return quantile(np.array(found), 0.99) if found else float("nan")


def _fault(driven: Driven) -> str:
    refused = {(one.way, one.status) for one in driven.of("shed")}
    error = driven.count("error")
    faults = [
        driven.fault,
        f"{error} were refused without a word on when to come again: {driven.examples('error')[0]}" if error else "",
        f"refusals came as {sorted(refused)}"
        if not refused <= {("http", "503"), ("grpc", "RESOURCE_EXHAUSTED")}
        else "",
        "nobody was refused over one of the ways" if len(refused) < len(set(driven.load.ways)) else "",
    ]
    for share, most_s in ((0.9, _PROMPT_S), (0.99, _SHED_S)):
        if not driven.quantile_s(share, "shed") < most_s:
            faults.append(f"the p{100 * share:.0f} of refusals was {1e3 * driven.quantile_s(share, 'shed'):.1f} ms")
    return "; ".join(filter(None, faults))


CASE = Case(
    id="A3",
    title="What a refusal costs",
    criterion="at three times the capacity the p90 of refusals is below 5 ms, the p99 below 20; each has Retry-After, "
    "or is RESOURCE_EXHAUSTED over gRPC; nothing is lost or wrong",
    source="Ray's BackpressureConfig, gRPC's statuscodes.md",
    run=run,
)
