"""What a server counts, in Prometheus' terms: every worker counts for itself, a scrape of any one merges them all.

Everything is counted once a batch: at tens of thousands of requests a second a counter costs as much as a small model.
"""

import os
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from mlserve.errors import RequestError
from mlserve.serve.batching.batcher import Batch, Ticket
from mlserve.serve.watching.counting import CountDirectory
from mlserve.serve.watching.resources import LoadCost, build_family, process_families

__all__ = ["ModelMeter", "read_metrics", "render_metrics"]

# Each bucket 2.5 or 2 times the one before: 50 us to 30 s.
_SECONDS = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_MODEL = ("model", "version")
_BY_OUTCOME = (*_MODEL, "protocol", "outcome")
# What stands in the label `protocol` for a batch of several dialects, and for a step on the way to a task's answer.
_MIXED, _TASK = "mixed", "task"


class _Family(msgspec.Struct, frozen=True):
    """One metric. A `level` is summed over the living workers, a `peak` is the largest of theirs."""

    name: str
    help: str
    kind: Literal["counter", "histogram", "level", "peak"] = "counter"
    labels: tuple[str, ...] = _MODEL
    buckets: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """How many numbers a worker keeps of it: of a histogram the sum, one a bucket, and what is above all."""
        return len(self.buckets) + 2 if self.buckets else 1

    @property
    def standing(self) -> bool:
        """Whether it says how things stand, and goes with the worker that said it."""
        return self.kind in ("level", "peak")


_REQUESTS = _Family("mlserve_requests", "Inference requests answered.", labels=_BY_OUTCOME)
_LATENCY = _Family(
    "mlserve_request_seconds",
    "From a request's last byte to its answer, of requests that were let into the queue.",
    "histogram",
    _BY_OUTCOME,
    _SECONDS,
)
_QUEUE = _Family("mlserve_queue_seconds", "How long a request waited for its run.", "histogram", _BY_OUTCOME, _SECONDS)
_COMPUTE = _Family("mlserve_compute_seconds", "How long a run computed.", "histogram", _BY_OUTCOME, _SECONDS)
_BATCH_ROWS = _Family("mlserve_batch_rows", "Rows of one run.", "histogram", _BY_OUTCOME, _ROWS)
_ROWS_TOTAL = _Family("mlserve_rows", "Rows inferred.")
_BATCHES = _Family("mlserve_batches", "Runs of the engine.")
_LOADED = _Family("mlserve_model_loaded", "Workers that serve the version.", "level")
_WAITING = _Family("mlserve_waiting_rows", "Rows that waited for a run when the last one ended.", "level")
_SIZE = _Family("mlserve_model_size_bytes", "The version's files.", "peak")
_RESIDENT = _Family("mlserve_model_resident_bytes", "By how much loading it made the workers grow.", "level")
_LOAD_SECONDS = _Family("mlserve_model_load_seconds", "How long the slowest worker took to load it.", "peak")
_LAST_RUN = _Family("mlserve_last_run_timestamp_seconds", "When the last run ended, since the epoch.", "peak")
_FAMILIES = {
    family.name: family
    for family in (
        _REQUESTS, _LATENCY, _QUEUE, _COMPUTE, _BATCH_ROWS, _ROWS_TOTAL, _BATCHES, _LOADED, _WAITING, _SIZE, _RESIDENT,
        _LOAD_SECONDS, _LAST_RUN,
    )
}  # fmt: skip

# The supervisor makes the directory and names it in the environment: a meter counts from its first line on.
_directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
_counts = CountDirectory(Path(_directory) if _directory else None)


class ModelMeter:
    """The counters of one served version. `ran`, `answered` and `failed` may be called by any thread."""

    def __init__(self, model: str, version: str) -> None:
        self._labels = (model, version)
        self._counts = _counts.open(model, version)
        self._lock = self._counts.lock
        self._rows, self._batches = self._numbers(_ROWS_TOTAL), self._numbers(_BATCHES)
        self._waiting, self._last_run = self._numbers(_WAITING), self._numbers(_LAST_RUN)
        self._numbers(_LOADED)[0] = 1.0
        self._waiting[0] = 0.0
        self._runs: dict[tuple[str, str], tuple[_Numbers, _Numbers, _Numbers]] = {}
        self._answers: dict[tuple[str, str], tuple[_Numbers, _Numbers]] = {}

    def loaded(self, size_bytes: int, cost: LoadCost) -> None:
        """Notes what the version holds and what it took to load it."""
        self._numbers(_SIZE)[0] = size_bytes
        self._numbers(_RESIDENT)[0] = cost.resident_bytes
        self._numbers(_LOAD_SECONDS)[0] = cost.took_s

    def ran(self, batch: Batch, tickets: Sequence[Ticket], outcome: str = "ok", waiting_rows: int = 0) -> None:
        """Counts one run of the engine for `tickets`; `waiting_rows` wait for the next one.

        `outcome` is "ok" if any of them is answered, else the name of the error.
        """
        protocol = _protocol_of(tickets) or _TASK
        queue, compute, batch_rows = self._runs.get((protocol, outcome)) or self._runs_of(protocol, outcome)
        arrived_s = [ticket.arrived_s for ticket in tickets]
        with self._lock:
            _observe_since(queue, arrived_s, batch.started_s)
            _observe(compute, _SECONDS, batch.compute_s)
            _observe(batch_rows, _ROWS, batch.rows)
            self._rows[0] += batch.rows
            self._batches[0] += 1.0
            self._waiting[0] = waiting_rows
            self._last_run[0] = time.time()

    def answered(self, tickets: Sequence[Ticket], batch: Batch) -> None:
        """Counts requests that have just been answered."""
        now_s = time.perf_counter()
        protocol = _protocol_of(tickets)
        if protocol == _MIXED:
            for each in {ticket.protocol for ticket in tickets}:
                # Not that of a subclass, which has taken note of all of them.
                ModelMeter.answered(self, [ticket for ticket in tickets if ticket.protocol == each], batch)
        elif protocol:  # without one they are steps on the way to an answer
            requests, latency = self._answers.get((protocol, "ok")) or self._answers_of(protocol, "ok")
            arrived_s = [ticket.arrived_s for ticket in tickets]
            with self._lock:
                requests[0] += len(arrived_s)
                _observe_since(latency, arrived_s, now_s)

    def asked(self, protocol: str, elapsed_s: float, request_id: str = "") -> None:
        """Counts one request of a person's texts or images, answered; `request_id` is for meters that log."""
        self._count(protocol, "ok", elapsed_s)

    def failed(self, protocol: str, error: RequestError, ticket: Ticket | None = None) -> None:
        """Counts one request that was answered with an error; `ticket` if it got as far as the queue."""
        if protocol:
            elapsed_s = None if ticket is None else time.perf_counter() - ticket.arrived_s
            self._count(protocol, type(error).__name__, elapsed_s)

    def close(self) -> None:
        """The version is no longer served by this worker."""
        _counts.close(*self._labels)

    def _count(self, protocol: str, outcome: str, elapsed_s: float | None) -> None:
        requests, latency = self._answers.get((protocol, outcome)) or self._answers_of(protocol, outcome)
        with self._lock:
            requests[0] += 1.0
            if elapsed_s is not None:
                _observe(latency, _SECONDS, elapsed_s)

    def _runs_of(self, protocol: str, outcome: str) -> "tuple[_Numbers, _Numbers, _Numbers]":
        found = self._runs[protocol, outcome] = (
            self._numbers(_QUEUE, protocol, outcome),
            self._numbers(_COMPUTE, protocol, outcome),
            self._numbers(_BATCH_ROWS, protocol, outcome),
        )
        return found

    def _answers_of(self, protocol: str, outcome: str) -> "tuple[_Numbers, _Numbers]":
        found = self._answers[protocol, outcome] = (
            self._numbers(_REQUESTS, protocol, outcome),
            self._numbers(_LATENCY, protocol, outcome),
        )
        return found

    def _numbers(self, family: _Family, *labels: str) -> "_Numbers":
        return self._counts.numbers(family.name, (*self._labels, *labels), family.size, level=family.standing)


def read_metrics() -> list[Metric]:
    """Every metric, over all workers: those of models from their counts, those of the processes from the system."""
    merged: dict[str, dict[tuple[str, ...], list[float]]] = {name: {} for name in _FAMILIES}
    for _, records in _counts.read():
        for record in records:
            _merge(_FAMILIES[record.name], merged[record.name], record.labels, record.numbers)
    families = [_exposed(_FAMILIES[name], found) for name, found in merged.items()]
    return [*families, *process_families(_counts.living()), build_family()]


def render_metrics() -> bytes:
    """Prometheus' text format, over all workers."""
    registry = CollectorRegistry()
    registry.register(_AllWorkers())
    return generate_latest(registry)


class _AllWorkers(Collector):
    def collect(self) -> Iterator[Metric]:
        yield from read_metrics()


_Numbers: TypeAlias = "memoryview[float]"


def _protocol_of(tickets: Sequence[Ticket]) -> str:
    protocols = {ticket.protocol for ticket in tickets}
    return protocols.pop() if len(protocols) == 1 else _MIXED


def _observe(numbers: _Numbers, buckets: Sequence[float], value: float) -> None:
    numbers[0] += value
    numbers[bisect_left(buckets, value) + 1] += 1.0


def _observe_since(numbers: _Numbers, arrived_s: Sequence[float], until_s: float) -> None:
    """Observes `until_s` less each of `arrived_s`.

    Requests of one batch came within a moment of each other: nearly always one bucket holds them all.
    """
    numbers[0] += len(arrived_s) * until_s - sum(arrived_s)
    first = bisect_left(_SECONDS, until_s - max(arrived_s))
    if first == bisect_left(_SECONDS, until_s - min(arrived_s)):
        numbers[first + 1] += len(arrived_s)
    else:
        for each_s in arrived_s:
            numbers[bisect_left(_SECONDS, until_s - each_s) + 1] += 1.0


def _merge(
    family: _Family, merged: dict[tuple[str, ...], list[float]], labels: tuple[str, ...], numbers: Sequence[float]
) -> None:
    found = merged.get(labels)
    if found is None:
        merged[labels] = list(numbers)
    elif family.kind == "peak":
        found[0] = max(found[0], numbers[0])
    else:
        merged[labels] = [one + other for one, other in zip(found, numbers, strict=True)]


def _exposed(family: _Family, merged: dict[tuple[str, ...], list[float]]) -> Metric:
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        bounds = [*map(floatToGoString, family.buckets), "+Inf"]
        for labels, (total, *counts) in sorted(merged.items()):
            histogram.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
        return histogram
    kind = GaugeMetricFamily if family.standing else CounterMetricFamily
    made = kind(family.name, family.help, labels=family.labels)
    for labels, (value,) in sorted(merged.items()):
        made.add_metric(labels, value)
    return made
