"""Markdown and JSON, against golden files: regenerate with pytest --update-golden, and read the difference."""

import json
import re
from pathlib import Path

import msgspec
import pytest

from mlserve.report.choice import Choice, Tried
from mlserve.report.render.json import render_json
from mlserve.report.render.markdown import plain, render_markdown
from mlserve.report.report import Report, build_report
from mlserve.report.slo import Slo

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
    prose = re.sub(r"^(</?details>|<summary>[\w ]+</summary>)$", "", prose, flags=re.MULTILINE)
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


def test_a_report_on_many_runs_fits_into_a_pull_request_and_the_pick_is_in_every_part(demo_report):
    first = demo_report.results[0]
    others = [msgspec.structs.replace(first, variant=f"variant-{number}", recommended=False) for number in range(200)]
    pick = msgspec.structs.replace(first, variant="pick", recommended=True)
    text = render_markdown(msgspec.structs.replace(demo_report, results=(*others, pick), verdict=None))
    assert len(text) < 65_536
    results, percentiles, *_ = text.split("<details>")
    assert results.count("\n| 60 requests/s over REST |") == 201
    assert percentiles.count("\n| 60 requests/s over REST |") == 24
    assert "\n| 60 requests/s over REST | pick |" in percentiles
    assert "177 more are in the report's other formats." in percentiles
    assert "more are in" not in render_markdown(demo_report)


@pytest.mark.parametrize(("limit_s", "kept"), [(1.0, "SLO kept"), (1e-4, "SLO missed")])
def test_what_was_promised_and_the_verdict_are_in_markdown(made_runs, limit_s, kept):
    slo = Slo(limit_s=limit_s)
    run = made_runs.record(made_runs.Load(8.0))
    report = build_report([run], max_accuracy_loss=0.01, created_at="2026-11-21T13:00:00+00:00", slo=slo)
    text = render_markdown(report)
    assert f"\n{kept}: {slo.words}\n" in text
    assert f"\n{plain(report.verdict.sentence)}\n" in text


def test_what_a_search_tried_and_what_mattered_is_in_markdown(demo_report):
    pick = Tried(number=0, label="int8 | batch 8", state="picked", value=0.004, low=0.003, high=0.005, predicted=0.004)
    other = Tried(number=1, label="fp32", state="missed", why="p99 9 ms")
    choice = Choice(
        slo=Slo(limit_s=0.02),
        goal="latency",
        rate_per_s=60.0,
        price_per_h=None,
        settings=40,
        figure="p99",
        pick=pick,
        confirmed=True,
        valid=True,
        at_per_s=60.0,
        why="",
        tried=(pick, other),
        importance={"variant": 0.8},
    )
    text = render_markdown(msgspec.structs.replace(demo_report, choice=choice))
    assert "\n| int8 \\| batch 8 (the pick) | 4.00 ms (3.00 ms to 5.00 ms) | 4.00 ms | - |  |\n" in text
    assert "\n| fp32 | missed | - | - | p99 9 ms |\n" in text
    assert "by itself explains: variant 80%." in text
    assert "## The search" not in render_markdown(demo_report)
