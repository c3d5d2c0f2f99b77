"""Gates of servers that are numbers: how often a gate errs, and after how many runs it decides. Pure, from a seed.

What a run measures wanders as a queue makes it, has a level that the run has by itself, and drifts from run to run with
the machine; base and candidate share the drift alone.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from mlserve.report.gating.decision import live_verdicts
from mlserve.report.gating.figures import RunFigure
from mlserve.report.gating.limits import Limit
from mlserve.report.gating.looks import LOOKS
from mlserve.report.gating.result import Verdict
from mlserve.report.gating.tracks import RatioTrack
from mlserve.stats import Floats, log_spread, quantile_of

__all__ = ["Ended", "Rig", "simulate_gate"]

_BLOCKS = 20


class Rig(msgspec.Struct, frozen=True, kw_only=True):
    """A machine and a server. The spreads are of logarithms: of requests, of the level that wanders within a run and
    remembers `memory` requests, of runs, and of the machine's drift from one pair of runs to the next.

    With `floors`, the noise within each run is found as in a real gate, which only widens intervals and takes most of
    the time.
    """

    requests: int = 800
    spread: float = 0.3
    wander: float = 0.15
    memory: float = 30.0
    run_spread: float = 0.015
    drift: float = 0.01
    floors: bool = False


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a gate ended, after how many pairs of runs, those that were to confirm a suspicion included."""

    verdict: Verdict
    pairs: int
    suspected: bool


def simulate_gate(limits: Sequence[Limit], slower: float, rig: Rig, seed: int) -> Ended:
    """One live gate on a candidate whose latencies are all `slower` times the base's, until it is decided or no look is
    left. `limits` are of percentiles, relative to the base.
    """
    rng = np.random.default_rng(seed)
    first, fresh = _Runs(limits, slower, rig, rng), _Runs(limits, slower, rig, rng)
    suspicion = False
    first.grow()
    while True:
        metrics, suspected = live_verdicts(first.tracks, fresh.tracks, (first.pairs, fresh.pairs))
        suspicion = suspicion or bool(suspected)
        verdicts = {metric.verdict for metric in metrics}
        runs = fresh if suspected else first
        if "fail" in verdicts or verdicts == {"pass"} or runs.pairs == LOOKS[-1]:
            verdict: Verdict = "fail" if "fail" in verdicts else "pass" if verdicts == {"pass"} else "inconclusive"
            return Ended(verdict=verdict, pairs=first.pairs + fresh.pairs, suspected=suspicion)
        runs.grow()


class _Runs:
    """Pairs of runs, as many as the next look wants."""

    def __init__(self, limits: Sequence[Limit], slower: float, rig: Rig, rng: np.random.Generator) -> None:
        self._slower, self._rig, self._rng = slower, rig, rng
        self._level = 0.0
        self._figures: dict[Limit, tuple[list[RunFigure], list[RunFigure]]] = {limit: ([], []) for limit in limits}
        self.pairs = 0

    @property
    def tracks(self) -> list[RatioTrack]:
        """The evidence of them, nothing where there are none."""
        if not self.pairs:
            return []
        return [
            RatioTrack(limit=limit, before=tuple(before), after=tuple(after))
            for limit, (before, after) in self._figures.items()
        ]

    def grow(self) -> None:
        """Makes the pairs that the next look wants."""
        more = next(look for look in LOOKS if look > self.pairs) - self.pairs
        machine = self._level + np.cumsum(self._rig.drift * self._rng.standard_normal(more))
        before = _latencies(self._rig, machine, self._rng)
        after = self._slower * _latencies(self._rig, machine, self._rng)
        for limit, (ours, theirs) in self._figures.items():
            ours.extend(_figures(limit, before, self._rig))
            theirs.extend(_figures(limit, after, self._rig))
        self._level = float(machine[-1])
        self.pairs += more


def _latencies(rig: Rig, machine: Floats, rng: np.random.Generator) -> Floats:
    """[runs, requests]: those of one server while the machine was so slow."""
    from scipy.signal import lfilter

    runs = len(machine)
    keep = math.exp(-1 / rig.memory)
    noise = math.sqrt(1 - keep**2) * rng.standard_normal((runs, rig.requests))
    noise[:, 0] = rng.standard_normal(runs)
    level = rig.wander * lfilter([1.0], [1.0, -keep], noise)
    run = machine + rig.run_spread * rng.standard_normal(runs)
    latencies: Floats = np.exp(run[:, None] + level + rig.spread * rng.standard_normal((runs, rig.requests)))
    return latencies


def _figures(limit: Limit, latencies: Floats, rig: Rig) -> tuple[RunFigure, ...]:
    assert limit.q is not None
    values = np.quantile(latencies, limit.q, axis=1, method="inverted_cdf")
    noise = [log_spread(np.array_split(run, _BLOCKS), quantile_of(limit.q)) if rig.floors else 0.0 for run in latencies]
    return tuple(RunFigure(float(value), one) for value, one in zip(values, noise, strict=True))
