"""What a simulated server's work costs: runs of the model, and requests on a protocol's path."""

from collections.abc import Sequence
from math import log

import msgspec
import numpy as np

from mlserve.stats import Floats
from mlserve.tuning.prediction.replay import Replay

__all__ = ["After", "Costs", "Path", "Runs"]

# A pause before a run that leaves caches and clocks about as they were, and one after which they are cold. (A tiny
# model behind a server of ours, by the pause before a request: its run took 30 to 46 us after up to 5 ms at 1,200
# requests/s, and 66, 144 and 178 us after 1 to 3, 3 to 10 and 10 to 30 ms at 80/s.)
_WARM_S, _COLD_S = 1.5e-3, 1e-2
_HALF = 0.5
_LEAST_GAP_S = 1e-9


class Runs(msgspec.Struct, frozen=True):
    """How long a run takes: `busy_s[kind][rows]` and `rested_s[kind][rows]` are the quantiles [levels] (seconds) right
    after another run, and after a pause. Row 0 is not used. Where `replay` tells how fast the machine was from one
    instant to the next, a run is one of the middle, slowed by that; else each is drawn by itself. `late_s` are the
    quantiles of how much longer than it should a thread waits for others to come along.
    """

    busy_s: Sequence[Sequence[Sequence[float]]]
    rested_s: Sequence[Sequence[Sequence[float]]]
    replay: Replay | None = None
    late_s: Sequence[float] = (0.0,)

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
        alone_s = busy_s[level] + _share_of(gap_s, _WARM_S, _COLD_S) * (rested_s[level] - busy_s[level])
        return self.replay.took_s(at_s, alone_s) if self.replay else alone_s

    def mean_s(self, kind: int, rows: int) -> float:
        """Of runs one right after the other."""
        return float(np.mean(self.busy_s[kind][rows]))


class After(msgspec.Struct, frozen=True, kw_only=True):
    """What a request costs (seconds) that comes when the server has had nothing to do for `gap_s`: the server's turn
    `turn_s` of processor time; `outside_s` are quantiles [levels] of what passes outside the server.
    """

    gap_s: float = _WARM_S
    turn_s: float = 0.0
    outside_s: Sequence[float] = (0.0,)


class Path(msgspec.Struct, frozen=True, kw_only=True):
    """What a request costs beside its run (seconds): `request_s` of the server's processor time and `client_s` of the
    generator's, and what `after` [pauses] says, the shortest pause first. Between two pauses it changes as their
    logarithm does; beyond the longest it stays.
    """

    request_s: float = 0.0
    client_s: float = 0.0
    after: Sequence[After] = (After(),)

    def turn_after_s(self, gap_s: float) -> float:
        """What a turn costs whose first request came `gap_s` after the server had last done something."""
        shorter, longer, share = self._between(gap_s)
        return shorter.turn_s + share * (longer.turn_s - shorter.turn_s)

    def outside_s(self, lot: float, gap_s: float) -> float:
        """What of a request after a pause of `gap_s` passes outside the server; `lot` in [0, 1) is its luck."""
        shorter, longer, share = self._between(gap_s)
        shorter_s, longer_s = (each.outside_s[int(lot * len(each.outside_s))] for each in (shorter, longer))
        return shorter_s + share * (longer_s - shorter_s)

    def each_outside_s(self, lots: Sequence[float], gap_s: Sequence[float]) -> Floats:
        """The same of many [n]."""
        outside_s = np.array([each.outside_s for each in self.after])
        known, pauses = np.log([each.gap_s for each in self.after]), np.log(np.maximum(gap_s, _LEAST_GAP_S))
        place = np.interp(pauses, known, np.arange(len(known)))
        shorter, level = place.astype(np.int64), (np.array(lots) * outside_s.shape[1]).astype(np.int64)
        longer = np.minimum(shorter + 1, len(known) - 1)
        spent_s: Floats = outside_s[shorter, level]
        spent_s += (place - shorter) * (outside_s[longer, level] - spent_s)
        return spent_s

    def _between(self, gap_s: float) -> tuple[After, After, float]:
        """The pauses about `gap_s`, and how far it is from the shorter to the longer one, from 0 to 1."""
        place = next((place for place, each in enumerate(self.after) if each.gap_s > gap_s), len(self.after))
        shorter, longer = self.after[max(place - 1, 0)], self.after[min(place, len(self.after) - 1)]
        return shorter, longer, _share_of(gap_s, shorter.gap_s, longer.gap_s)


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """`inline` is the path where runs are on the event loop, `queued` that where they are not."""

    runs: Runs
    inline: Path = Path()
    queued: Path = Path()


def _share_of(gap_s: float, warm_s: float, cold_s: float) -> float:
    """How cold all is after a pause, from 0 to 1: by its logarithm, as what was seen at several rates."""
    if gap_s <= warm_s:
        return 0.0
    return 1.0 if gap_s >= cold_s else log(gap_s / warm_s) / log(cold_s / warm_s)
