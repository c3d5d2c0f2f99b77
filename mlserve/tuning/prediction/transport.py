"""What a request costs beside its run: measured once for each protocol, on a server whose model computes nothing."""

import time
from pathlib import Path

import msgspec

from mlserve.bench.dialects.find import find_dialect
from mlserve.bench.generator.job import Address, Job
from mlserve.bench.payload.payload import Timed, make_payload
from mlserve.bench.scratch import scratch_folder
from mlserve.errors import EngineError
from mlserve.runs.load import Plan, Protocol
from mlserve.tuning.prediction.asking_process import AskingJob, AskingResult
from mlserve.tuning.prediction.child import run_child
from mlserve.tuning.prediction.costs import After
from mlserve.tuning.prediction.costs import Path as Way
from mlserve.tuning.prediction.hollow import write_hollow
from mlserve.tuning.prediction.processor import MOST_WAITED
from mlserve.tuning.prediction.times import PathTimes, Phase
from mlserve.tuning.prediction.version import Version
from mlserve.tuning.serving import Served, ServerOptions, file_subject, serving

__all__ = ["measure_paths", "way_of"]

_MODULE = "mlserve.tuning.prediction.asking_process"
# With a delay, however short, a server never runs a model on its event loop.
_NEVER_INLINE_MS = 0.001
# At least so much of what passes outside a run is the client's and the network's.
_LEAST_OUTSIDE = 0.2


def measure_paths(version: Version, protocol: Protocol, plan: Plan, budget_s: float) -> tuple[PathTimes, PathTimes]:
    """What requests like those of `version` cost over `protocol`: where runs are on the event loop, and where not.

    Takes about `budget_s`, and starts two servers. Raises EngineError where the server does not answer.
    """
    with scratch_folder() as folder:
        path = folder / "hollow.onnx"
        write_hollow(path, version.inputs, version.outputs)
        inline, queued = (
            _measure(version, path, protocol, plan, inline=inline, budget_s=budget_s / 2) for inline in (True, False)
        )
    return inline, queued


def _measure(
    version: Version, path: Path, protocol: Protocol, plan: Plan, *, inline: bool, budget_s: float
) -> PathTimes:
    options = ServerOptions(threads=1, max_delay_ms=0.0 if inline else _NEVER_INLINE_MS)
    with serving(str(path), path.parent, options) as served:
        timed, usual = (_job(version, served, path, protocol, plan, timed=timed) for timed in ("all", "sampled"))
        job = AskingJob(timed=timed, usual=usual, pids=served.pids, cpus=served.settings.cpus, budget_s=budget_s)
        found = run_child(_MODULE, job, served.spare_cpus, AskingResult)
        if found.others > MOST_WAITED:  # others may be done by now
            again = run_child(_MODULE, job, served.spare_cpus, AskingResult)
            found = found if again.fault else min(found, again, key=lambda each: each.others)
    if found.cost is None:
        raise EngineError(f"what {protocol} costs cannot be measured: {found.fault}")
    return PathTimes(
        protocol=protocol,
        interface=version.interface,
        inline=inline,
        turn_s=found.cost.turn_s,
        request_s=found.cost.request_s,
        client_s=found.client_s,
        phases=found.phases,
        waited=found.others,
        taken_at_s=time.time(),
    )


def _job(version: Version, served: Served, path: Path, protocol: Protocol, plan: Plan, *, timed: Timed) -> Job:
    subject = file_subject(served, path, protocol, version.wish)
    wish = msgspec.structs.replace(version.wish, timed=timed, expected=None)
    plan = msgspec.structs.replace(plan, protocol=protocol, check_answers=False)
    payload = make_payload(subject.target, version.inputs, plan, wish)
    target, dialect = subject.target, find_dialect(protocol)
    return Job(
        plan=plan,
        name="hollow",
        address=Address(dialect.transport, target.host, target.port, dialect.path(target)),
        requests=payload.requests,
        order=payload.order,
        directory="",
    )


def way_of(times: PathTimes) -> Way:
    """The costs of `times` as the simulation takes them."""
    return Way(
        request_s=times.request_s,
        client_s=times.client_s,
        after=tuple(_after(times, phase) for phase in times.phases),
    )


def _after(times: PathTimes, phase: Phase) -> After:
    turn_s = times.turn_s if phase.turn_s is None else min(phase.turn_s, times.turn_s)
    outside_s = tuple(_outside_s(each, turn_s + times.request_s) for each in phase.outside_s)
    return After(gap_s=phase.gap_s, turn_s=turn_s, outside_s=outside_s)


def _outside_s(whole_s: float, inside_s: float) -> float:
    return max(whole_s - inside_s, _LEAST_OUTSIDE * whole_s)
