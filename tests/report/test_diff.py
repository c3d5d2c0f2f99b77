"""What changed between two reports."""

from pathlib import Path

import msgspec
import pytest

from mlserve.errors import RunFileError
from mlserve.report.diff import Side, diff, read_side
from mlserve.report.measurement import group
from mlserve.report.render.changes import diff_markdown, method
from mlserve.report.render.json import render_json
from mlserve.report.report import build_report


def side(name, *runs, rows=True):
    report = build_report(runs, max_accuracy_loss=0.01, created_at="2026-11-21T13:00:00+00:00")
    return Side(name, report, {str(one.runs[0].directory): one for one in group(runs)} if rows else {})


def figures(found, number=0):
    return {figure.name: figure for figure in found.results[number].figures}


@pytest.fixture(scope="module")
def made(made_runs):
    """Runs by name: `slow` is twice as slow as `base`, `again` is `base` with other luck."""
    load = {"rate_per_s": 200.0, "duration_s": 8.0}
    return {
        "base": made_runs.record(made_runs.Load(4.0), directory=Path("a"), **load),
        "again": made_runs.record(made_runs.Load(4.0), seed=1, directory=Path("b"), **load),
        "slow": made_runs.record(made_runs.Load(8.0), seed=2, directory=Path("c"), **load),
        "failing": made_runs.record(made_runs.Load(4.0, failed=0.3), seed=3, directory=Path("d"), **load),
        "invalid": made_runs.record(made_runs.Load(8.0), checks=(made_runs.LATE,), directory=Path("e"), **load),
        "int8": made_runs.record(made_runs.Load(2.0), model=made_runs.INT8, seed=4, directory=Path("f"), **load),
    }


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize(
    ("after", "finding"), [("slow", "worse"), ("again", "no difference shown"), ("base", "no difference shown")]
)
def test_a_latency_that_changed_is_told_from_one_that_did_not(made, after, finding, rows):
    found = figures(diff(side("A", made["base"], rows=rows), side("B", made[after], rows=rows)))
    assert {found[name].finding for name in ("p50", "p95", "p99")} == {finding}
    assert found["p99"].low < found["p99"].change < found["p99"].high
    assert (found["p99"].change == pytest.approx(2.0, rel=0.2)) == (after == "slow")


def test_without_rows_the_interval_is_wider_and_says_so(made):
    with_rows = diff(side("A", made["base"]), side("B", made["again"]))
    without = diff(side("A", made["base"], rows=False), side("B", made["again"], rows=False))
    widths = [figures(one)["p50"].high / figures(one)["p50"].low for one in (with_rows, without)]
    assert widths[0] < widths[1]
    assert "at least 90%" in method(without)
    assert "hold together with 95%" in method(with_rows)


def test_more_failures_are_worse_and_fewer_are_better(made):
    there = diff(side("A", made["base"]), side("B", made["failing"]))
    back = diff(side("A", made["failing"]), side("B", made["base"]))
    assert figures(there)["error rate"].finding == "worse"
    assert figures(back)["error rate"].finding == "better"
    assert figures(there)["error rate"].change == pytest.approx(0.3, abs=0.05)


def test_an_invalid_run_is_shown_and_compared_with_nothing(made):
    found = diff(side("A", made["base"]), side("B", made["invalid"]))
    assert figures(found)["p99"].finding == "not compared"
    assert figures(found)["p99"].remark == "B: INVALID"
    assert figures(found)["p99"].low is None
    assert figures(found)["p99"].change == pytest.approx(2.0, rel=0.2)
    assert found.results[0].certificate.after == "INVALID (0 of 1 runs): generator on time"


def test_what_differs_for_all_is_said_once_and_what_differs_for_one_beside_it(made, made_runs):
    other = msgspec.structs.replace(
        made_runs.MACHINE, cores=8, packages={**made_runs.MACHINE.packages, "onnxruntime": "9"}
    )
    settings = msgspec.structs.replace(made_runs.SERVER, threads=4)
    load = {"rate_per_s": 200.0, "duration_s": 8.0, "machine": other}
    after = [
        made_runs.record(made_runs.Load(4.0), directory=Path("g"), **load),
        made_runs.record(made_runs.Load(2.0), model=made_runs.INT8, server=settings, directory=Path("h"), **load),
    ]
    found = diff(side("A", made["base"], made["int8"]), side("B", *after))
    assert [(one.name, one.before, one.after) for one in found.conditions] == [
        ("machine cores", "2", "8"),
        ("package onnxruntime", "1.23.0", "9"),
    ]
    assert [[one.name for one in result.conditions] for result in found.results] == [[], ["server threads"]]


def test_results_are_paired_with_their_counterparts_and_the_others_are_named(made, made_runs):
    newer = msgspec.structs.replace(made_runs.INT8, version="3", sha256="c" * 64)
    faster = made_runs.record(made_runs.Load(1.0), model=newer, directory=Path("g"), rate_per_s=200.0, duration_s=8.0)
    grpc = made_runs.record(made_runs.Load(1.0), protocol="grpc", directory=Path("h"), rate_per_s=200.0, duration_s=8.0)
    found = diff(side("A", made["base"], made["int8"]), side("B", faster, made["base"], grpc))
    assert {result.variant.partition(" → ")[0] for result in found.results} == {"fp32", "int8"}
    assert [change.after for change in found.results[1].conditions if change.name == "model version"] == ["3"]
    assert found.only_before == ()
    assert [name.partition(", ")[0] for name in found.only_after] == ["fp32"]


def test_two_unlike_results_are_compared_where_there_are_no_others(made):
    found = diff(side("A", made["base"]), side("B", made["int8"]))
    assert found.results[0].variant == "fp32 → int8"
    assert {"model version", "model variant"} <= {change.name for change in found.conditions}
    assert figures(found)["size"].change == pytest.approx(22.9 / 90.4)
    assert figures(found)["cosine"].before is None


def test_a_side_is_runs_or_a_report_and_nothing_else(made_runs, demo_report, tmp_path):
    made_runs.save(tmp_path / "runs" / "one", made_runs.Load(), duration_s=2.0)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "report.json").write_text(render_json(demo_report))
    assert len(read_side(tmp_path / "runs").measurements) == 1
    assert read_side(tmp_path / "saved").report == demo_report
    assert read_side(tmp_path / "saved" / "report.json").measurements == {}
    (tmp_path / "newer.json").write_text('{"format_version": 999}')
    for path, why in (("newer.json", "has format 999, this mlserve reads 1 to"), ("none", "neither runs nor")):
        with pytest.raises(RunFileError, match=why):
            read_side(tmp_path / path)


def test_the_markdown_says_the_same_and_a_hostile_name_is_text(made, made_runs):
    evil = msgspec.structs.replace(made_runs.FP32, variant="a|b\n# <b>`x`")
    after = made_runs.record(made_runs.Load(8.0), model=evil, directory=Path("g"), rate_per_s=200.0, duration_s=8.0)
    text = diff_markdown(diff(side("A", made["base"]), side("B", after)))
    assert "| p99 | " in text
    assert "worse" in text
    assert "<b>" not in text.replace("\\<b\\>", "")
    tables = [line for line in text.replace("\\|", "").splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {4, 7}
