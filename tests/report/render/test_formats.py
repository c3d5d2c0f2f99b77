"""Pictures, tables and schemas of a report."""

import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import msgspec
import pandas as pd
import pytest

from mlserve.report.render.files import write_report
from mlserve.report.render.images import chosen, pictures, png, svg
from mlserve.report.render.json import render_json
from mlserve.report.render.schema import SCHEMAS, schema_text
from mlserve.report.render.tables import csv, parquet, result_table, run_table
from mlserve.report.report import build_report

DOCS = Path(__file__).parents[3] / "docs"
EVIL = "</svg><script>pwned=1</script>\"'&<!--\n,;=1+1"


@pytest.fixture(scope="module")
def odd_report(made_runs):
    """All that may be missing: an INVALID run in which nothing was answered, a server that was not ours, evil names."""
    evil = msgspec.structs.replace(made_runs.INT8, name=EVIL, variant=EVIL)
    short = {"duration_s": 3.0}
    runs = [
        made_runs.record(made_runs.Load(failed=1.0), checks=(made_runs.LATE,), **short),
        made_runs.record(made_runs.Load(), model=evil, server=None, label=EVIL, minute=1, **short),
    ]
    return build_report(runs, max_accuracy_loss=0.01, created_at="2026-11-21T13:00:00+00:00")


@pytest.fixture(scope="module")
def one_report(made_runs):
    run = made_runs.record(made_runs.Load(), duration_s=3.0)
    return build_report([run], max_accuracy_loss=0.01, created_at="2026-11-21T13:00:00+00:00")


def test_a_picture_stands_alone_on_paper_of_its_own(demo_report):
    picture = next(one for one in pictures(demo_report) if one.name == "distribution-0")
    text = svg(picture)
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    words = {part.text for part in root.iter() if part.text}
    assert {picture.kind, picture.title, "fp32", "int8"} <= words
    assert any(word.startswith("How long the slowest requests wait.") for word in words)
    assert re.search(r'<rect [^>]*fill="#ffffff"', text)
    assert "var(" not in text
    assert len(text) < 40_000


def test_every_picture_can_be_drawn_and_is_twice_as_wide_as_in_a_page(odd_report):
    for picture in pictures(odd_report):
        content = png(picture)
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(content[16:20]) > 1200


def test_a_hostile_name_is_only_text_in_a_picture(odd_report):
    drawn = [svg(picture) for picture in pictures(odd_report)]
    assert drawn
    for text in drawn:
        assert not [one.tag for one in ElementTree.fromstring(text).iter() if one.tag.endswith("script")]
    assert any("pwned" in text for text in drawn)


def test_a_pull_request_shows_few_pictures_of_unlike_kinds(demo_report):
    every = pictures(demo_report)
    few = chosen(every)
    assert 1 < len(few) <= 4 < len(every)
    assert len({picture.kind for picture in few}) == len(few)


def test_the_markdown_names_the_pictures_beside_it(demo_report, tmp_path):
    assert write_report(demo_report, tmp_path, ["md"]) == [tmp_path / "report.md"]
    named = re.findall(r"^!\[.+\]\((.+)\)$", (tmp_path / "report.md").read_text(), flags=re.MULTILINE)
    assert named
    assert {tmp_path / name for name in named} == {*(tmp_path / "report-assets").iterdir()}


def test_the_tables_hold_the_reports_figures_with_their_units(demo_report):
    results, runs = result_table(demo_report), run_table(demo_report)
    assert len(results) == len(demo_report.results)
    assert len(runs) == 8
    first = demo_report.results[0]
    assert results["p99_s"][0] == first.summary.percentile("p99").latency_s
    assert results["p99_low_s"][0] == first.summary.percentile("p99").low_s
    assert results["size_bytes"].tolist() == [90_400_000, 22_900_000] * 2
    assert runs["plan_rate_per_s"].tolist() == [60.0] * 8
    assert runs["server_workers"].dtype == "Int64"
    assert runs["machine_cores"].tolist() == [2] * 8
    assert runs["command"][0].startswith("mlserve bench minilm@1 ")


def test_what_is_unknown_stays_unknown_and_a_count_stays_whole(odd_report):
    runs = run_table(odd_report)
    assert runs["valid"].tolist() == [False, True]
    assert runs["faults"].tolist() == ["generator on time", ""]
    assert runs["server_workers"].isna().tolist() == [False, True]
    assert runs["server_workers"][0] == 1
    assert runs["server_workers"].dtype == "Int64"
    assert runs["p99_s"].isna()[0]


@pytest.mark.parametrize("table", [result_table, run_table])
def test_csv_and_parquet_are_read_as_they_were_written(odd_report, table):
    written = table(odd_report)
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(parquet(written))), written, check_dtype=True)
    read = pd.read_csv(io.BytesIO(csv(written)))
    assert [*read.columns] == [*written.columns]
    assert read["variant"].tolist() == ["fp32", EVIL]


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_published_schema_is_that_of_the_code(name, request):
    published = DOCS / f"{name}.schema.json"
    if request.config.getoption("--update-golden"):
        published.write_text(schema_text(name))
    assert schema_text(name) == published.read_text(), "regenerate with: pytest --update-golden"


def against(name, document):
    schema = json.loads(schema_text(name))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(document)


def test_reports_and_runs_are_as_their_schemas_say(demo_report, demo_runs, one_report, odd_report):
    for report in (demo_report, one_report, odd_report):
        against("report", json.loads(render_json(report)))
    against("run", json.loads(next(demo_runs.glob("*/run.json")).read_text()))


def test_a_report_that_is_not_as_its_schema_says_would_be_seen(one_report):
    document = json.loads(render_json(one_report))
    document["results"][0]["summary"]["scheduled"] = "many"
    with pytest.raises(jsonschema.ValidationError, match="many"):
        against("report", document)
