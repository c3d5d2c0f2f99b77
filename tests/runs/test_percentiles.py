"""Percentiles of rows: exact, within their windows, and refused where there are too few."""

import numpy as np
import pyarrow as pa
import pytest

from mlserve.runs.percentiles import PERCENTILES, latency_blocks, percentiles, too_few
from mlserve.runs.samples import OK, SCHEMA, Sample, Samples
from mlserve.runs.window import WHOLE, Window


def samples_of(latency_s, *, every_s=0.01, status=OK):
    """One request each `every_s`, sent a millisecond late."""
    rows = [
        Sample(due := round(number * every_s * 1e9), due + 10**6, None, due + round(one * 1e9), 1, 0, status, "")
        for number, one in enumerate(latency_s)
    ]
    return Samples(pa.Table.from_pylist([row._asdict() for row in rows], SCHEMA))


def lognormal(count, seed=0):
    return 0.01 * np.random.default_rng(seed).lognormal(0, 0.3, count)


def test_a_percentile_is_one_of_the_latencies_within_its_interval():
    samples, window = samples_of(lognormal(1000)), Window(0.0, 10.0)
    found = percentiles([(samples, window)])
    assert [one.name for one in found] == list(PERCENTILES)
    for one in found[:4]:
        assert one.latency_s in samples.latency_s
        assert one.latency_s == np.quantile(samples.latency_s, PERCENTILES[one.name], method="inverted_cdf")
        assert one.low_s <= one.latency_s <= one.high_s
        assert one.service_s == pytest.approx(one.latency_s - 0.001)


def test_what_was_due_outside_the_window_does_not_count():
    latency_s = np.concatenate([np.full(200, 1.0), np.full(500, 0.01)])
    samples = samples_of(latency_s)
    (measured,) = percentiles([(samples, Window(2.0, 7.0))], ["p50"])
    (whole,) = percentiles([(samples, Window(0.0, 7.0))], ["p99"])
    assert (measured.latency_s, measured.low_s, measured.high_s) == pytest.approx((0.01, 0.01, 0.01))
    assert whole.latency_s == pytest.approx(1.0)
    assert sum(len(block) for block in latency_blocks(samples, Window(2.0, 7.0))) == 500


def test_too_few_samples_are_refused_with_the_number_it_takes():
    samples = samples_of(lognormal(458))
    p90, p99 = percentiles([(samples, Window(0.0, 4.58))], ["p90", "p99"])
    assert p90.refused == ""
    assert p99.refused == too_few("p99", 0.99, 458) == "p99 needs 459 answered requests, there are 458"
    assert p99.latency_s is p99.low_s is p99.high_s is p99.service_s is None
    (none,) = percentiles([(samples_of(lognormal(50), status="HTTP 503"), Window(0.0, 1.0))], ["p50"])
    assert none.refused == "p50 needs 7 answered requests, there are 0"


def test_repeats_are_taken_together_and_what_differs_between_them_widens_the_interval():
    window = Window(0.0, 5.0)
    alike = [(samples_of(lognormal(500, seed)), window) for seed in range(4)]
    apart = [(samples_of(lognormal(500, seed) * (1 + seed)), window) for seed in range(4)]
    (together,) = percentiles(alike, ["p50"])
    (spread,) = percentiles(apart, ["p50"])
    assert together.latency_s == np.quantile(
        np.concatenate([samples.latency_s for samples, _ in alike]), 0.5, method="inverted_cdf"
    )
    assert (spread.high_s - spread.low_s) / spread.latency_s > 3 * (together.high_s - together.low_s) / 0.01


def test_more_confidence_is_a_wider_interval():
    run = (samples_of(lognormal(1000)), Window(0.0, 10.0))
    (usual,), (sure,) = percentiles([run], ["p90"]), percentiles([run], ["p90"], confidence=0.999)
    assert sure.low_s < usual.low_s < usual.high_s < sure.high_s


def test_blocks_are_the_twentieths_of_the_window():
    blocks = latency_blocks(samples_of(lognormal(100)), Window(0.0, 1.0))
    assert [len(block) for block in blocks] == [5] * 20
    assert WHOLE.duration_s == np.inf
