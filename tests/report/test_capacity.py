"""Capacity: more load never takes fewer replicas, more evidence never more, and what is lost is really to spare."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.report.capacity import Bears, Demand, Power, Seen, bears, capacity, replicas

RATES = st.floats(0.1, 1e5)
SPARES, ZONES = st.integers(0, 5), st.sampled_from([0, 2, 3, 5])
RUNS = st.lists(
    st.builds(
        Seen,
        rate_per_s=st.sampled_from([10.0, 20.0, 40.0, 80.0]),
        met=st.booleans(),
        sure=st.booleans(),
        power_w=st.none() | st.floats(1, 500),
    ),
    max_size=8,
)


def borne(proven, met=None, missed=None, power=()):
    return Bears(safe_per_s=proven, met_per_s=met or proven, missed_per_s=missed, power=power)


@given(peak=RATES, each=RATES, spare=SPARES, zones=ZONES)
def test_what_is_left_when_zone_and_spare_are_lost_bears_the_peak_and_one_fewer_would_not(peak, each, spare, zones):
    count = replicas(peak, each, spare=spare, zones=zones)

    def left(n):
        return n - spare - (math.ceil(n / zones) if zones else 0)

    assert left(count) * each >= peak * (1 - 1e-9)
    assert left(count - 1) * each < peak * (1 + 1e-9)


@given(peak=RATES, more=st.floats(1, 100), each=RATES, spare=SPARES, zones=ZONES)
def test_more_load_and_weaker_replicas_never_take_fewer(peak, more, each, spare, zones):
    usual = replicas(peak, each, spare=spare, zones=zones)
    assert replicas(peak * more, each, spare=spare, zones=zones) >= usual
    assert replicas(peak, each / more, spare=spare, zones=zones) >= usual
    assert replicas(peak, each, spare=spare + 1, zones=zones) > usual


def test_whole_multiples_take_no_replica_too_many():
    assert replicas(0.3, 0.1, spare=0, zones=0) == 3
    assert replicas(12_000, 1_000, spare=1, zones=0) == 13
    assert replicas(12_000, 1_000, spare=0, zones=3) == 18
    assert replicas(12_000, 1_000, spare=1, zones=3) == 20


@given(proven=RATES, up=st.floats(1, 3), further=st.floats(1.01, 3), peak=RATES, share=st.floats(0.01, 1), spare=SPARES)
def test_the_safe_count_is_the_highest_and_the_cost_follows_it(proven, up, further, peak, share, spare):
    demand = Demand(peak_per_s=peak, mean_per_s=peak * share, spare=spare, price_per_h=1.5)
    found = capacity(borne(proven, proven * up, proven * up * further), demand)
    assert found.safe.replicas >= found.likely.replicas >= found.least.replicas
    assert found.safe.cost_per_h == 1.5 * found.safe.replicas
    per_h = demand.mean_per_s * 3600
    assert found.safe.cost_per_1000 == pytest.approx(1000 * found.safe.cost_per_h / per_h)
    assert found.safe.share_per_s * max(1, found.safe.replicas - spare) <= peak * (1 + 1e-9)
    quieter = capacity(
        borne(proven), Demand(peak_per_s=peak, mean_per_s=peak * share / 2, spare=spare, price_per_h=1.5)
    )
    assert quieter.safe.cost_per_1000 >= found.safe.cost_per_1000


def test_rows_share_the_cost_and_nobody_pays_where_no_price_is_known():
    one = capacity(borne(100.0), Demand(peak_per_s=1000, mean_per_s=1000, price_per_h=3.6))
    eight = capacity(borne(100.0), Demand(peak_per_s=1000, mean_per_s=1000, rows=8, price_per_h=3.6))
    assert one.safe.cost_per_1000 == pytest.approx(11 * 3.6 / 3600 / 1000 * 1000)
    assert eight.safe.cost_per_1000 == pytest.approx(one.safe.cost_per_1000 / 8)
    assert capacity(borne(100.0), Demand(peak_per_s=1000, mean_per_s=1000)).safe.cost_per_h is None


@given(RUNS)
def test_what_is_borne_is_proven_met_and_missed_in_this_order(seen):
    found = bears(seen)
    if found is None:
        return
    assert found.safe_per_s <= found.met_per_s
    assert found.missed_per_s is None or found.met_per_s < found.missed_per_s
    assert found.proven == any(one.met and one.sure and one.rate_per_s <= found.met_per_s for one in seen)
    assert any(one.met and one.sure >= found.proven and one.rate_per_s == found.safe_per_s for one in seen)


def test_where_nothing_is_proven_the_highest_rate_that_was_met_stands_in():
    seen = [Seen(rate_per_s=100.0, met=True, sure=False), Seen(rate_per_s=200.0, met=False, sure=False)]
    assert bears(seen) == Bears(safe_per_s=100.0, met_per_s=100.0, missed_per_s=200.0, proven=False)
    assert bears(seen[1:]) is None


@given(RUNS, st.sampled_from([10.0, 20.0, 40.0, 80.0]))
def test_one_more_miss_never_raises_what_is_borne(seen, rate):
    seen = [Seen(rate_per_s=5.0, met=True, sure=True), *seen]
    before = bears(seen)
    after = bears([*seen, Seen(rate_per_s=rate, met=False, sure=True)])
    assert after.safe_per_s <= before.safe_per_s
    assert after.met_per_s <= before.met_per_s


def test_a_rate_above_one_that_was_missed_counts_for_nothing():
    good, bad = {"met": True, "sure": True}, {"met": False, "sure": True}
    runs = [Seen(rate_per_s=10, **good), Seen(rate_per_s=20, **bad), Seen(rate_per_s=40, **good)]
    assert bears(runs) == borne(10.0, missed=20.0)
    assert bears(runs[1:]) is None
    assert bears(runs[:1]) == borne(10.0)
    assert capacity(bears(runs[:1]), Demand(peak_per_s=100, mean_per_s=100)).lower_bound
    assert not capacity(bears(runs), Demand(peak_per_s=100, mean_per_s=100)).lower_bound


def test_energy_is_that_of_all_replicas_at_their_share_of_the_mean_load():
    power = (
        Power(rate_per_s=50.0, mean_w=20.0, low_w=18.0, high_w=22.0),
        Power(rate_per_s=100.0, mean_w=30.0, low_w=30.0, high_w=30.0),
    )
    demand = Demand(peak_per_s=300, mean_per_s=300, spare=1)
    found = capacity(borne(100.0, power=power), demand).joules_per_1000
    assert found.mean == pytest.approx(25.0 * 4 / 300 * 1000)  # 75/s each, half-way
    assert found.low == pytest.approx(24.0 * 4 / 300 * 1000)
    assert found.high == pytest.approx(26.0 * 4 / 300 * 1000)
    assert capacity(borne(100.0), demand).joules_per_1000 is None


@given(RUNS, st.floats(1, 1e4))
def test_the_error_bar_of_energy_holds_its_mean(seen, peak):
    found = bears([Seen(rate_per_s=5.0, met=True, sure=True), *seen])
    joules = capacity(found, Demand(peak_per_s=peak, mean_per_s=peak)).joules_per_1000
    if joules is not None:
        assert joules.low <= joules.mean * (1 + 1e-9)
        assert joules.mean <= joules.high * (1 + 1e-9)
