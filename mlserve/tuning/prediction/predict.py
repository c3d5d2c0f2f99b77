"""What settings will do, foretold: the measured times of their parts, put together by simulation."""

import time
from collections.abc import Callable, Iterable, Sequence
from math import inf
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np

from mlserve.errors import UsageError
from mlserve.runs.load import Flat, Plan, Protocol
from mlserve.runs.machine import read_machine
from mlserve.tuning.evidence import Objective
from mlserve.tuning.opening import Source
from mlserve.tuning.prediction.costs import Costs, Runs
from mlserve.tuning.prediction.prediction import Prediction
from mlserve.tuning.prediction.replay import Replay
from mlserve.tuning.prediction.service_times import core_count, engine_key, measure_engine
from mlserve.tuning.prediction.simulated_setting import Load, Seen, SimulatedSetting
from mlserve.tuning.prediction.simulation import SimulatedServer
from mlserve.tuning.prediction.times import EngineKey, EngineTimes, ServiceTimes, read_times, write_times
from mlserve.tuning.prediction.transport import measure_paths, way_of
from mlserve.tuning.prediction.version import Version, open_version
from mlserve.tuning.setting import Setting

__all__ = ["Budget", "Predictor", "open_predictor"]

_GRPC = ("grpc", "tfserving-grpc")


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """About how long each engine, and each protocol, is measured (seconds)."""

    engine_s: float = 4.0
    protocol_s: float = 8.0


class Predictor:
    """Foretells of settings whose versions, engines and protocols were measured; a `Predicts`.

    The requests are those that a load by `plan` would send at the instants that it would send them; its rate is another
    for each question. Where a rate is asked for and borne, a higher one is sought only with `highest`, since that takes
    several times as long; without, it stands for the highest.
    """

    def __init__(self, times: ServiceTimes, versions: Iterable[Version], plan: Plan, *, highest: bool = True) -> None:
        """Raises UsageError for a plan without a rate that stays the same."""
        if plan.closed or plan.arrivals == "replay" or plan.shape != Flat():
            raise UsageError("a prediction is for a load of one rate; leave out --users, --replay and --shape")
        self._times, self._plan, self._highest = times, plan, highest
        self._versions = {version.name: version for version in versions}
        self._ways = {(each.protocol, each.interface, each.inline): way_of(each) for each in times.paths}
        self._tables: dict[EngineKey, Runs] = {}
        self._seen: dict[tuple[EngineKey, str, str], Seen] = {}

    def __call__(self, settings: Sequence[Setting], objective: Objective, rate_per_s: float | None) -> list[Prediction]:
        return [self._predict(setting, objective, rate_per_s) for setting in settings]

    def _predict(self, setting: Setting, objective: Objective, rate_per_s: float | None) -> Prediction:
        """A rate is borne where it is foretold to be: both come from the same simulation."""
        model = self._model(setting)
        if rate_per_s is None:
            rate, found = model.at_highest(objective)
            most_per_s = rate
        else:
            rate, found = rate_per_s, model.at(rate_per_s, objective)
            passed, failed = (rate, inf) if found.meets(objective) else (0.0, rate)
            sought = self._highest or not passed
            most_per_s = model.highest_rate(objective, passed, failed) if sought else rate
        return Prediction(
            setting=setting,
            rate_per_s=rate,
            p50_s=found.p50_s,
            p99_s=found.p99_s,
            objective_s=found.objective_s,
            mean_batch_rows=found.mean_batch_rows,
            utilization=found.utilization,
            max_rate_per_s=most_per_s,
            alone_per_s=model.alone_per_s,
            disturbed=self._times.disturbed,
        )

    def _model(self, setting: Setting) -> SimulatedSetting:
        version = self._versions.get(setting.model)
        if version is None:
            known = ", ".join(self._versions) or "none"
            raise UsageError(f"'{setting.model}' was not measured, so nothing is foretold of it; measured: {known}")
        options = setting.options
        engine = self._times.engine(engine_key(version, options), options.max_batch_rows)
        if engine is None:
            raise UsageError(f"{setting.model} was not measured as {options} has it; measure it first")
        ways = [self._ways.get((setting.protocol, version.interface, inline)) for inline in (True, False)]
        inline, queued = ways
        if inline is None or queued is None:
            raise UsageError(f"{setting.protocol} was not measured for {setting.model}; measure it first")
        server = SimulatedServer(
            workers=options.workers,
            cores=core_count(options),
            run_cores=min(engine.key.threads, engine.key.cores) if options.device == "cpu" else 0,
            max_rows=options.max_batch_rows if engine.together else 1,
            max_delay_s=options.max_delay_ms / 1e3,
            shared_connections=setting.protocol in _GRPC,
        )
        costs = Costs(runs=self._runs(engine), inline=inline, queued=queued)
        seen = self._seen.setdefault((engine.key, setting.protocol, version.interface), {})
        return SimulatedSetting(server, costs, self._load(version, engine), seen)

    def _load(self, version: Version, engine: EngineTimes) -> Load:
        requests, order = version.payload.requests, version.payload.order
        rows = [requests[number].rows if engine.together else 1 for number in order]
        return Load(self._plan, rows, [engine.kinds[number] for number in order])

    def _runs(self, engine: EngineTimes) -> Runs:
        """Every number of rows up to the most, from those that were timed."""
        if engine.key not in self._tables:
            kinds = range(max(engine.kinds) + 1)
            self._tables[engine.key] = Runs(
                [_filled(engine, kind, rested=False) for kind in kinds],
                [_filled(engine, kind, rested=True) for kind in kinds],
                self._replay(engine) if engine.pace.took_s else None,
                engine.late_s,
            )
        return self._tables[engine.key]

    def _replay(self, engine: EngineTimes) -> Replay:
        """What was seen of the machine while runs on cores like those of `engine` were timed, whatever their model was:
        so that all of them are foretold under the same.
        """
        paces = [engine.pace]
        paces += [each.pace for each in self._times.engines if each.key != engine.key and _adds_to(each, engine)]
        return Replay(
            [took_s for pace in paces for took_s in pace.took_s],
            [typical_s for pace in paces for typical_s in pace.typical_s],
        )


def open_predictor(
    settings: Sequence[Setting],
    source: Source,
    plan: Plan,
    file: Path,
    on_step: Callable[[str], None],
    budget: Budget = Budget(),  # noqa: B008  # a frozen value
    since_s: float | None = None,
    *,
    highest: bool = True,
) -> Predictor:
    """Measures what `settings` need and `file` does not hold yet, keeping each measurement there as it comes.

    What was timed while other work ran is timed again, unless that was after `since_s`, by `time.time` (now, for None).
    `on_step` is told what is measured; for `highest`, see Predictor. Raises UsageError for settings and a plan that
    cannot be, and EngineError where an engine or a server fails.
    """
    versions = {name: open_version(name, source, plan) for name in dict.fromkeys(each.model for each in settings)}
    times = read_times(file, read_machine()).quiet(time.time() if since_s is None else since_s)
    for setting in settings:
        version, options = versions[setting.model], setting.options
        key = engine_key(version, options)
        alike = [other for other in settings if engine_key(versions[other.model], other.options) == key]
        most_rows = max(other.options.max_batch_rows for other in alike)
        if times.engine(key, most_rows) is None:
            threads = f"{key.threads} thread{'' if key.threads == 1 else 's'}"
            on_step(f"timing runs of {setting.variant or setting.model} by {key.engine or 'its engine'}, {threads}")
            times = times.with_engine(measure_engine(version, options, most_rows, budget.engine_s))
            write_times(file, times)
        if any(times.path(setting.protocol, version.interface, inline=inline) is None for inline in (True, False)):
            on_step(f"measuring what {setting.protocol} costs")
            for path in measure_paths(version, _known(setting.protocol), plan, budget.protocol_s):
                times = times.with_path(path)
            write_times(file, times)
    return Predictor(times, versions.values(), plan, highest=highest)


def _known(protocol: Protocol) -> Protocol:
    if protocol not in get_args(Protocol) or protocol == "json":
        raise UsageError(f"--protocol {protocol} is none that a server of ours speaks; use rest, rest-binary or grpc")
    return protocol


def _adds_to(other: EngineTimes, engine: EngineTimes) -> bool:
    alike = (other.key.device, other.key.threads, other.key.cores) == (
        engine.key.device,
        engine.key.threads,
        engine.key.cores,
    )
    return alike and not other.disturbed


def _filled(engine: EngineTimes, kind: int, *, rested: bool) -> list[list[float]]:
    """[rows + 1][levels]: between the numbers of rows that were timed, on a line from one to the next."""
    timed = sorted((each for each in engine.times if each.kind == kind), key=lambda each: each.rows)
    at = [each.rows for each in timed]
    levels = np.array([each.rested_s if rested else each.busy_s for each in timed])
    wanted = np.arange(at[-1] + 1)
    filled: list[list[float]] = np.array([np.interp(wanted, at, column) for column in levels.T]).T.tolist()
    return filled
