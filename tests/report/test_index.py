"""The index of a folder of reports."""

import json
from html.parser import HTMLParser

import msgspec
import pytest

from mlserve.report.index import Entry, Index, Point, Series, build_index
from mlserve.report.render.index_page import index_html, index_markdown
from mlserve.report.render.json import render_json
from mlserve.report.report import build_report

EVIL = "</a><script>pwned=1</script>|`x`](javascript:y)"


def written(made_runs, path, day, median_ms, **settings):
    run = made_runs.record(made_runs.Load(median_ms), rate_per_s=200.0, duration_s=4.0, **settings)
    report = build_report([run], max_accuracy_loss=0.01, created_at=f"2026-11-{day:02d}T13:00:00+00:00")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_json(report))


@pytest.fixture(scope="module")
def folder(made_runs, tmp_path_factory):
    """Three reports of one series, one of another machine, a gate's verdict, a benchmark, a broken file, raw runs."""
    root = tmp_path_factory.mktemp("reports")
    for day, median_ms in ((3, 8.0), (1, 4.0), (2, 6.0)):
        written(made_runs, root / "nightly" / f"day{day}.json", day, median_ms)
    other = msgspec.structs.replace(made_runs.MACHINE, cpu="Another")
    written(made_runs, root / "nightly" / "other.json", 5, 1.0, machine=other)
    (root / "nightly" / "day3.html").write_text("page")
    metric = {"metric": "p99", "verdict": "fail", "difference": {"change": 1.5}}
    (root / "gate.json").write_text(json.dumps({"verdict": "fail", "metrics": [metric]}))
    cells = [{"way": "a", "rows_per_s": 100.0, "p99_s": 0.002, "right": True}, {"p99_s": 0.004, "right": False}]
    (root / "speed.json").write_text(json.dumps({"machine": {"cpu": "X", "cores": 1}, "cells": cells}))
    (root / "broken.json").write_text("{")
    (root / "runs").mkdir()
    (root / "runs" / "run.json").write_text("{")
    readme = "| report | made by |\n|---|---|\n| [`speed.json`](speed.json): how fast | `python speed.py` |\n"
    (root / "README.md").write_text(readme)
    return root


@pytest.fixture(scope="module")
def index(folder):
    return build_index(folder, {folder / "speed.json": "2026-11-04T00:00:00+00:00"})


def entry(index, path):
    return next(one for one in index.entries if one.path == path)


def test_the_newest_is_first_and_what_has_no_date_is_last(index):
    paths = [one.path for one in index.entries]
    assert paths[:5] == [f"nightly/{name}.json" for name in ("other",)] + [
        "speed.json",
        "nightly/day3.json",
        "nightly/day2.json",
        "nightly/day1.json",
    ]
    assert {*paths[5:]} == {"broken.json", "gate.json"}


def test_a_report_says_its_verdict_its_figures_and_where_its_page_is(index):
    found = entry(index, "nightly/day3.json")
    assert (found.kind, found.title, found.verdict) == ("report", "minilm", "fp32, measured")
    assert found.figures[0][0] == "p99 of fp32, 200 requests/s over REST"
    assert found.machine == "AMD EPYC 9B14, 2 cores"
    assert found.page == "nightly/day3.html"
    assert entry(index, "nightly/day2.json").page == ""


def test_a_gate_says_pass_or_fail_and_by_what(index):
    found = entry(index, "gate.json")
    assert (found.kind, found.verdict, found.good) == ("gate", "fail", False)
    assert found.figures == (("p99", "fail (1.50x)"),)


def test_of_a_benchmark_there_is_what_can_be_told_and_what_the_readme_says(index):
    found = entry(index, "speed.json")
    assert (found.kind, found.title, found.command) == ("benchmark", "how fast", "python speed.py")
    assert (found.verdict, found.good) == ("1 of 2 as they should be", False)
    assert found.figures == (("rows", "100/s"), ("p99", "2.00 ms to 4.00 ms"))
    assert found.machine == "X, 1 core"


def test_a_file_that_cannot_be_read_is_an_entry_that_says_so(index):
    found = entry(index, "broken.json")
    assert (found.kind, found.good) == ("unreadable", False)
    assert found.verdict


def test_one_thing_measured_on_one_machine_is_followed_over_time(index):
    assert len(index.series) == 1
    points = index.series[0].points
    assert [point.made_at[8:10] for point in points] == ["01", "02", "03"]
    assert [point.p99_s for point in points] == sorted(point.p99_s for point in points)
    markdown = index_markdown(index)
    assert "▄▆█" in markdown
    assert "| 2.0" in markdown


class Reader(HTMLParser):
    """The elements of a page, the addresses in it, and whether each is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self._open = [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("href", "src")]
        if tag not in ("meta", "line", "polyline"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("meta", "line", "polyline"):
            assert self._open.pop() == tag


def test_the_page_is_well_formed_runs_nothing_and_links_only_to_its_folder(index):
    text = index_html(index)
    page = Reader(text)
    assert "script" not in page.tags
    assert {"nightly/day3.html", "nightly/day3.json", "speed.json"} <= {*page.links}
    assert not [link for link in page.links if ":" in link]
    assert "default-src 'none'" in text
    assert page.tags.count("svg") == 1
    assert 'aria-label="3 reports: 2026-11-01' in text


def test_the_sessions_of_a_history_are_followed_too_and_a_broken_one_is_said(made_runs, tmp_path):
    from mlserve.report.gating.history import append_history
    from mlserve.report.measurement import group

    for minute, median_ms in ((0, 8.0), (1, 4.0)):
        run = made_runs.record(made_runs.Load(median_ms), minute=minute, rate_per_s=200.0, duration_s=4.0)
        append_history(tmp_path / "history", group([run])[0])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "2026-11.jsonl").write_text("{\n")
    index = build_index(tmp_path, {})
    assert [one.name for one in index.series] == ["history: minilm fp32, 200 requests/s over REST"]
    first, last = index.series[0].points
    assert last.p99_s == pytest.approx(first.p99_s / 2, rel=0.2)
    assert [(one.path, one.kind) for one in index.entries] == [("bad", "unreadable")]


def test_hostile_names_are_only_text(made_runs, tmp_path):
    model = msgspec.structs.replace(made_runs.FP32, name=EVIL, variant=EVIL)
    for day in (1, 2):
        written(made_runs, tmp_path / f"<script>|{day}.json", day, 4.0, model=model)
    index = build_index(tmp_path, {})
    assert "script" not in Reader(index_html(index)).tags
    text = index_markdown(index)
    assert "<script>p" not in text.replace("\\<script\\>p", "")
    for line in text.splitlines():
        if line.startswith("|") and "script" in line:
            assert line.replace("\\|", "").count("|") == 7


def test_an_empty_folder_has_an_index_too(tmp_path):
    index = build_index(tmp_path, {})
    assert index.entries == ()
    assert "No report yet." in index_html(index)


@pytest.mark.parametrize(("count", "folded"), [(70, True), (20, False)])
def test_a_long_history_is_folded_and_drawn_without_points(count, folded):
    entries = tuple(Entry(path=f"{one}.json", kind="benchmark", made_at="", title=f"{one}") for one in range(count))
    points = tuple(Point(f"2026-01-{one + 1:02d}T00:00:00+00:00", 0.01) for one in range(count))
    index = Index(entries, (Series("a", "b", points),))
    text = index_html(index)
    assert {f"{one}.json" for one in range(count)} <= {*Reader(text).links}
    assert ("<summary>10 older</summary>" in text) == folded
    assert text.count("<circle") == (0 if folded else count)
    assert index_markdown(index).count("█") == min(count, 30)
