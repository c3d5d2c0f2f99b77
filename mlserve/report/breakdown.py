"""Where the time of the answers went, by the server's own words and the client's clock."""

from collections.abc import Sequence

import msgspec
import numpy as np

from mlserve.report.measurement import Recorded
from mlserve.stats import Floats, quantile

__all__ = ["Breakdown", "Parts", "breakdown"]

_SLOWEST = 0.05
# A mean of fewer would be a story of its own.
_FEWEST = 10


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """Means over `requests`, which add up to their mean latency (seconds).

    `before_sending_s` is from the instant a request was due until it left; `queue_s` and `compute_s` are what the
    server says; `elsewhere_s` is all else: network, client, reading the request and writing the answer.
    """

    requests: int
    before_sending_s: float
    queue_s: float
    compute_s: float
    elsewhere_s: float


class Breakdown(msgspec.Struct, frozen=True, kw_only=True):
    """Of the requests whose server told its part: all of them, and the slowest twentieth, None if those are few."""

    every: Parts
    slowest: Parts | None


def breakdown(runs: Sequence[Recorded]) -> Breakdown | None:
    """Where the time went in `runs`; None where too few rows have the server's words."""
    columns = [_times(one) for one in runs]
    times = np.concatenate(columns, axis=1)
    if times.shape[1] < _FEWEST:
        return None
    latency_s = times.sum(axis=0)
    slow = latency_s >= quantile(np.sort(latency_s), 1 - _SLOWEST)
    return Breakdown(every=_parts(times), slowest=_parts(times[:, slow]) if slow.sum() >= _FEWEST else None)


def _times(recorded: Recorded) -> Floats:
    """[4, n] of the good answers whose server told: before sending, queue, compute, elsewhere (seconds)."""
    samples = recorded.samples
    told = samples.ok & ~np.isnan(samples.queue_s) & ~np.isnan(samples.compute_s)
    service_s = (samples.done_s - samples.sent_s)[told]
    queue_s, compute_s = samples.queue_s[told], samples.compute_s[told]
    # Two clocks: what the server says may come to a little more than the client saw.
    elsewhere_s = np.maximum(0.0, service_s - queue_s - compute_s)
    times: Floats = np.stack([(samples.sent_s - samples.scheduled_s)[told], queue_s, compute_s, elsewhere_s])
    return times


def _parts(times: Floats) -> Parts:
    before_sending_s, queue_s, compute_s, elsewhere_s = times.mean(axis=1).tolist()
    return Parts(
        requests=times.shape[1],
        before_sending_s=before_sending_s,
        queue_s=queue_s,
        compute_s=compute_s,
        elsewhere_s=elsewhere_s,
    )
