"""The figures of runs, against the rows they come from."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.report.curves import distribution, timeline
from mlserve.report.summary import PERCENTILES, summarize, too_few


@pytest.fixture(scope="module")
def long_run(made_runs):
    """6,000 requests, of which some fail and some are dropped."""
    return made_runs.record(made_runs.Load(failed=0.02, dropped=0.01), rate_per_s=300.0, batch_rows=4)


def test_percentiles_are_of_the_latencies_from_the_schedule_with_service_times_beside(long_run):
    summary = summarize([long_run])
    for name, q in PERCENTILES.items():
        found = summary.percentile(name)
        assert found.latency_s == np.quantile(long_run.samples.latency_s, q, method="inverted_cdf")
        assert found.service_s == np.quantile(long_run.samples.service_s, q, method="inverted_cdf")
        assert found.low_s <= found.latency_s <= found.high_s
        assert found.service_s < found.latency_s
    assert summary.max_s == long_run.samples.latency_s.max()
    assert summary.mean_s == pytest.approx(long_run.samples.latency_s.mean())


def test_every_request_that_was_due_is_counted_once(long_run):
    summary = summarize([long_run])
    status = long_run.samples.status
    assert summary.failures == {"HTTP 503": (status == "HTTP 503").sum(), "dropped": (status == "dropped").sum()}
    assert list(summary.failures) == ["HTTP 503", "dropped"]
    assert summary.scheduled == len(status) == summary.answered + sum(summary.failures.values())
    assert summary.error_rate == pytest.approx(sum(summary.failures.values()) / len(status))


def test_rates_are_of_what_was_due_and_of_what_was_answered(long_run):
    summary = summarize([long_run])
    assert summary.offered_per_s == pytest.approx(summary.scheduled / 20)
    assert summary.answered_per_s == pytest.approx(summary.answered / 20, rel=0.01)
    assert summary.rows_per_s == pytest.approx(4 * summary.answered_per_s)


def test_a_server_that_falls_behind_has_the_lower_throughput(made_runs):
    plan = made_runs.make_plan(duration_s=2.0, warm_up_s=0.0)
    quick = made_runs.record(made_runs.Load(4.0), duration_s=2.0, warm_up_s=0.0)
    behind = made_runs.record(made_runs.Load(2000.0, spread=0.01), duration_s=2.0, warm_up_s=0.0)
    assert summarize([behind]).answered_per_s < 0.6 * plan.rate_per_s < summarize([quick]).answered_per_s


def test_a_percentile_with_too_few_answers_is_refused_with_the_number_it_takes(made_runs):
    summary = summarize([made_runs.record(made_runs.Load(), duration_s=5.0)])
    refused = summary.percentile("p99")
    assert refused.latency_s is refused.low_s is refused.service_s is None
    assert refused.refused == f"p99 needs 459 answered requests, there are {summary.answered}"
    assert summary.percentile("p90").latency_s is not None


def test_just_enough_answers_are_enough():
    assert too_few("p99", 0.99, 459) == ""
    assert too_few("p99", 0.99, 458) == "p99 needs 459 answered requests, there are 458"


def test_repeats_are_taken_together(made_runs):
    runs = [made_runs.record(made_runs.Load(), seed=seed) for seed in range(2)]
    both = summarize(runs)
    assert both.answered == sum(summarize([run]).answered for run in runs)
    assert both.offered_per_s == pytest.approx(np.mean([summarize([run]).offered_per_s for run in runs]))


@pytest.mark.parametrize("rate_per_s", [60.0, 1e-9])
def test_a_run_without_a_single_answer_has_figures_that_say_so(made_runs, rate_per_s):
    run = made_runs.record(made_runs.Load(failed=1.0), rate_per_s=rate_per_s)
    summary = summarize([run])
    assert summary.answered == 0
    assert summary.answered_per_s == 0
    assert summary.mean_s is summary.max_s is None
    assert all(percentile.refused for percentile in summary.percentiles)
    assert distribution([run]).q == ()
    assert set(timeline([run]).p99_s) == {None}


@given(seed=st.integers(0, 1000), median_ms=st.floats(0.01, 1000), spread=st.floats(0, 2))
def test_percentiles_rise(made_runs, seed, median_ms, spread):
    run = made_runs.record(
        made_runs.Load(median_ms, spread=spread), seed=seed, rate_per_s=300.0, duration_s=2.0, warm_up_s=0.0
    )
    known = [found.latency_s for found in summarize([run]).percentiles if found.latency_s is not None]
    assert known == sorted(known)
    curve = distribution([run])
    assert list(curve.latency_s) == sorted(curve.latency_s)
    assert curve.latency_s[0] == run.samples.latency_s.min()


def test_a_curve_ends_where_the_claim_ends(made_runs):
    short, long = (made_runs.record(made_runs.Load(), duration_s=duration_s) for duration_s in (10.0, 100.0))
    assert 0.98 < distribution([short]).q[-1] < 0.995 < distribution([long]).q[-1] < 0.9995


def test_a_timeline_holds_every_request_once(made_runs):
    runs = [made_runs.record(made_runs.Load(stall_ms=300.0), seed=seed, rate_per_s=300.0) for seed in range(2)]
    line = timeline(runs)
    loaded_s = line.stretch_s * len(runs)
    assert line.at_s[0] == line.stretch_s / 2
    assert line.at_s[-1] == pytest.approx(20 - line.stretch_s / 2)
    assert sum(line.offered_per_s) * loaded_s == pytest.approx(sum(len(run.samples) for run in runs))
    assert max(line.p99_s) > 0.2  # the stall
    assert max(line.p50_s) < 0.02


def test_results_of_one_load_have_the_same_stretches_though_one_answers_less(made_runs):
    good, bad = (made_runs.record(made_runs.Load(failed=failed)) for failed in (0.0, 0.5))
    assert timeline([good]).at_s == timeline([bad]).at_s


def test_a_summary_is_plain_data(long_run):
    summary = summarize([long_run])
    assert msgspec.json.decode(msgspec.json.encode(summary), type=type(summary)) == summary
