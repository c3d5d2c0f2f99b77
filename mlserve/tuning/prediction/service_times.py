"""How long runs of a version take on the server's cores: measured once, in a process like the server's."""

import os
import time

from mlserve.bench.cores import own_cores, split_cores
from mlserve.engines.engine import EngineSettings
from mlserve.errors import EngineError
from mlserve.tuning.prediction.child import run_child
from mlserve.tuning.prediction.neighbours import busy_neighbours
from mlserve.tuning.prediction.times import EngineKey, EngineTimes
from mlserve.tuning.prediction.timing_process import TimingJob, TimingResult
from mlserve.tuning.prediction.version import Version
from mlserve.tuning.serving import ServerOptions

__all__ = ["core_count", "engine_key", "measure_engine"]

_MODULE = "mlserve.tuning.prediction.timing_process"


def core_count(options: ServerOptions) -> int:
    """How many cores a server with `options` has."""
    return len(split_cores(own_cores(), options.spare_cores)[0]) or os.cpu_count() or 1


def engine_key(version: Version, options: ServerOptions) -> EngineKey:
    """What the runs of a server with `options` are timed by; how many threads it has is as `serving` says."""
    cores = core_count(options)
    return EngineKey(
        model=version.name,
        sha256=version.sha256,
        engine=options.engine,
        compute_type=options.compute_type,
        device=options.device,
        threads=options.threads or max(1, cores // options.workers),
        cores=cores,
        requests=version.requests,
    )


def measure_engine(version: Version, options: ServerOptions, most_rows: int, budget_s: float) -> EngineTimes:
    """Times runs of 1, 2, 4, ... `most_rows` rows for about `budget_s`, and at least a few of each, beside generators'
    cores that are as busy as a load makes them.

    Raises EngineError where the engine cannot load or run the version so.
    """
    key = engine_key(version, options)
    settings = EngineSettings(device=key.device, threads=key.threads, engine=key.engine, compute_type=key.compute_type)
    job = TimingJob(
        path=str(version.path),
        settings=settings,
        bodies=tuple(request.body for request in version.payload.requests),
        most_rows=most_rows,
        budget_s=budget_s,
    )
    cpus, spare_cpus = split_cores(own_cores(), options.spare_cores)
    with busy_neighbours(spare_cpus):
        found = run_child(_MODULE, job, cpus, TimingResult)
    if found.fault:
        raise EngineError(f"{version.name} cannot be timed: {found.fault}")
    return EngineTimes(
        key=key,
        together=found.together,
        kinds=found.kinds,
        times=found.times,
        pace=found.pace,
        late_s=found.late_s,
        waited=found.waited,
        taken_at_s=time.time(),
    )
