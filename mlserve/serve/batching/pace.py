"""How fast an engine is: what a queue's rows will take, and how many rows fit into a given time. Pure."""

__all__ = ["Pace"]

# The share of the newest run in an average over a few runs, and in one over many, which one late run hardly moves.
_NEWEST, _NEWEST_OF_MANY = 0.2, 0.05
# The highest of the latter of late sinks by this share of what it is above it, at each run, and is never more than so
# many times as high. Whoever goes by the present alone lets in the most when the machine is at its quickest, and then
# it slows down: a bound for the wait has to hold for them, too; but a stall that is over is to refuse nobody.
_SINKS, _MOST_ABOVE = 0.005, 1.5
# The share of the newest run in what runs of more and of fewer rows say of each other.
_NEWEST_OF_SHAPE = 0.02
# Runs whose rows vary less (rows squared) say nothing of that.
_LEAST_VARIANCE = 0.1
# So many runs under load are seen before anybody is refused for what they took.
_LEAST_CYCLES = 3
# A run of one row cannot be shortened; up to this many times as long is never cut.
_HARDLY_LONGER = 1.5


class Pace:
    """Learns from every run. The warm-up tells how a run's time grows with its rows, until runs have told it better;
    the newest runs tell how fast this is now.

    `single_s` and `full_s`: how long one row and `max_rows` rows took at the warm-up, 0.0 where nobody knows.
    **Laws**: `row_s` lies between the least and the greatest seconds a row that were told, and is 0.0 before three
    were; `most_rows` is from 1 to `max_rows`, and never falls while its limit grows.
    """

    def __init__(self, max_rows: int, single_s: float = 0.0, full_s: float = 0.0) -> None:
        self.max_rows = max_rows
        self._single_s, self._growth_s = single_s, max(0.0, full_s - single_s) / max(1, max_rows - 1)
        self._slowness = 1.0
        self._mean_rows, self._mean_s = (1 + max_rows) / 2, (single_s + full_s) / 2
        self._variance = ((max_rows - 1) / 2) ** 2
        self._covariance_s = self._growth_s * self._variance
        self._cycles, self._few, self._many, self._highest_s = 0, _Rate(), _Rate(), 0.0

    @property
    def row_s(self) -> float:
        """Seconds a row takes while many wait, whatever else the device does meanwhile; 0.0 while that is unknown.

        Rather too long than too short: it rises at once, and falls when it is sure.
        """
        return max(self._few.row_s, self._highest_s) if self._cycles >= _LEAST_CYCLES else 0.0

    def kept_busy(self, rows: int, cycle_s: float) -> None:
        """A run of `rows` rows ended `cycle_s` after the one before it, and all the time others waited."""
        self._cycles += 1
        self._few.add(rows, cycle_s, max(_NEWEST, 1 / self._cycles))
        self._many.add(rows, cycle_s, max(_NEWEST_OF_MANY, 1 / self._cycles))
        if self._cycles >= _LEAST_CYCLES:
            many_s = self._many.row_s
            highest_s = self._highest_s + _SINKS * (many_s - self._highest_s)
            self._highest_s = max(many_s, min(_MOST_ABOVE * many_s, highest_s))

    def ran(self, rows: int, compute_s: float) -> None:
        """A run of `rows` rows computed for `compute_s`."""
        if self._single_s > 0:
            expected_s = self._single_s + self._growth_s * (rows - 1)
            self._slowness += _NEWEST * (compute_s / expected_s - self._slowness)
            self._learn_shape(rows - self._mean_rows, compute_s / max(self._slowness, 1e-6) - self._mean_s)

    def _learn_shape(self, more_rows: float, more_s: float) -> None:
        """A line of least squares through the runs as they would be at the warm-up's speed, the older the lighter
        (D. West, Updating mean and variance estimates, 1979).
        """
        self._mean_rows += _NEWEST_OF_SHAPE * more_rows
        self._mean_s += _NEWEST_OF_SHAPE * more_s
        stays = 1 - _NEWEST_OF_SHAPE
        self._variance = stays * (self._variance + _NEWEST_OF_SHAPE * more_rows**2)
        self._covariance_s = stays * (self._covariance_s + _NEWEST_OF_SHAPE * more_rows * more_s)
        if self._variance >= _LEAST_VARIANCE:
            growth_s = max(0.0, self._covariance_s / self._variance)
            single_s = self._mean_s - growth_s * (self._mean_rows - 1)
            if single_s > 0:
                self._single_s, self._growth_s = single_s, growth_s

    def most_rows(self, limit_s: float) -> int:
        """How many rows a run of at most `limit_s` may have: one at least, and all where fewer would hardly help."""
        if self._single_s <= 0 or self._growth_s <= 0:
            return self.max_rows
        limit_s = max(limit_s / max(self._slowness, 1e-6), _HARDLY_LONGER * self._single_s)
        return int(max(1, min(self.max_rows, 1 + (limit_s - self._single_s) / self._growth_s)))


class _Rate:
    """Rows and seconds of runs, the newest counting most."""

    __slots__ = ("_rows", "_seconds")

    def __init__(self) -> None:
        self._rows = self._seconds = 0.0

    @property
    def row_s(self) -> float:
        return self._seconds / self._rows

    def add(self, rows: int, took_s: float, share: float) -> None:
        self._rows += share * (rows - self._rows)
        self._seconds += share * (took_s - self._seconds)
