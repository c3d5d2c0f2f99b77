"""One setting at any rate, by simulation; what another setting was already seen to do alike is not simulated again."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from math import ceil, inf

import msgspec
import numpy as np

from mlserve.bench.load.schedule import schedule
from mlserve.runs.load import Plan
from mlserve.serve.batching.batcher import INLINE_LIMIT_S
from mlserve.stats import Floats, minimum_samples, quantile
from mlserve.tuning.evidence import Objective, Requests, weigh
from mlserve.tuning.prediction.costs import Costs
from mlserve.tuning.prediction.simulation import Arrivals, Simulated, SimulatedServer, simulate

__all__ = ["Figures", "Load", "Seen", "SimulatedSetting"]

# Of a run's schedule so many requests are simulated at most; of a shorter one, the draws are made anew until so many
# were. A schedule of fewer than a few hundred is extended, since hardly any of it would be in a percentile.
_MOST_REQUESTS, _FEWEST_REQUESTS, _SHORTEST_SCHEDULE = 10_000, 4_000, 500
# In a search for a rate, each of which is only compared with the limit. The first quarter of them shows what is far
# over it, since a queue begins empty; and what is far below, at a rate at which no queue grows.
_SEARCHED_REQUESTS, _FIRST = 4_000, 4
_FAR_OVER, _FAR_BELOW = 1.2, 1 / _FIRST
# Which worker gets a connection is chance: the middle of so many.
_DRAWS = 3
_RESOLUTION = 1.02
_HALF = 0.5
# Below this share of what it could bear, requests hardly meet, and a limit that is missed there is missed everywhere.
_HIGHEST_PER_S, _LOWEST_SHARE = 1e6, 1 / 64


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Of one rate; see Prediction."""

    p50_s: float
    p99_s: float
    objective_s: float
    failed: float
    mean_batch_rows: float
    utilization: float

    def meets(self, objective: Objective) -> bool:
        """Whether `objective` holds."""
        return self.objective_s <= objective.limit_s and self.failed <= objective.max_errors


Seen = dict[Hashable, list[tuple[int, list[Simulated], Figures]]]
"""What was simulated: of everything but the most rows, by these, what came of it."""


class Load(msgspec.Struct, frozen=True):
    """Requests by `plan`, at another rate: rows and kind of each, in the order in which they are sent, over again."""

    plan: Plan
    rows: Sequence[int]
    kinds: Sequence[int]

    def arrivals(self, rate_per_s: float, most_requests: int) -> Arrivals:
        """The first of them."""
        whole_s = self.plan.warm_up_s + self.plan.duration_s
        plan = msgspec.structs.replace(
            self.plan,
            rate_per_s=rate_per_s,
            warm_up_s=0.0,
            duration_s=min(max(whole_s, _SHORTEST_SCHEDULE / rate_per_s), most_requests / rate_per_s),
            find_warm_up=False,
            precision=0.0,
            max_duration_s=0.0,
        )
        due_s = schedule(plan) / 1e9
        due_s = due_s if len(due_s) else np.zeros(1)
        return Arrivals(due_s, _cycle(self.rows, len(due_s)), _cycle(self.kinds, len(due_s)), plan.generators)


class SimulatedSetting:
    """One setting, at any rate; `seen` is shared by settings that differ in their server alone."""

    def __init__(self, server: SimulatedServer, costs: Costs, load: Load, seen: Seen) -> None:
        self._server, self._costs, self._load, self._seen = _canonical(server, costs), costs, load, seen

    @property
    def alone_per_s(self) -> float:
        """What it would bear if each request ran by itself."""
        path = self._costs.inline
        alone_s = self._costs.runs.mean_s(self._load.kinds[0], self._load.rows[0])
        return min(self._server.workers, self._server.cores) / (alone_s + path.request_s + path.turn_after_s(0.0))

    def at(self, rate_per_s: float, objective: Objective, most_requests: int = _MOST_REQUESTS) -> Figures:
        """Its figures."""
        draws = range(_DRAWS if self._server.workers > 1 else 1)
        figures = [self._drawn(rate_per_s, objective, most_requests, draw) for draw in draws]
        return Figures(**{name: _middle(getattr(each, name) for each in figures) for name in Figures.__struct_fields__})

    @property
    def _lowest_per_s(self) -> float:
        return _HALF * self.alone_per_s * _LOWEST_SHARE

    def at_highest(self, objective: Objective) -> tuple[float, Figures]:
        """The highest rate that it is foretold to bear, and its figures there; 0.0 where there is none, and what it
        does where requests hardly meet.
        """
        rate_per_s = self.highest_rate(objective, 0.0, inf)
        return rate_per_s, self.at(rate_per_s or self._lowest_per_s, objective, _searched(objective))

    def highest_rate(self, objective: Objective, passed_per_s: float, failed_per_s: float) -> float:
        """The highest rate at which `objective` holds, to 2%: not below `passed_per_s`, where it is known to, and below
        `failed_per_s`, where it does not; 0.0 where there is none.

        It must hold where requests hardly meet, too: whoever bears a rate bears what is less.
        """
        start_per_s = _HALF * self.alone_per_s
        lowest_per_s = self._lowest_per_s
        if failed_per_s <= lowest_per_s:
            return 0.0
        if passed_per_s < lowest_per_s and not self.meets(lowest_per_s, objective):
            return passed_per_s
        start_per_s = min(max(start_per_s, 2 * passed_per_s), failed_per_s / 2)
        return _highest_rate(
            lambda rate: self.meets(rate, objective), start_per_s, max(passed_per_s, lowest_per_s), failed_per_s
        )

    def meets(self, rate_per_s: float, objective: Objective) -> bool:
        """Whether `objective` holds: what most draws say, of as few requests as show it."""
        requests, calm = _searched(objective), rate_per_s <= _HALF * self.alone_per_s
        votes: list[bool] = []
        for draw in range(_DRAWS if self._server.workers > 1 else 1):
            first = self._drawn(rate_per_s, objective, requests // _FIRST, draw)
            if first.objective_s > _FAR_OVER * objective.limit_s:
                votes.append(False)
            elif calm and first.objective_s < _FAR_BELOW * objective.limit_s and first.meets(objective):
                votes.append(True)
            else:
                votes.append(self._drawn(rate_per_s, objective, requests, draw).meets(objective))
            if max(votes.count(True), votes.count(False)) > _DRAWS // 2:
                break
        return votes.count(True) > len(votes) // 2

    def _drawn(self, rate_per_s: float, objective: Objective, most_requests: int, draw: int) -> Figures:
        """What comes of one draw, which another setting may have shown."""
        any_rows = msgspec.structs.replace(self._server, max_rows=0)
        seen = self._seen.setdefault((any_rows, rate_per_s, objective, most_requests, draw), [])
        for rows, found, figures in seen:
            if rows == self._server.max_rows:
                return figures
            if all(each.same_for(rows, self._server.max_rows, self._costs.runs) for each in found):
                return figures
        arrivals = self._load.arrivals(rate_per_s, most_requests)
        again = max(1, ceil(min(_FEWEST_REQUESTS, most_requests) / len(arrivals.due_s)))
        found = [simulate(arrivals, self._server, self._costs, draw * again + seed) for seed in range(again)]
        figures = _figures(found, arrivals, objective)
        kept = [msgspec.structs.replace(each, latency_s=np.empty(0)) for each in found]
        seen.append((self._server.max_rows, kept, figures))
        return figures


def _canonical(server: SimulatedServer, costs: Costs) -> SimulatedServer:
    """Without a delay that makes no difference: nobody waits for one who cannot come along."""
    if server.max_rows == 1 and server.max_delay_s and costs.runs.mean_s(0, 1) > INLINE_LIMIT_S:
        return msgspec.structs.replace(server, max_delay_s=0.0)
    return server


def _searched(objective: Objective) -> int:
    """How many requests show whether an objective is met."""
    return max(_SEARCHED_REQUESTS, 4 * minimum_samples(objective.percentile))


def _figures(found: Sequence[Simulated], arrivals: Arrivals, objective: Objective) -> Figures:
    latency_s: Floats = np.concatenate([each.latency_s for each in found])
    growing = any(_grows(each.latency_s, arrivals, objective) for each in found)
    return Figures(
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


def _highest_rate(meets: Callable[[float], bool], start_per_s: float, passed: float, failed: float) -> float:
    """The highest rate that `meets`, to 2%, from `passed`, which does, to below `failed`, which does not."""
    rate = start_per_s
    while passed < rate < min(failed, _HIGHEST_PER_S):
        if meets(rate):
            passed, rate = rate, 2 * rate
        else:
            failed, rate = rate, rate / 2
    while failed < inf and failed > _RESOLUTION * passed:
        middle = (passed * failed) ** 0.5
        if meets(middle):
            passed = middle
        else:
            failed = middle
    return passed


def _cycle(values: Sequence[int], count: int) -> list[int]:
    return (list(values) * ceil(count / len(values)))[:count]


def _middle(values: Iterable[float]) -> float:
    return float(np.median(list(values)))
