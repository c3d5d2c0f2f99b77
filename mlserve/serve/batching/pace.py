"""How fast an engine is: what a queue's rows will take, and how many rows fit into a given time. Pure."""

__all__ = ["Pace"]

# The share of the newest run in an average over runs.
_NEWEST = 0.2
# So many runs under load are seen before anybody is refused for what they took.
_LEAST_CYCLES = 3
# A run of one row cannot be shortened; up to this many times as long is never cut.
_HARDLY_LONGER = 1.5


class Pace:
    """Learns from every run. The warm-up tells how a run's time grows with its rows; the runs, how fast this is now.

    `single_s` and `full_s`: how long one row and `max_rows` rows took at the warm-up, 0.0 where nobody knows.
    **Laws**: `row_s` lies between the least and the greatest seconds a row that were told, and is 0.0 before three
    were; `most_rows` is from 1 to `max_rows`, and never falls while its limit grows.
    """

    def __init__(self, max_rows: int, single_s: float = 0.0, full_s: float = 0.0) -> None:
        self.max_rows = max_rows
        self._single_s, self._growth_s = single_s, max(0.0, full_s - single_s) / max(1, max_rows - 1)
        self._slowness = 1.0
        self._cycles, self._rows, self._cycle_s = 0, 0.0, 0.0

    @property
    def row_s(self) -> float:
        """Seconds a row takes while many wait, whatever else the device does meanwhile; 0.0 while that is unknown."""
        return self._cycle_s / self._rows if self._cycles >= _LEAST_CYCLES else 0.0

    def kept_busy(self, rows: int, cycle_s: float) -> None:
        """A run of `rows` rows ended `cycle_s` after the one before it, and all the time others waited."""
        self._cycles += 1
        share = max(_NEWEST, 1 / self._cycles)
        self._rows += share * (rows - self._rows)
        self._cycle_s += share * (cycle_s - self._cycle_s)

    def ran(self, rows: int, compute_s: float) -> None:
        """A run of `rows` rows computed for `compute_s`."""
        if self._single_s > 0:
            expected_s = self._single_s + self._growth_s * (rows - 1)
            self._slowness += _NEWEST * (compute_s / expected_s - self._slowness)

    def most_rows(self, limit_s: float) -> int:
        """How many rows a run of at most `limit_s` may have: one at least, and all where fewer would hardly help."""
        if self._single_s <= 0 or self._growth_s <= 0:
            return self.max_rows
        limit_s = max(limit_s / max(self._slowness, 1e-6), _HARDLY_LONGER * self._single_s)
        return int(max(1, min(self.max_rows, 1 + (limit_s - self._single_s) / self._growth_s)))
