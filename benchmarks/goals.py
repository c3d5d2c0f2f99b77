"""What serving is measured against: with everything switched on, one core for the server and one for the load."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Literal

import msgspec

from mlserve.units import format_duration, format_rate

__all__ = ["Goal", "check_goals"]

# Requests/s of the tiny model by requests in flight.
_RATES = {"REST": {1: 8_000, 8: 35_000, 32: 50_000}, "gRPC": {1: 6_500, 8: 20_000, 32: 28_000}}
_P50_S = {"REST": 125e-6, "gRPC": 155e-6}
_OF_IN_PROCESS = 0.97
_START_S = 1.5
_SATURATED = 32


class Goal(msgspec.Struct, frozen=True):
    """One thing wanted and what was found."""

    name: str
    wanted: float
    found: float
    unit: Literal["rate", "duration", "share"]
    at_least: bool

    @property
    def met(self) -> bool:
        return self.found >= self.wanted if self.at_least else self.found <= self.wanted

    def text(self, value: float) -> str:
        """`value` as people read it."""
        if self.unit == "share":
            return f"{value:.1%}"
        return format_rate(value) if self.unit == "rate" else format_duration(value)


def check_goals(typical: Mapping[tuple[str, str, int], Callable[[str], float]], start_s: Sequence[float]) -> list[Goal]:
    """Each goal that was measured. `typical` gives, by model, way and requests in flight, a timing's median."""
    goals: list[Goal] = []
    for way, rates in _RATES.items():
        for at_once, rate in rates.items():
            found = typical["tiny", way, at_once]("rows_per_s")
            goals.append(Goal(f"tiny, {way}, {at_once} in flight", rate, found, "rate", at_least=True))
        found = typical["tiny", way, 1]("p50_s")
        goals.append(Goal(f"tiny, {way}, p50 at 1 in flight", _P50_S[way], found, "duration", at_least=False))
    alone = {model: turn for (model, way, _), turn in typical.items() if way.startswith("in process, same")}
    for model, turn in alone.items():
        for way in _RATES:
            share = typical[model, f"{way} saturated", _SATURATED]("rows_per_s") / turn("rows_per_s")
            name = f"{model}, {way}, rows/s of in process at the server's batch"
            goals.append(Goal(name, _OF_IN_PROCESS, share, "share", at_least=True))
    goals.append(Goal("tiny, start-up to the first answer", _START_S, median(start_s), "duration", at_least=False))
    return goals
