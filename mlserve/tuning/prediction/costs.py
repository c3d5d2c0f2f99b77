"""What a simulated server's work costs: runs of the model, and requests on a protocol's path."""

from collections.abc import Sequence
from math import log

import msgspec
import numpy as np

from mlserve.stats import Floats
from mlserve.tuning.prediction.replay import Replay

__all__ = ["WARM_S", "Costs", "Path", "Runs"]

WARM_S = 1.5e-3
"""A pause before a run that leaves caches and clocks about as they were. (A tiny model behind a server of ours, by the
pause before a request: its run took 30 to 46 us after up to 5 ms at 1,200 requests/s, and 66, 144 and 178 us after 1 to
3, 3 to 10 and 10 to 30 ms at 80/s; what passes outside it 220 to 270, 370, 630 and 810 us.)
"""

# One after which they are cold.
_COLD_S = 1e-2
_HALF = 0.5


class Runs(msgspec.Struct, frozen=True):
    """How long a run takes: `busy_s[kind][rows]` and `rested_s[kind][rows]` are the quantiles [levels] (seconds) right
    after another run, and after a pause. Row 0 is not used. Where `replay` tells how fast the machine was from one
    instant to the next, a run is one of the middle, slowed by that; else each is drawn by itself.
    """

    busy_s: Sequence[Sequence[Sequence[float]]]
    rested_s: Sequence[Sequence[Sequence[float]]]
    replay: Replay | None = None

    @property
    def span_s(self) -> float:
        """How long the replay is; 0.0 without one."""
        return self.replay.span_s if self.replay else 0.0

    def run_s(self, kind: int, rows: int, gap_s: float, lot: float, at_s: float) -> float:
        """How long a run takes by itself, whose first request came after a pause of `gap_s`; `lot` in [0, 1) is its
        luck, without a replay, and `at_s` when it begins, with one.
        """
        busy_s, rested_s = self.busy_s[kind][rows], self.rested_s[kind][rows]
        level = int((_HALF if self.replay else lot) * len(busy_s))
        alone_s = busy_s[level] + _share_of(gap_s, WARM_S, _COLD_S) * (rested_s[level] - busy_s[level])
        return self.replay.took_s(at_s, alone_s) if self.replay else alone_s

    def mean_s(self, kind: int, rows: int) -> float:
        """Of runs one right after the other."""
        return float(np.mean(self.busy_s[kind][rows]))


class Path(msgspec.Struct, frozen=True, kw_only=True):
    """What a request costs beside its run (seconds): of processor time, `request_s`, and `turn_s` for each turn of the
    server after a pause of `rested_gap_s`, `busy_turn_s` (the same, for None) for one after at most `busy_gap_s`; and
    `rested_s`, `busy_s`, the quantiles [levels] of what passes outside the server after such pauses.
    """

    turn_s: float = 0.0
    busy_turn_s: float | None = None
    request_s: float = 0.0
    busy_s: Sequence[float] = (0.0,)
    rested_s: Sequence[float] = (0.0,)
    busy_gap_s: float = WARM_S
    rested_gap_s: float = _COLD_S

    def turn_after_s(self, gap_s: float) -> float:
        """What a turn costs whose first request came `gap_s` after the server had last done something."""
        if self.busy_turn_s is None:
            return self.turn_s
        cold = _share_of(gap_s, self.busy_gap_s, self.rested_gap_s)
        return self.busy_turn_s + cold * (self.turn_s - self.busy_turn_s)

    def outside_s(self, lot: float, gap_s: float) -> float:
        """What of a request after a pause of `gap_s` passes outside the server; `lot` in [0, 1) is its luck."""
        busy_s, rested_s = (each[int(lot * len(each))] for each in (self.busy_s, self.rested_s))
        return busy_s + _share_of(gap_s, self.busy_gap_s, self.rested_gap_s) * (rested_s - busy_s)

    def each_outside_s(self, lots: Sequence[float], gap_s: Sequence[float]) -> Floats:
        """The same of many [n]."""
        levels = (np.array(lots) * len(self.busy_s)).astype(np.int64)
        busy_s = np.array(self.busy_s)[levels]
        spent_s: Floats = busy_s + _share(gap_s, self.busy_gap_s, self.rested_gap_s) * (
            np.array(self.rested_s)[levels] - busy_s
        )
        return spent_s


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """`inline` is the path where runs are on the event loop, `queued` that where they are not."""

    runs: Runs
    inline: Path = Path()
    queued: Path = Path()


def _share(gap_s: Sequence[float] | Floats, warm_s: float, cold_s: float) -> Floats:
    """How cold all is after pauses of `gap_s` [n], from 0 to 1: by its logarithm, as what was seen at several rates."""
    pauses_s: Floats = np.asarray(gap_s, np.float64)
    if cold_s <= warm_s:
        return (pauses_s > warm_s).astype(np.float64)
    share: Floats = np.log(np.clip(pauses_s, warm_s, cold_s) / warm_s) / log(cold_s / warm_s)
    return share


def _share_of(gap_s: float, warm_s: float, cold_s: float) -> float:
    """Of one pause."""
    if gap_s <= warm_s:
        return 0.0
    return 1.0 if gap_s >= cold_s else log(gap_s / warm_s) / log(cold_s / warm_s)
