"""Markdown and JSON, against golden files: regenerate with pytest --update-golden, and read the difference."""

import json
import re
from pathlib import Path

import msgspec
import pytest

from mlserve.report.render.json import render_json
from mlserve.report.render.markdown import render_markdown
from mlserve.report.report import Report, build_report

GOLDEN = Path(__file__).parent.parent / "golden"
EVIL = "</script><script>pwned=1</script>|`**_[x](javascript:pwned)_**`\n# <b>&amp;"


@pytest.fixture
def portable_report(demo_report, demo_runs):
    """The report without the temporary folder in it."""
    text = msgspec.json.encode(demo_report).decode().replace(str(demo_runs), "runs")
    return msgspec.json.decode(text, type=Report)


@pytest.fixture
def evil_report(made_runs):
    """A report in which every text that a file can bring is hostile."""
    model = msgspec.structs.replace(
        made_runs.INT8,
        name=EVIL,
        variant=EVIL,
        version=EVIL,
        sha256=EVIL,
        accuracy=msgspec.structs.replace(made_runs.INT8_ACCURACY, metric=EVIL, data=EVIL, reference=EVIL),
    )
    check = msgspec.structs.replace(made_runs.LATE, name=EVIL, found=EVIL, limit=EVIL, advice=EVIL)
    machine = msgspec.structs.replace(made_runs.MACHINE, cpu=EVIL, system=EVIL, packages={EVIL: EVIL})
    runs = [
        made_runs.record(made_runs.Load(8.0), machine=machine, label=EVIL, payload=EVIL, directory=Path(EVIL)),
        made_runs.record(made_runs.Load(4.0), model=model, machine=machine, payload=EVIL),
        made_runs.record(made_runs.Load(4.0), model=model, machine=machine, payload=EVIL, checks=(check,), minute=1),
    ]
    return build_report(runs, max_accuracy_loss=0.01, created_at=EVIL)


def approximately(found, expected):
    """`expected`, its floats as pytest.approx: the last digits are the processor's."""
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and {*found} == {*expected}
            and all(approximately(found[key], value) for key, value in expected.items())
        )
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(approximately, found, expected))
    return found == (pytest.approx(expected, rel=1e-6) if isinstance(expected, float) else expected)


def test_the_markdown_is_the_golden_one(portable_report, request):
    found = render_markdown(portable_report)
    golden = GOLDEN / "report.md"
    if request.config.getoption("--update-golden"):
        golden.write_text(found)
    assert found == golden.read_text()


def test_the_json_is_the_golden_one(portable_report, request):
    found = render_json(portable_report)
    golden = GOLDEN / "report.json"
    if request.config.getoption("--update-golden"):
        golden.write_text(found)
    assert approximately(json.loads(found), json.loads(golden.read_text()))


def test_a_figure_that_differs_from_the_golden_one_would_be_seen(portable_report):
    found, other = json.loads(render_json(portable_report)), json.loads(render_json(portable_report))
    assert approximately(found, other)
    other["results"][0]["summary"]["percentiles"][0]["latency_s"] *= 1.001
    assert not approximately(found, other)


def test_the_json_says_its_format_and_holds_the_whole_report(demo_report):
    document = json.loads(render_json(demo_report))
    assert document["format_version"] == 2
    assert msgspec.json.decode(render_json(demo_report), type=Report) == demo_report


def test_hostile_texts_are_only_text_in_markdown(evil_report):
    text = render_markdown(evil_report)
    unescaped = re.sub(r"\\.", "", text)
    prose = re.sub(r"(`{3,})sh\n.*?\n\1", "", unescaped, flags=re.DOTALL)
    prose = re.sub(r"(`+) .*? \1", "", prose)
    assert not re.search(r"[<>`]", prose)
    assert "](" not in prose
    assert not re.search(r"^# <b>", prose, flags=re.MULTILINE)
    for table in re.findall(r"(?:^\|.*\|\n?)+", prose, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.strip().splitlines()}) == 1


def test_a_report_without_a_recommendation_says_so_in_markdown(made_runs):
    run = made_runs.record(made_runs.Load(failed=1.0), checks=(made_runs.LATE,))
    text = render_markdown(build_report([run], max_accuracy_loss=0.01, created_at="2026-11-21T13:00:00+00:00"))
    assert "## No recommendation\n\nNo run is VALID." in text
    assert "generator on time: p99 of requests left 9.10 ms late" in text
    assert "| 100.00% (" in text
