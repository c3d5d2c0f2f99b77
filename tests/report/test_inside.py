"""What a report finds inside its runs: stalls, warm-up, where the time went, curves, the front, tables, the verdict."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import RunFileError
from mlserve.report.breakdown import breakdown
from mlserve.report.curves import timeline
from mlserve.report.front import pareto
from mlserve.report.measurement import read_runs
from mlserve.report.pivots import pivots
from mlserve.report.rates import rate_curves
from mlserve.report.readings import Series, binned
from mlserve.report.report import build_report
from mlserve.report.slo import Slo
from mlserve.report.stalls import find_stalls

WHEN = "2026-11-21T13:00:00+00:00"


def report_on(*runs, **more):
    return build_report(runs, max_accuracy_loss=0.01, created_at=WHEN, **more)


def test_a_stall_is_found_where_requests_were_due_and_none_was_answered(made_runs):
    one = made_runs.record(made_runs.Load(2.0, stall_ms=300.0), rate_per_s=200.0)
    stalls = find_stalls([one])
    assert len(stalls) >= 2
    assert all(stall.due >= 10 and 0.2 < stall.duration_s < 0.4 for stall in stalls)
    assert find_stalls([made_runs.record(made_runs.Load(2.0), rate_per_s=200.0)]) == ()


def test_the_warm_up_is_drawn_before_zero_and_counted_nowhere(demo_runs, demo_report):
    line = demo_report.results[0].timeline
    assert line.warm_up is not None
    assert -2.0 < line.warm_up.at_s[0] < 0
    runs = read_runs([demo_runs])
    without = [msgspec.structs.replace(one, warm_up=None) for one in runs[:1]]
    assert timeline(without).warm_up is None
    assert timeline(without).p99_s == timeline(runs[:1]).p99_s


def test_the_parts_of_the_time_add_up_to_the_latency(made_runs):
    one = made_runs.record(made_runs.Load(5.0))
    assert breakdown([one]) is None
    samples = one.samples
    samples.queue_s = np.full(len(samples), 0.001)
    samples.compute_s = np.full(len(samples), 0.0005)
    found = breakdown([one])
    parts = found.every
    total_s = parts.before_sending_s + parts.queue_s + parts.compute_s + parts.elsewhere_s
    assert total_s == pytest.approx(samples.latency_s.mean())
    assert found.slowest.elsewhere_s > parts.elsewhere_s


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_nothing_on_the_front_is_beaten_and_all_else_is_beaten_by_it(points):
    front = [point for point, best in zip(points, pareto(points), strict=True) if best]
    assert front
    for point in points:
        beaten = any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in front)
        assert beaten == (point not in front)


def test_rates_of_one_variant_make_a_curve_and_the_highest_that_keeps_the_objective_is_known(made_runs):
    runs = [
        made_runs.record(made_runs.Load(median_ms), rate_per_s=rate, minute=number)
        for number, (rate, median_ms) in enumerate(((120.0, 30.0), (60.0, 4.0), (90.0, 5.0)))
    ]
    (curve,) = rate_curves(report_on(*runs, slo=Slo(limit_s=0.02)))
    assert [round(point.offered_per_s, -1) for point in curve.points] == [60, 90, 120]
    assert [point.keeps for point in curve.points] == [True, True, False]
    assert curve.best_per_s == curve.points[1].offered_per_s
    assert rate_curves(report_on(runs[0])) == []


def test_results_that_differ_in_one_thing_are_set_side_by_side(demo_report, made_runs):
    tables = {table.title: table for table in pivots(demo_report)}
    assert tables["Variants"].columns == ("fp32", "int8")
    assert [row.name for row in tables["Protocols"].rows] == ["fp32, 60 requests/s", "int8, 60 requests/s"]
    gpu = msgspec.structs.replace(made_runs.SERVER, device="cuda")
    both = report_on(made_runs.record(made_runs.Load(8.0)), made_runs.record(made_runs.Load(2.0), server=gpu, minute=1))
    (table,) = pivots(both)
    assert (table.title, table.columns) == ("CPU against GPU", ("cpu", "cuda"))
    assert table.rows[0].cells[1].best
    assert pivots(report_on(made_runs.record(made_runs.Load()))) == []


def test_the_lowest_of_a_row_is_marked_only_where_it_is_shown_to_be(made_runs):
    def marked(*medians_ms, valid=True):
        devices = [msgspec.structs.replace(made_runs.SERVER, device=name) for name in ("cpu", "cuda", "xpu")]
        checks = (made_runs.ENOUGH,) if valid else (made_runs.LATE,)
        runs = [
            made_runs.record(made_runs.Load(median), server=server, minute=number, seed=number, checks=checks)
            for number, (median, server) in enumerate(zip(medians_ms, devices, strict=False))
        ]
        (table,) = pivots(report_on(*runs))
        return [cell.best for cell in table.rows[0].cells]

    assert marked(8.0, 2.0, 8.0) == [False, True, False]
    assert marked(8.0, 2.0, 2.01) == [False, False, False]
    assert marked(8.0, 2.0, valid=False) == [False, False]


def test_a_comparison_of_the_runs_shows_a_difference_that_their_intervals_do_not(made_runs):
    runs = [
        made_runs.record(made_runs.Load(4.0)),
        made_runs.record(made_runs.Load(3.9), model=made_runs.INT8, minute=1, seed=1),
    ]
    report = report_on(*runs)
    comparison = msgspec.structs.replace(report.recommendation.comparisons[0], finding="faster")
    advice = msgspec.structs.replace(report.recommendation, comparisons=(comparison,))
    assert not any(cell.best for cell in pivots(report)[0].rows[0].cells)
    (table,) = pivots(msgspec.structs.replace(report, recommendation=advice))
    fp32, int8 = table.rows[0].cells
    assert int8.latency_s < fp32.latency_s
    assert (fp32.best, int8.best) == (False, True)


def test_the_verdict_is_one_sentence_with_interval_runner_up_and_objective(made_runs):
    runs = [
        made_runs.record(made_runs.Load(8.0)),
        made_runs.record(made_runs.Load(4.0), model=made_runs.INT8, minute=1, seed=1),
    ]
    kept = report_on(*runs, slo=Slo(limit_s=0.02)).verdict
    assert kept.sentence.startswith("int8 keeps p99 within 20.0 ms at 60 requests/s over REST: ")
    assert "that of the runner-up fp32 (" in kept.sentence
    assert kept.meets
    missed = report_on(*runs, slo=Slo(limit_s=0.002)).verdict
    assert not missed.meets
    assert missed.sentence.startswith("int8 misses p99 within 2.00 ms at 60 requests/s over REST: ")
    alone = report_on(runs[0]).verdict
    assert alone.sentence.startswith("fp32 answers 99% of the requests within ") or "minilm" in alone.sentence
    assert alone.ratio is None
    assert report_on(made_runs.record(made_runs.Load(), checks=(made_runs.LATE,))).verdict is None


def test_readings_are_averaged_in_stretches_and_damaged_ones_are_named(made_runs, tmp_path):
    series = Series(np.array([0.0, 0.5, 1.5]), np.array([1.0, 3.0, 5.0]))
    assert binned([(series, 0.0)], np.array([0.0, 1.0, 2.0, 3.0])) == (2.0, 5.0, None)
    folder = made_runs.save(tmp_path / "one", made_runs.Load(), duration_s=5.0)
    assert read_runs([folder])[0].readings is None
    (folder / "resources.parquet").write_bytes(b"nothing")
    with pytest.raises(RunFileError, match=r"resources\.parquet is damaged"):
        read_runs([folder])
