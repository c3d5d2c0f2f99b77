"""What a server counts, in Prometheus' terms. Workers write to files of their own; a scrape of any one merges them.

Everything is counted once a batch where it can be: at tens of thousands of requests a second a counter costs as much as
a small model.
"""

import os
import time
from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
    values,
)

from mlserve.errors import RequestError
from mlserve.serve.batching.batcher import Batch, Ticket

__all__ = ["ModelMeter", "render_metrics"]

if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
    # The library asks for the process's number at every count, for servers that fork; ours never does, and the call
    # into the kernel cost a seventh of the throughput.
    _process = os.getpid()
    values.ValueClass = values.MultiProcessValue(  # type: ignore[no-untyped-call]
        process_identifier=lambda: _process
    )

# Each bucket 2.5 or 2 times the one before: 50 us to 30 s.
_SECONDS = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_MODEL = ("model", "version")


class _Histogram(Histogram):
    """A histogram that takes many observations at the price of one for each bucket they fall into."""

    def observe_all(self, values: Sequence[float]) -> None:
        """The same as `observe` for each of `values`."""
        counts = [0] * len(self._upper_bounds)
        for value in values:
            counts[bisect_left(self._upper_bounds, value)] += 1
        self._sum.inc(sum(values))
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


_requests = Counter("mlserve_requests", "Inference requests answered.", (*_MODEL, "protocol", "outcome"))
_latency = _Histogram(
    "mlserve_request_seconds", "From a request's last byte to its answer.", (*_MODEL, "protocol"), buckets=_SECONDS
)
_rows = Counter("mlserve_rows", "Rows inferred.", _MODEL)
_batches = Counter("mlserve_batches", "Runs of the engine.", _MODEL)
_batch_rows = Histogram("mlserve_batch_rows", "Rows of one run.", _MODEL, buckets=_ROWS)
_queue = Histogram(
    "mlserve_queue_seconds", "How long a batch's oldest request waited for its run.", _MODEL, buckets=_SECONDS
)
_compute = Histogram("mlserve_compute_seconds", "How long a run computed.", _MODEL, buckets=_SECONDS)
_loaded = Gauge("mlserve_model_loaded", "Workers that serve the version.", _MODEL, multiprocess_mode="livesum")


class ModelMeter:
    """The counters of one served version."""

    def __init__(self, model: str, version: str) -> None:
        self._labels = (model, version)
        self._rows, self._batches = _rows.labels(*self._labels), _batches.labels(*self._labels)
        self._batch_rows, self._queue = _batch_rows.labels(*self._labels), _queue.labels(*self._labels)
        self._compute = _compute.labels(*self._labels)
        self._protocols: dict[str, tuple[Counter, _Histogram]] = {}
        _loaded.labels(*self._labels).set(1)

    def ran(self, batch: Batch, queued_s: float) -> None:
        """Counts one run of the engine, whose oldest request had waited `queued_s`."""
        self._rows.inc(batch.rows)
        self._batches.inc()
        self._batch_rows.observe(batch.rows)
        self._queue.observe(queued_s)
        self._compute.observe(batch.compute_s)

    def answered(self, tickets: Sequence[Ticket]) -> None:
        """Counts requests that have just been answered."""
        now_s = time.perf_counter()
        by_protocol: dict[str, list[float]] = {}
        for ticket in tickets:
            by_protocol.setdefault(ticket.protocol, []).append(now_s - ticket.arrived_s)
        by_protocol.pop("", None)  # steps on the way to an answer
        for protocol, elapsed_s in by_protocol.items():
            self._count(protocol, elapsed_s)

    def asked(self, protocol: str, elapsed_s: float) -> None:
        """Counts one request of a person's texts or images, answered."""
        self._count(protocol, [elapsed_s])

    def failed(self, protocol: str, error: RequestError) -> None:
        """Counts one request that was answered with an error."""
        if protocol:
            _requests.labels(*self._labels, protocol, type(error).__name__).inc()

    def close(self) -> None:
        """The version is no longer served by this worker."""
        _loaded.labels(*self._labels).set(0)

    def _count(self, protocol: str, elapsed_s: Sequence[float]) -> None:
        counters = self._protocols.get(protocol)
        if counters is None:
            counters = self._protocols[protocol] = (
                _requests.labels(*self._labels, protocol, "ok"),
                _latency.labels(*self._labels, protocol),
            )
        counters[0].inc(len(elapsed_s))
        counters[1].observe_all(elapsed_s)


def render_metrics() -> bytes:
    """Prometheus' text format, over all workers."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
