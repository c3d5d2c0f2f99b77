import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.bench.generator.job import Tick
from mlserve.bench.progress import LatencyHistogram, ProgressMeter, bucket_of, count_latencies
from mlserve.stats import quantile

LATENCIES_NS = st.lists(st.integers(2_000, 900 * 10**9), min_size=1, max_size=50)


@given(LATENCIES_NS, st.sampled_from([0.5, 0.9, 0.99]))
def test_quantiles_are_within_a_hundredth(latencies_ns, q):
    histogram = LatencyHistogram()
    histogram.add(count_latencies(latencies_ns[::2]))
    histogram.add(count_latencies(latencies_ns[1::2]))
    assert histogram.quantile(q) == pytest.approx(quantile(latencies_ns, q) / 1e9, rel=0.011)


@given(st.lists(st.integers(0, 10**13), max_size=50))
def test_every_latency_is_counted_in_its_bucket(latencies_ns):
    counts = count_latencies(latencies_ns)
    assert sum(counts.values()) == len(latencies_ns)
    assert set(counts) == {bucket_of(latency_ns) for latency_ns in latencies_ns}


def test_nothing_counted_is_no_number():
    histogram = LatencyHistogram()
    histogram.add(count_latencies([]))
    assert math.isnan(histogram.quantile(0.5))


@pytest.mark.parametrize("extreme_ns", [-5, 0, 1, 10**15])
def test_values_beyond_the_range_are_counted_at_its_ends(extreme_ns):
    histogram = LatencyHistogram()
    histogram.add(count_latencies([extreme_ns]))
    assert 1e-6 <= histogram.quantile(0.5) < 1100


def test_a_meter_adds_up_ticks():
    def tick(ok, failed, latencies_ns):
        latencies = count_latencies(latencies_ns)
        return Tick(elapsed_s=1.0, sent=9, ok=ok, failed=failed, dropped=1, in_flight=2, latencies=latencies)

    meter = ProgressMeter()
    assert math.isnan(meter.add(tick(0, 0, [])).p50_s)
    meter.add(tick(2, 0, [1_000_000, 1_000_000]))
    moment = meter.add(tick(4, 1, [1_000_000, 50_000_000]))
    assert (moment.sent, moment.done, moment.failed, moment.dropped, moment.in_flight) == (9, 5, 1, 1, 2)
    assert moment.p50_s == pytest.approx(0.001, rel=0.01)
    assert moment.p99_s == pytest.approx(0.050, rel=0.01)
