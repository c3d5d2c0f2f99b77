"""How many replicas bear a load, what they cost, and what energy they take. Pure functions of what was measured of one.

A replica is a server like the one that was measured, on a machine of its own like that one. A rate is *proven* where
the evidence shows that the objective is met (a verdict that is wrong with at most 1%), *met* where the figures say so,
*missed* where they say the contrary. What a replica bears lies between the highest proven rate and the lowest missed
one: the count for the proven rate is safe, the others are the error bar. Where no rate is proven, the highest that was
met stands in, and that is said.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

__all__ = ["Bears", "Capacity", "Demand", "Fleet", "Joules", "Power", "Seen", "bears", "capacity", "replicas"]


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one replica at a steady rate: whether it met the objective, and whether that is proven. `power_w` is
    the mean power while it went on, None where the machine does not tell.
    """

    rate_per_s: float
    met: bool
    sure: bool
    power_w: float | None = None


class Power(msgspec.Struct, frozen=True, kw_only=True):
    """Mean, least and most power (watts) of the runs at one rate."""

    rate_per_s: float
    mean_w: float
    low_w: float
    high_w: float


class Bears(msgspec.Struct, frozen=True, kw_only=True):
    """What one replica bears, requests/s: `safe_per_s` <= `met_per_s` < `missed_per_s`, which is None where no rate
    was missed, so that nobody knows how much more it bears. `safe_per_s` is the highest proven rate; where none is
    `proven`, the highest that was met. `power` is sorted by rate.
    """

    safe_per_s: float
    met_per_s: float
    missed_per_s: float | None
    proven: bool = True
    power: tuple[Power, ...] = ()


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be borne: requests/s at the peak, and on average (which cost and energy are shared among), each of
    `rows` rows on average. So many `spare` replicas may be lost at the peak, and one of `zones` (0 and 1: no zone).
    """

    peak_per_s: float
    mean_per_s: float
    rows: float = 1.0
    spare: int = 1
    zones: int = 0
    price_per_h: float | None = None


class Joules(msgspec.Struct, frozen=True, kw_only=True):
    """Energy of 1,000 inferences at the mean load, and its error bar: other counts of replicas, other runs."""

    mean: float
    low: float
    high: float


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """`replicas` of which `bearing` bear the peak. `share_per_s` is what each gets at the peak while all are there.
    The cost of 1,000 inferences counts every replica, all the time, at the mean load.
    """

    replicas: int
    bearing: int
    share_per_s: float
    cost_per_h: float | None
    cost_per_1000: float | None


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """`safe` is by the safe rate: what to run. `likely` is by the rate that was met, and `least` by the one that
    was missed: fewer than that cannot do (None where no rate was missed). `joules_per_1000` is of the safe one.
    """

    bears: Bears
    safe: Fleet
    likely: Fleet
    least: Fleet | None
    joules_per_1000: Joules | None

    @property
    def lower_bound(self) -> bool:
        """Whether what a replica bears is but a lower bound, so that fewer replicas may do, perhaps by far."""
        return self.least is None


def bears(seen: Sequence[Seen]) -> Bears | None:
    """What the runs `seen` say together; None where not one rate was met.

    The verdict on a rate is that of most of its runs; a miss where they are even. No rate above one that was missed
    counts, whatever its own runs say.
    """
    votes: dict[float, int] = {}
    for one in seen:
        votes[one.rate_per_s] = votes.get(one.rate_per_s, 0) + (1 if one.met else -1)
    missed = min((rate for rate, vote in votes.items() if vote <= 0), default=math.inf)
    met = [rate for rate, vote in votes.items() if vote > 0 and rate < missed]
    proven = [one.rate_per_s for one in seen if one.met and one.sure and one.rate_per_s in met]
    if not met:
        return None
    return Bears(
        safe_per_s=max(proven or met),
        met_per_s=max(met),
        missed_per_s=None if math.isinf(missed) else missed,
        proven=bool(proven),
        power=_powers(seen),
    )


def replicas(peak_per_s: float, bears_per_s: float, *, spare: int, zones: int) -> int:
    """The fewest that bear the peak when one zone and then `spare` more are lost, spread as evenly as can be.

    Of n replicas in Z zones the fullest zone has ceil(n / Z). So n - ceil(n / Z) - spare >= m, for the m that bear the
    peak, which holds from n = ceil((m + spare) Z / (Z - 1)) on.
    """
    left = math.ceil(peak_per_s / bears_per_s * (1 - 1e-12)) + spare
    return -(-left * zones // (zones - 1)) if zones > 1 else left


def capacity(found: Bears, demand: Demand) -> Capacity:
    """The plan for `demand` of replicas that bear what was `found`."""
    safe = _fleet(found.safe_per_s, demand)
    likely = _fleet(found.met_per_s, demand)
    least = None if found.missed_per_s is None else _fleet(found.missed_per_s, demand)
    fleets = [safe, likely, *([least] if least else [])]
    return Capacity(
        bears=found, safe=safe, likely=likely, least=least, joules_per_1000=_joules(found.power, fleets, demand)
    )


def _fleet(bears_per_s: float, demand: Demand) -> Fleet:
    count = replicas(demand.peak_per_s, bears_per_s, spare=demand.spare, zones=demand.zones)
    cost_per_h = None if demand.price_per_h is None else count * demand.price_per_h
    return Fleet(
        replicas=count,
        bearing=replicas(demand.peak_per_s, bears_per_s, spare=0, zones=0),
        share_per_s=demand.peak_per_s / count,
        cost_per_h=cost_per_h,
        cost_per_1000=None if cost_per_h is None else cost_per_h / _inferences_per_h(demand) * 1000,
    )


def _inferences_per_h(demand: Demand) -> float:
    return demand.mean_per_s * demand.rows * 3600


def _powers(seen: Sequence[Seen]) -> tuple[Power, ...]:
    by_rate: dict[float, list[float]] = {}
    for one in seen:
        if one.power_w is not None:
            by_rate.setdefault(one.rate_per_s, []).append(one.power_w)
    return tuple(
        Power(rate_per_s=rate, mean_w=float(np.mean(watts)), low_w=min(watts), high_w=max(watts))
        for rate, watts in sorted(by_rate.items())
    )


def _joules(power: Sequence[Power], fleets: Sequence[Fleet], demand: Demand) -> Joules | None:
    """Of the first fleet, with what the others and other runs make of it.

    The power of a replica at its share of the mean load lies on straight lines between the rates that were measured
    (power is nearly linear in load: Fan, Weber, Barroso 2007, "Power provisioning for a warehouse-sized computer");
    below the slowest and above the fastest it is taken to be theirs.
    """
    if not power:
        return None
    rates = [one.rate_per_s for one in power]

    def of(fleet: Fleet, watts: list[float]) -> float:
        each_w = float(np.interp(demand.mean_per_s / fleet.replicas, rates, watts))
        return each_w * fleet.replicas / (demand.mean_per_s * demand.rows) * 1000

    return Joules(
        mean=of(fleets[0], [one.mean_w for one in power]),
        low=min(of(fleet, [one.low_w for one in power]) for fleet in fleets),
        high=max(of(fleet, [one.high_w for one in power]) for fleet in fleets),
    )
