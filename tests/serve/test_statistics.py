"""Statistics are sums over what the metrics say, version by version."""

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from mlserve.serve.statistics import Spent, Statistics, statistics_of

LABELS = ("model", "version", "protocol", "outcome")


def counter(name, labels, *values):
    family = CounterMetricFamily(name, name, labels=labels)
    for of, value in values:
        family.add_metric(of, value)
    return family


def histogram(name, *values):
    family = HistogramMetricFamily(name, name, labels=LABELS)
    for labels, count, total in values:
        family.add_metric(labels, [("1.0", count), ("+Inf", count)], total)
    return family


def test_what_several_dialects_counted_is_one_version_s_sum():
    rest, grpc, late = ("m", "1", "v2-rest", "ok"), ("m", "1", "v2-grpc", "ok"), ("m", "1", "v2-rest", "Overloaded")
    found = statistics_of(
        [
            counter("mlserve_requests", LABELS, (rest, 3), (grpc, 4), (late, 2)),
            histogram("mlserve_request_seconds", (rest, 3, 0.5), (grpc, 4, 0.25), (late, 1, 2.0)),
            histogram("mlserve_queue_seconds", (rest, 3, 0.125), (grpc, 4, 0.125)),
            histogram("mlserve_compute_seconds", (rest, 2, 0.25), (grpc, 1, 0.25)),
            counter("mlserve_rows", LABELS[:2], (("m", "1"), 14)),
            counter("mlserve_batches", LABELS[:2], (("m", "1"), 3)),
        ]
    )
    assert found == {
        ("m", "1"): Statistics(
            inference_count=14,
            execution_count=3,
            success=Spent(7, 750_000_000),
            fail=Spent(2, 2_000_000_000),
            queue=Spent(7, 250_000_000),
            compute=Spent(3, 500_000_000),
        )
    }


def test_versions_are_told_apart_and_other_metrics_are_none_of_theirs():
    rows = counter("mlserve_rows", LABELS[:2], (("m", "1"), 5), (("m", "2"), 6), (("n", "1"), 7))
    found = statistics_of([rows, counter("process_cpu_seconds", (), ((), 9)), Metric("empty", "nothing", "gauge")])
    assert {key: statistics.inference_count for key, statistics in found.items()} == {
        ("m", "1"): 5,
        ("m", "2"): 6,
        ("n", "1"): 7,
    }
    assert statistics_of([]) == {}
