"""What a request costs beside its run: measured once for each protocol, on a server whose model computes nothing."""

import tempfile
from pathlib import Path

import msgspec

from mlserve.bench.dialects.find import find_dialect
from mlserve.bench.generator.job import Address, Job
from mlserve.bench.payload.payload import make_payload
from mlserve.errors import EngineError
from mlserve.runs.load import Plan, Protocol
from mlserve.tuning.prediction.asking_process import AskingJob, AskingResult
from mlserve.tuning.prediction.child import run_child
from mlserve.tuning.prediction.hollow import write_hollow
from mlserve.tuning.prediction.simulation import Path as Way
from mlserve.tuning.prediction.times import PathTimes
from mlserve.tuning.prediction.version import Version
from mlserve.tuning.serving import Served, ServerOptions, file_subject, serving

__all__ = ["measure_paths", "way_of"]

_MODULE = "mlserve.tuning.prediction.asking_process"
# With a delay, however short, a server never runs a model on its event loop.
_NEVER_INLINE_MS = 0.001
_LEAST_REQUEST_S = 1e-6
# At least so much of what passes outside a run is the client's and the network's.
_LEAST_OUTSIDE = 0.2


def measure_paths(version: Version, protocol: Protocol, plan: Plan, budget_s: float) -> tuple[PathTimes, PathTimes]:
    """What requests like those of `version` cost over `protocol`: where runs are on the event loop, and where not.

    Takes about `budget_s`, and starts two servers. Raises EngineError where the server does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="mlserve-hollow-") as folder:
        path = Path(folder) / "hollow.onnx"
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
        found = run_child(
            _MODULE, _job(version, served, path, protocol, plan, budget_s), served.spare_cpus, AskingResult
        )
    if found.rested is None or found.busy is None or found.full is None:
        raise EngineError(f"what {protocol} costs cannot be measured: {found.fault}")
    return PathTimes(
        protocol=protocol,
        interface=version.interface,
        inline=inline,
        rested=found.rested,
        busy=found.busy,
        full=found.full,
    )


def _job(version: Version, served: Served, path: Path, protocol: Protocol, plan: Plan, budget_s: float) -> AskingJob:
    subject = file_subject(served, path, protocol, version.wish)
    wish = msgspec.structs.replace(version.wish, timed="all", expected=None)
    plan = msgspec.structs.replace(plan, protocol=protocol, check_answers=False)
    payload = make_payload(subject.target, version.inputs, plan, wish)
    target, dialect = subject.target, find_dialect(protocol)
    job = Job(
        plan=plan,
        name="hollow",
        address=Address(dialect.transport, target.host, target.port, dialect.path(target)),
        requests=payload.requests,
        order=payload.order,
        directory="",
    )
    return AskingJob(job=job, rows=payload.requests[0].rows, pids=served.pids, budget_s=budget_s)


def way_of(times: PathTimes) -> Way:
    """The costs of `times` as the simulation takes them.

    Turns that hold many requests and turns that hold one tell what a turn costs and what a request of it.
    """
    busy, full = times.busy, times.full
    apart = busy.turns - full.turns
    turn_s = max(0.0, (busy.cpu_s - full.cpu_s) / apart) if apart > _LEAST_APART else 0.0
    request_s = max(_LEAST_REQUEST_S, full.cpu_s - turn_s * full.turns)
    inside_s = turn_s + request_s
    return Way(
        turn_s=turn_s,
        request_s=request_s,
        busy_s=tuple(_outside_s(each, inside_s) for each in busy.outside_s),
        rested_s=tuple(_outside_s(each, inside_s) for each in times.rested.outside_s),
        busy_gap_s=busy.gap_s,
        rested_gap_s=times.rested.gap_s,
    )


_LEAST_APART = 0.1


def _outside_s(whole_s: float, inside_s: float) -> float:
    return max(whole_s - inside_s, _LEAST_OUTSIDE * whole_s)
