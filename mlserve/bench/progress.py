"""How far a run is, for somebody who watches it."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct

from mlserve.bench.generator.job import Tick, Waiting

__all__ = ["LatencyHistogram", "Progress", "ProgressMeter", "bucket_of", "count_latencies"]

_FIRST_NS, _WIDTH, _BUCKETS = 1e3, 0.01, 2073


def bucket_of(latency_ns: int) -> int:
    """Which of the histogram's buckets a latency belongs to."""
    return min(_BUCKETS - 1, int(math.log(max(latency_ns, _FIRST_NS) / _FIRST_NS) / _WIDTH))


def count_latencies(latencies_ns: Sequence[int]) -> dict[int, int]:
    """How many of them each bucket gets: bucket -> count."""
    ratios = np.maximum(np.asarray(latencies_ns, np.float64), _FIRST_NS) / _FIRST_NS
    buckets, counts = np.unique((np.log(ratios) / _WIDTH).astype(np.int64).clip(max=_BUCKETS - 1), return_counts=True)
    return dict(zip(buckets.tolist(), counts.tolist(), strict=True))


class Progress(Struct, frozen=True, kw_only=True):
    """The run at one moment. `elapsed_s` counts from its first instant; before that the generator is starting.

    `p50_s` and `p99_s` are those of the measured part so far, within 1%; NaN while there are none. `joined` of
    `expected` generators are there, where the run waits for some to join.
    """

    elapsed_s: float
    sent: int
    done: int
    failed: int
    dropped: int
    in_flight: int
    p50_s: float
    p99_s: float
    joined: int = 0
    expected: int = 0


class ProgressMeter:
    """Adds up what the generator tells."""

    def __init__(self) -> None:
        self._latencies = LatencyHistogram()

    def waiting(self, waiting: Waiting) -> Progress:
        """Before the run: generators join."""
        return Progress(
            elapsed_s=-math.inf,
            sent=0,
            done=0,
            failed=0,
            dropped=0,
            in_flight=0,
            p50_s=math.nan,
            p99_s=math.nan,
            joined=waiting.joined,
            expected=waiting.expected,
        )

    def add(self, tick: Tick) -> Progress:
        """The run as of `tick`."""
        self._latencies.add(tick.latencies)
        return Progress(
            elapsed_s=tick.elapsed_s,
            sent=tick.sent,
            done=tick.ok + tick.failed,
            failed=tick.failed,
            dropped=tick.dropped,
            in_flight=tick.in_flight,
            p50_s=self._latencies.quantile(0.5),
            p99_s=self._latencies.quantile(0.99),
        )


class LatencyHistogram:
    """Counts of latencies between 1 us and 1,000 s in buckets that are 1% wide.

    For watching only, where exact quantiles of millions of values four times a second would load the machine that is
    being measured. What is reported comes from the raw rows.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_BUCKETS, np.int64)

    def add(self, counts: Mapping[int, int]) -> None:
        """Adds what another histogram counted: bucket -> count."""
        for bucket, count in counts.items():
            self._counts[bucket] += count

    def quantile(self, q: float) -> float:
        """The middle of the bucket that holds quantile `q`; NaN when nothing was counted."""
        total = int(self._counts.sum())
        if not total:
            return float("nan")
        bucket = int(np.searchsorted(np.cumsum(self._counts), q * total))
        return _FIRST_NS / 1e9 * math.exp((bucket + 0.5) * _WIDTH)
