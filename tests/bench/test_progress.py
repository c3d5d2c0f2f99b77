import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.bench.generator.job import Tick
from mlserve.bench.progress import LatencyHistogram, ProgressMeter
from mlserve.stats import quantile

LATENCIES_S = st.lists(st.floats(2e-6, 900), min_size=1, max_size=50)


@given(LATENCIES_S, st.sampled_from([0.5, 0.9, 0.99]))
def test_quantiles_are_within_a_hundredth(latencies_s, q):
    values = np.array(latencies_s)
    histogram = LatencyHistogram()
    histogram.add(values[::2])
    histogram.add(values[1::2])
    assert histogram.quantile(q) == pytest.approx(quantile(values, q), rel=0.011)


def test_nothing_counted_is_no_number():
    histogram = LatencyHistogram()
    histogram.add(np.empty(0))
    assert math.isnan(histogram.quantile(0.5))


@pytest.mark.parametrize("extreme_s", [0.0, 1e-9, 1e6])
def test_values_beyond_the_range_are_counted_at_its_ends(extreme_s):
    histogram = LatencyHistogram()
    histogram.add(np.array([extreme_s]))
    assert 1e-6 <= histogram.quantile(0.5) < 1100


def test_a_meter_adds_up_ticks():
    def tick(ok, failed, latencies_ns):
        return Tick(elapsed_s=1.0, sent=9, ok=ok, failed=failed, dropped=1, in_flight=2, latencies_ns=latencies_ns)

    meter = ProgressMeter()
    assert math.isnan(meter.add(tick(0, 0, [])).p50_s)
    meter.add(tick(2, 0, [1_000_000, 1_000_000]))
    moment = meter.add(tick(4, 1, [1_000_000, 50_000_000]))
    assert (moment.sent, moment.done, moment.failed, moment.dropped, moment.in_flight) == (9, 5, 1, 1, 2)
    assert moment.p50_s == pytest.approx(0.001, rel=0.01)
    assert moment.p99_s == pytest.approx(0.050, rel=0.01)
