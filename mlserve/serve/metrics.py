"""What a server counts, in Prometheus' terms. Workers write to files of their own; a scrape of any one merges them.

Everything is counted once a batch where it can be: at tens of thousands of requests a second a counter costs as much as
a small model.
"""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from mlserve.serve.batching.batcher import Batch, Ticket

__all__ = ["ModelMeter", "render_metrics"]

# Each bucket 2.5 or 2 times the one before: 50 us to 30 s.
_SECONDS = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_MODEL = ("model", "version")

_requests = Counter("mlserve_requests", "Inference requests answered.", (*_MODEL, "protocol", "outcome"))
_latency = Histogram(
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
        self._protocols: dict[str, tuple[Counter, Histogram]] = {}
        _loaded.labels(*self._labels).set(1)

    def ran(self, tickets: Sequence[Ticket], batch: Batch) -> None:
        """Counts one run of the engine."""
        self._rows.inc(batch.rows)
        self._batches.inc()
        self._batch_rows.observe(batch.rows)
        self._queue.observe(batch.started_s - tickets[0].arrived_s)
        self._compute.observe(batch.compute_s)

    def answered(self, protocol: str, seconds: float) -> None:
        """Counts one request that was answered."""
        counters = self._protocols.get(protocol)
        if counters is None:
            counters = self._protocols[protocol] = (
                _requests.labels(*self._labels, protocol, "ok"),
                _latency.labels(*self._labels, protocol),
            )
        counters[0].inc()
        counters[1].observe(seconds)

    def failed(self, protocol: str, outcome: str) -> None:
        """Counts one request that was answered with an error; `outcome` is the error's name."""
        _requests.labels(*self._labels, protocol, outcome).inc()


def render_metrics() -> bytes:
    """Prometheus' text format, over all workers."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
