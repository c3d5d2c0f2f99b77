"""Whether time itself was steady: the wall clock beside the monotonic one, and that beside the hardware's counter.

On Linux NTP bends the wall clock and the monotonic clock alike, so that their difference moves by steps alone: somebody
set the clock, or the machine slept, which the monotonic clock does not count. What NTP bends shows against the raw one.
"""

import time
from collections.abc import Callable, Sequence

import msgspec

__all__ = ["ClockReading", "Clocks", "monotonic_rate", "read_clocks", "wall_step_s"]

# Between two readings the process may lose its core: the narrowest of several attempts is kept.
_ATTEMPTS = 5
# A shorter stretch cannot tell a rate from the error of its two readings.
_LEAST_NS = 200_000_000


class ClockReading(msgspec.Struct, frozen=True):
    """The clocks at one instant. `raw_ns` counts what the hardware counts, uncorrected; None where no such clock is."""

    monotonic_ns: int
    wall_ns: int
    raw_ns: int | None = None


Clocks = Callable[[], ClockReading]


def read_clocks() -> ClockReading:
    """This machine's clocks, within a few microseconds of one another."""
    raw = getattr(time, "CLOCK_MONOTONIC_RAW", None)
    best: tuple[int, ClockReading] | None = None
    for _ in range(_ATTEMPTS):
        before_ns = time.monotonic_ns()
        wall_ns = time.time_ns()
        raw_ns = None if raw is None else time.clock_gettime_ns(raw)
        after_ns = time.monotonic_ns()
        if best is None or after_ns - before_ns < best[0]:
            best = after_ns - before_ns, ClockReading((before_ns + after_ns) // 2, wall_ns, raw_ns)
    assert best is not None
    return best[1]


def wall_step_s(readings: Sequence[ClockReading]) -> float | None:
    """By how much the wall clock moved against the monotonic one, at most; None for fewer than two readings.

    A step that was taken back counts too: it is the largest difference less the smallest.
    """
    if len(readings) < 2:
        return None
    ahead_ns = [reading.wall_ns - reading.monotonic_ns for reading in readings]
    return (max(ahead_ns) - min(ahead_ns)) / 1e9


def monotonic_rate(readings: Sequence[ClockReading]) -> float | None:
    """Seconds of the monotonic clock per second of the hardware's counter, less one: what every duration is wrong by,
    as a share, while NTP corrects. None where there is no such counter, or too little time between the readings.
    """
    known = [(reading.monotonic_ns, reading.raw_ns) for reading in readings if reading.raw_ns is not None]
    if len(known) < 2:
        return None
    (first_ns, first_raw_ns), (last_ns, last_raw_ns) = known[0], known[-1]
    if last_raw_ns - first_raw_ns < _LEAST_NS:
        return None
    return (last_ns - first_ns) / (last_raw_ns - first_raw_ns) - 1
