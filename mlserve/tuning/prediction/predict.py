"""What settings will do, foretold: the measured times of their parts, put together by simulation."""

from collections.abc import Callable, Iterable, Sequence
from math import ceil, inf
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np

from mlserve.bench.load.schedule import schedule
from mlserve.errors import UsageError
from mlserve.runs.load import Flat, Plan, Protocol
from mlserve.runs.machine import read_machine
from mlserve.stats import Floats, minimum_samples, quantile
from mlserve.tuning.evidence import Objective, Requests, weigh
from mlserve.tuning.opening import Source
from mlserve.tuning.prediction.prediction import Prediction
from mlserve.tuning.prediction.service_times import core_count, engine_key, measure_engine
from mlserve.tuning.prediction.simulation import Arrivals, Costs, Runs, Simulated, SimulatedServer, simulate
from mlserve.tuning.prediction.times import EngineTimes, ServiceTimes, read_times, write_times
from mlserve.tuning.prediction.transport import measure_paths, way_of
from mlserve.tuning.prediction.version import Version, open_version
from mlserve.tuning.setting import Setting

__all__ = ["TIMES_FILE", "Budget", "Predictor", "open_predictor"]

TIMES_FILE = "service-times.json"

# Of a run's schedule so many requests are simulated at most; of a shorter one, the draws are made anew until so many
# were. A schedule of fewer than a few hundred is extended, since hardly any of it would be in a percentile.
_MOST_REQUESTS, _FEWEST_REQUESTS, _SHORTEST_SCHEDULE = 10_000, 4_000, 500
# In a search for a rate, each of which is only compared with the limit.
_SEARCHED_REQUESTS = 4_000
# Which worker gets a connection is chance: the middle of so many.
_DRAWS = 3
_RESOLUTION = 1.02
_HALF = 0.5
# Below this share of what it could bear, requests hardly meet, and a limit that is missed there is missed everywhere.
_HIGHEST_PER_S, _LOWEST_SHARE = 1e6, 1 / 64
_GRPC = ("grpc", "tfserving-grpc")


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """About how long each engine, and each protocol, is measured (seconds)."""

    engine_s: float = 4.0
    protocol_s: float = 8.0


class Predictor:
    """Foretells of settings whose versions, engines and protocols were measured; a `Predicts`.

    The requests are those that a load by `plan` would send at the instants that it would send them; its rate is another
    for each question.
    """

    def __init__(self, times: ServiceTimes, versions: Iterable[Version], plan: Plan) -> None:
        """Raises UsageError for a plan without a rate that stays the same."""
        if plan.closed or plan.arrivals == "replay" or plan.shape != Flat():
            raise UsageError("a prediction is for a load of one rate; leave out --users, --replay and --shape")
        self._times, self._plan = times, plan
        self._versions = {version.name: version for version in versions}
        self._ways = {(each.protocol, each.interface, each.inline): way_of(each) for each in times.paths}
        self._tables: dict[EngineTimes, Runs] = {}

    @property
    def disturbed(self) -> float:
        """The largest share of the time in which what was timed had to wait for other work: 0 on a quiet machine."""
        return max((each.waited for each in self._times.disturbed), default=0.0)

    def __call__(self, settings: Sequence[Setting], objective: Objective, rate_per_s: float | None) -> list[Prediction]:
        return [self._predict(setting, objective, rate_per_s) for setting in settings]

    def _predict(self, setting: Setting, objective: Objective, rate_per_s: float | None) -> Prediction:
        model = self._model(setting)
        most_per_s = _highest_rate(lambda rate: model.meets(rate, objective), model.start_per_s)
        if rate_per_s is None:  # as it was found: a longer schedule has other percentiles
            rate, requests = most_per_s, _searched(objective)
        else:
            rate, requests = rate_per_s, _MOST_REQUESTS
        found = model.at(rate, objective, requests) if rate else _NOTHING
        return Prediction(
            setting=setting,
            rate_per_s=rate,
            p50_s=found.p50_s,
            p99_s=found.p99_s,
            objective_s=found.objective_s,
            mean_batch_rows=found.mean_batch_rows,
            utilization=found.utilization,
            max_rate_per_s=most_per_s,
        )

    def _model(self, setting: Setting) -> "_Model":
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
        return _Model(server, costs, _Bodies(version, engine), self._plan)

    def _runs(self, engine: EngineTimes) -> Runs:
        """Every number of rows up to the most, from those that were timed."""
        if engine not in self._tables:
            kinds = range(max(engine.kinds) + 1)
            self._tables[engine] = Runs(
                [_filled(engine, kind, rested=False) for kind in kinds],
                [_filled(engine, kind, rested=True) for kind in kinds],
            )
        return self._tables[engine]


class _Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Of one rate; see Prediction."""

    p50_s: float
    p99_s: float
    objective_s: float
    failed: float
    mean_batch_rows: float
    utilization: float


_NOTHING = _Figures(p50_s=inf, p99_s=inf, objective_s=inf, failed=0.0, mean_batch_rows=0.0, utilization=0.0)


class _Bodies:
    """Rows and kind of the requests, in the order in which they are sent."""

    def __init__(self, version: Version, engine: EngineTimes) -> None:
        requests = version.payload.requests
        self.rows = [requests[number].rows if engine.together else 1 for number in version.payload.order]
        self.kinds = [engine.kinds[number] for number in version.payload.order]


class _Model:
    """One setting, at any rate."""

    def __init__(self, server: SimulatedServer, costs: Costs, bodies: _Bodies, plan: Plan) -> None:
        self._server, self._costs, self._bodies, self._plan = server, costs, bodies, plan

    @property
    def start_per_s(self) -> float:
        """A rate that it may bear."""
        alone_s = self._costs.runs.mean_s(self._bodies.kinds[0], self._bodies.rows[0])
        return 0.5 * self._server.workers / (alone_s + self._costs.inline.request_s + self._costs.inline.turn_s)

    def meets(self, rate_per_s: float, objective: Objective) -> bool:
        """Whether `objective` holds."""
        found = self.at(rate_per_s, objective, _searched(objective))
        return found.objective_s <= objective.limit_s and found.failed <= objective.max_errors

    def at(self, rate_per_s: float, objective: Objective, most_requests: int) -> _Figures:
        """Its figures."""
        arrivals = self._arrivals(rate_per_s, most_requests)
        draws = _DRAWS if self._server.workers > 1 else 1
        again = max(1, ceil(min(_FEWEST_REQUESTS, most_requests) / len(arrivals.due_s)))
        figures = [
            _figures(
                [simulate(arrivals, self._server, self._costs, draw * again + seed) for seed in range(again)],
                arrivals,
                objective,
            )
            for draw in range(draws)
        ]
        return _Figures(
            **{name: _middle(getattr(each, name) for each in figures) for name in _Figures.__struct_fields__}
        )

    def _arrivals(self, rate_per_s: float, most_requests: int) -> Arrivals:
        whole_s = self._plan.warm_up_s + self._plan.duration_s
        plan = msgspec.structs.replace(
            self._plan,
            rate_per_s=rate_per_s,
            warm_up_s=0.0,
            duration_s=min(max(whole_s, _SHORTEST_SCHEDULE / rate_per_s), most_requests / rate_per_s),
            find_warm_up=False,
            precision=0.0,
            max_duration_s=0.0,
        )
        due_s = schedule(plan) / 1e9
        due_s = due_s if len(due_s) else np.zeros(1)
        return Arrivals(due_s, _cycle(self._bodies.rows, len(due_s)), _cycle(self._bodies.kinds, len(due_s)))


def open_predictor(
    settings: Sequence[Setting],
    source: Source,
    plan: Plan,
    file: Path,
    on_step: Callable[[str], None],
    budget: Budget = Budget(),  # noqa: B008  # a frozen value
) -> Predictor:
    """Measures what `settings` need and `file` does not hold yet, keeping each measurement there as it comes.

    What was timed while other work ran is timed again. `on_step` is told what is measured. Raises UsageError for
    settings and a plan that cannot be, and EngineError where an engine or a server fails.
    """
    versions = {name: open_version(name, source, plan) for name in dict.fromkeys(each.model for each in settings)}
    times = read_times(file, read_machine())
    quiet = tuple(each for each in times.engines if not each.disturbed)
    times = msgspec.structs.replace(times, engines=quiet)
    for setting in settings:
        version, options = versions[setting.model], setting.options
        key = engine_key(version, options)
        alike = [other for other in settings if engine_key(versions[other.model], other.options) == key]
        most_rows = max(other.options.max_batch_rows for other in alike)
        if times.engine(key, most_rows) is None:
            on_step(f"timing runs of {setting.variant or setting.model}, {key.threads} threads")
            times = times.with_engine(measure_engine(version, options, most_rows, budget.engine_s))
            write_times(file, times)
        if times.path(setting.protocol, version.interface, inline=False) is None:
            on_step(f"measuring what {setting.protocol} costs")
            for path in measure_paths(version, _known(setting.protocol), plan, budget.protocol_s):
                times = times.with_path(path)
            write_times(file, times)
    return Predictor(times, versions.values(), plan)


def _searched(objective: Objective) -> int:
    """How many requests show whether an objective is met."""
    return max(_SEARCHED_REQUESTS, 4 * minimum_samples(objective.percentile))


def _known(protocol: Protocol) -> Protocol:
    if protocol not in get_args(Protocol) or protocol == "json":
        raise UsageError(f"--protocol {protocol} is none that a server of ours speaks; use rest, rest-binary or grpc")
    return protocol


def _figures(found: Sequence[Simulated], arrivals: Arrivals, objective: Objective) -> _Figures:
    latency_s: Floats = np.concatenate([each.latency_s for each in found])
    growing = any(_grows(each.latency_s, arrivals, objective) for each in found)
    return _Figures(
        p50_s=inf if growing else quantile(latency_s, 0.5),
        p99_s=inf if growing else quantile(latency_s, 0.99),
        objective_s=inf if growing else quantile(latency_s, objective.percentile),
        failed=float(np.isinf(latency_s).mean()),
        mean_batch_rows=float(np.mean([each.mean_batch_rows for each in found])),
        utilization=float(np.mean([each.utilization for each in found])),
    )


def _grows(latency_s: Floats, arrivals: Arrivals, objective: Objective) -> bool:
    """By the rule that a run is judged by; or where the last requests wait as long as half of all took to arrive."""
    last_s = float(np.median(latency_s[-max(1, len(latency_s) // 10) :])) - float(latency_s.min())
    if last_s > _HALF * float(np.ptp(arrivals.due_s)):
        return True
    return weigh(Requests(arrivals.due_s, latency_s, np.isinf(latency_s)), objective).growing


def _highest_rate(meets: Callable[[float], bool], start_per_s: float) -> float:
    """The highest rate that `meets`, to 2%; 0.0 where none does."""
    passed, failed, rate = 0.0, inf, start_per_s
    while not (passed and failed < inf) and start_per_s * _LOWEST_SHARE <= rate <= _HIGHEST_PER_S:
        if meets(rate):
            passed, rate = rate, 2 * rate
        else:
            failed, rate = rate, rate / 2
    if not passed:
        return 0.0
    while failed < inf and failed > _RESOLUTION * passed:
        middle = (passed * failed) ** 0.5
        if meets(middle):
            passed = middle
        else:
            failed = middle
    return passed


def _filled(engine: EngineTimes, kind: int, *, rested: bool) -> list[list[float]]:
    """[rows + 1][levels]: between the numbers of rows that were timed, on a line from one to the next."""
    timed = sorted((each for each in engine.times if each.kind == kind), key=lambda each: each.rows)
    at = [each.rows for each in timed]
    levels = np.array([each.rested_s if rested else each.busy_s for each in timed])
    wanted = np.arange(at[-1] + 1)
    filled: list[list[float]] = np.array([np.interp(wanted, at, column) for column in levels.T]).T.tolist()
    return filled


def _cycle(values: Sequence[int], count: int) -> list[int]:
    return (list(values) * ceil(count / len(values)))[:count]


def _middle(values: Iterable[float]) -> float:
    return float(np.median(list(values)))
