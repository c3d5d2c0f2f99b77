"""What each version has done since the server started, over all workers: V2's statistics, read from the metrics."""

from collections.abc import Iterable

import msgspec
from prometheus_client import Metric

from mlserve.serve.metrics import read_metrics

__all__ = ["Spent", "Statistics", "read_statistics", "statistics_of"]

_NS = 1_000_000_000
_MS = 1_000


class Spent(msgspec.Struct, frozen=True):
    """How often something was done, and how long that took altogether."""

    count: int = 0
    ns: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.count + other.count, self.ns + other.ns)


class Statistics(msgspec.Struct, frozen=True):
    """One version's. `success`, `fail` and `queue` count requests; `compute` counts runs of the engine.

    `inference_count` is rows, `execution_count` runs: less, where requests ran together. `last_inference_ms` is the
    time of the last run since the epoch, 0 when there was none.
    """

    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: Spent = Spent()
    fail: Spent = Spent()
    queue: Spent = Spent()
    compute: Spent = Spent()


def read_statistics() -> dict[tuple[str, str], Statistics]:
    """By name and version. Reads the files of all workers: not for the event loop."""
    return statistics_of(read_metrics())


def statistics_of(metrics: Iterable[Metric]) -> dict[tuple[str, str], Statistics]:
    """The statistics that `metrics` amount to, by name and version."""
    found: dict[tuple[str, str], Statistics] = {}
    for metric in metrics:
        for sample in metric.samples:
            labels = sample.labels
            if "model" in labels and "version" in labels:
                key = labels["model"], labels["version"]
                found[key] = _with(found.get(key, Statistics()), sample.name, labels.get("outcome", ""), sample.value)
    return found


def _with(before: Statistics, name: str, outcome: str, value: float) -> Statistics:
    """`before` and one sample more."""
    changed: dict[str, int | Spent] = {}
    succeeded = "success" if outcome == "ok" else "fail"
    match name:
        case "mlserve_rows_total":
            changed["inference_count"] = int(value)
        case "mlserve_batches_total":
            changed["execution_count"] = int(value)
        case "mlserve_last_run_timestamp_seconds":
            changed["last_inference_ms"] = int(value * _MS)
        case "mlserve_requests_total":
            changed[succeeded] = getattr(before, succeeded) + Spent(count=int(value))
        case "mlserve_request_seconds_sum":
            changed[succeeded] = getattr(before, succeeded) + Spent(ns=int(value * _NS))
        case "mlserve_queue_seconds_count":
            changed["queue"] = before.queue + Spent(count=int(value))
        case "mlserve_queue_seconds_sum":
            changed["queue"] = before.queue + Spent(ns=int(value * _NS))
        case "mlserve_compute_seconds_count":
            changed["compute"] = before.compute + Spent(count=int(value))
        case "mlserve_compute_seconds_sum":
            changed["compute"] = before.compute + Spent(ns=int(value * _NS))
        case _:
            return before
    return msgspec.structs.replace(before, **changed)
