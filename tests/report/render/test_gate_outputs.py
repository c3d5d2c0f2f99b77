"""What CI sees of a gate: JUnit, GitHub's annotations and Markdown, and badges; whatever names the runs have."""

import json
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.report.gating.result import FalseAlarms, Finding, GateResult, MetricVerdict
from mlserve.report.render.badge import render_badge, render_endpoint
from mlserve.report.render.gate_figures import gate_figures
from mlserve.report.render.github import render_annotations, render_comment
from mlserve.report.render.junit import render_junit

HOSTILE = [
    "a\n::error::forged",
    "a\r::set-output name=x::y",
    "%0A::error::forged",
    "title=x,file=/etc/passwd::y",
    "</testsuite><failure/>",
    '"><script>alert(1)</script>',
    "]]>",
    "a | b\n| --- |",
    "[click](javascript:alert(1))",
    "<img src=x onerror=alert(1)>",
    "@everyone",
    "nul\x00 bell\x07 \ud800 \ufffe",
    "`code` *bold* ~~gone~~ #1",
]


def metric(name="p99", verdict="pass", *, found=True, **said):
    finding = Finding(baseline=0.004, candidate=0.0044, change=1.1, low=1.05, high=1.15)
    usual = {"metric": name, "difference": finding if found else None, "limit": 1.05, "verdict": verdict}
    return MetricVerdict(**(usual | said))


def result(*metrics, verdict="pass", reasons=(), notes=()):
    return GateResult(
        mode="relative",
        verdict=verdict,
        reasons=reasons,
        metrics=metrics or (metric(),),
        notes=notes,
        baseline_runs=("out/01-base", "out/02-base"),
        candidate_runs=("out/01-candidate", "out/02-candidate"),
    )


def figures(of, base="minilm@1", candidate="minilm@2"):
    return gate_figures(of, base, candidate, took_s=12.5)


def test_every_metric_is_a_test_case_and_the_whole_is_one():
    failed = metric("p99", "fail", reason="p99 is worse than the limit")
    open_ = metric("p50", "inconclusive", reason="p50 may lie on either side")
    document = ET.fromstring(render_junit(figures(result(failed, open_, metric("mean"), verdict="fail"))))
    suite = document.find("testsuite")
    assert {name: suite.get(name) for name in ("tests", "failures", "errors")} == {
        "tests": "4",
        "failures": "2",
        "errors": "1",
    }
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    assert cases["p99"].find("failure").text.endswith("p99 is worse than the limit")
    assert cases["p99"].find("failure").get("message") == "p99 4.00 ms -> 4.40 ms, 1.10x (1.05x to 1.15x), limit 1.05x"
    assert cases["p50"].find("error").get("type") == "inconclusive"
    assert cases["mean"].find("failure") is None
    assert cases["verdict"].find("failure").get("message").startswith("minilm@2 is worse than minilm@1")
    assert cases["verdict"].get("time") == "12.500"


def test_a_gate_that_passes_has_no_failure_anywhere():
    """The negative control of the one above."""
    suite = ET.fromstring(render_junit(figures(result(metric(), metric("p50"))))).find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "0", "0")


def test_annotations_name_what_did_not_pass_at_its_level():
    failed, open_ = metric("p99", "fail", reason="it is worse"), metric("p50", "inconclusive", found=False)
    lines = render_annotations(figures(result(failed, open_, metric("mean"), verdict="fail", reasons=("it is worse",))))
    assert [line.partition("::")[2].partition(" ")[0] for line in lines] == ["error", "error", "warning"]
    assert lines[0].startswith("::error title=mlserve gate%3A fail::minilm@2 is worse than minilm@1")
    assert "p50 is unknown, limit 1.05x" in lines[2]
    assert [line[:9] for line in render_annotations(figures(result()))] == ["::notice "]


def test_the_comment_is_a_table_with_the_verdict_above_it():
    of = result(metric("p99", "fail"), verdict="fail", reasons=("p99 is worse",), notes=("a note",))
    text = render_comment(figures(of))
    assert "mlserve gate: fail" in text
    assert "| p99 | 4.00 ms | 4.40 ms | 1.10x | 1.05x to 1.15x | 1.05x | ❌ fail |" in text
    assert "- p99 is worse" in text
    assert "- a note" in text


@pytest.mark.parametrize(
    ("unit", "values", "shown"),
    [
        ("points", (0.01, 0.002, 0.018), "+1.00 pt (+0.20 to +1.80 pt)"),
        ("ratio", (1.1, 1.05, 1.15), "1.10x (1.05x to 1.15x)"),
    ],
)
def test_a_change_is_shown_in_its_unit(unit, values, shown):
    change, low, high = values
    found = Finding(baseline=0.004, candidate=0.0044, change=change, low=low, high=high)
    row = figures(result(metric(unit=unit, difference=found))).rows[0]
    assert f"{row.change} ({row.interval})" == shown


def test_a_limit_of_the_candidate_alone_is_shown_as_one():
    found = Finding(baseline=None, candidate=0.0044, change=0.0044, low=0.0041, high=None)
    said = metric(difference=found, absolute=True, unit="s", limit=0.05, sense="at most")
    row = figures(result(said)).rows[0]
    assert (row.base, row.candidate, row.change, row.limit) == ("-", "4.40 ms", "-", "<= 50.0 ms")
    assert row.interval == "-"


def bound(name="p99", verdict="fail"):
    found = Finding(baseline=None, candidate=0.06, change=0.06, low=0.058, high=None)
    return metric(name, verdict, difference=found, absolute=True, unit="s", limit=0.05)


@pytest.mark.parametrize(
    ("metrics", "headline"),
    [
        ((bound(), metric("p50")), "minilm@2 does not keep p99 <= 50.0 ms"),
        ((bound(), bound("p50")), "minilm@2 does not keep p99 <= 50.0 ms, p50 <= 50.0 ms"),
        (
            (bound(), metric("p50", "fail")),
            "minilm@2 is worse than minilm@1 by more than is allowed: p50, and does not keep p99 <= 50.0 ms",
        ),
        ((bound(verdict="pass"), metric()), "minilm@2 is worse than minilm@1 by more than is allowed: more requests"),
    ],
)
def test_a_bound_that_is_not_kept_is_no_word_on_the_base(metrics, headline):
    shown = figures(result(*metrics, verdict="fail"))
    assert shown.headline.startswith(headline)
    assert headline in render_junit(shown).replace("&lt;", "<")


@pytest.mark.parametrize(
    ("limit", "shown"),
    [
        (1.002, "1.0031x (1.0011x to 1.0051x), limit 1.002x"),
        (1.004, "1.0031x (1.0011x to 1.0051x), limit 1.004x"),
        (1 + 0.0005, "1.00310x (1.00110x to 1.00510x), limit 1.0005x"),
        (1 + 0.015, "1.0031x (1.0011x to 1.0051x), limit 1.015x"),
        (1 + 0.1, "1.00x (1.00x to 1.01x), limit 1.10x"),
    ],
)
def test_limits_below_a_percent_can_be_told_apart(limit, shown):
    found = Finding(baseline=0.004, candidate=0.004, change=1.0031, low=1.0011, high=1.0051)
    assert figures(result(metric(difference=found, limit=limit))).rows[0].sentence.endswith(shown)


def test_false_alarms_of_the_machine_are_told():
    alarms = FalseAlarms(gates=20, failed=0, suspected=1, low=0.0, high=0.168)
    of = figures(result().__class__(**{**as_fields(result()), "false_alarms": alarms}))
    assert any("0 of 20 gates of a server against itself failed" in fact for fact in of.facts)
    assert not any("against itself" in fact for fact in figures(result()).facts)


def as_fields(of):
    return {name: getattr(of, name) for name in of.__struct_fields__}


@pytest.mark.parametrize("name", HOSTILE)
def test_names_from_others_stay_text_in_every_format(name):
    of = result(metric(name, "fail", reason=name), verdict="fail", reasons=(name,), notes=(name,))
    shown = figures(of, base=name, candidate=name)
    suite = ET.fromstring(render_junit(shown)).find("testsuite")
    assert [case.tag for case in suite] == ["properties", "testcase", "testcase", "system-out"]
    lines = render_annotations(shown)
    assert all(line.startswith(("::error title=", "::warning title=")) for line in lines)
    assert all(line.isprintable() for line in lines)
    assert all("\n" not in line and line.count("::") >= 2 for line in lines)
    assert all(not set(":,") & set(line.split("title=", 1)[1].split("::", 1)[0]) for line in lines)
    comment = render_comment(shown)
    assert comment.count("\n| ") == 3  # heading, rule and one metric
    assert "<script" not in comment.replace("\\<", "")
    assert "<img" not in comment.replace("\\<", "")
    assert "@everyone" not in comment
    assert "](" not in comment.replace("\\]", "")
    comment.encode()  # what no file can hold is not in it


@given(st.text())
def test_any_text_makes_junit_that_can_be_read(text):
    suite = ET.fromstring(render_junit(figures(result(reasons=(text,), notes=(text,)), base=text, candidate=text)))
    assert suite.find("testsuite").get("tests") == "2"


@given(st.text())
def test_an_annotation_is_one_line_that_the_runner_reads_back_as_it_was(text):
    line = render_annotations(figures(result(metric(reason=text, verdict="fail"), verdict="fail")))[1]
    assert line.isprintable()
    told = line.split("::", 2)[2]
    for code, letter in (("%0A", "\n"), ("%0D", "\r"), ("%25", "%")):
        told = told.replace(code, letter)
    kept = "".join(letter if letter.isprintable() or letter in "\r\n" else " " for letter in text)
    assert told.strip().endswith(kept.strip())


@pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive"])
def test_a_badge_says_the_verdict_and_needs_nothing_else(verdict):
    shown = figures(result(verdict=verdict))
    svg = ET.fromstring(render_badge(shown))
    assert svg.find("{http://www.w3.org/2000/svg}title").text == f"latency gate: {verdict}"
    assert "href" not in render_badge(shown)
    endpoint = json.loads(render_endpoint(shown))
    assert (endpoint["schemaVersion"], endpoint["label"], endpoint["message"]) == (1, "latency gate", verdict)
    assert endpoint["color"] in {"brightgreen", "red", "yellow"}
