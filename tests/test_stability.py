"""`docs/stability.md` against the code: the number of every format, and every field of what is written."""

import re
from pathlib import Path

import pytest

from mlserve.report import choice, diff, report
from mlserve.report.gating import calibration, gate_file, history, result
from mlserve.runs import lock, production, run
from mlserve.tuning import find_max, grid
from mlserve.tuning.choosing import aim, attempt, record
from mlserve.tuning.gating import asked
from mlserve.tuning.prediction import times

DOCUMENT = (Path(__file__).parent.parent / "docs" / "stability.md").read_text()
FOLDER = "A folder of many runs"


def section(start):
    """The text under the heading that begins with `start`, which comes with it; headings below it included."""
    found = re.search(rf"^(#+) {re.escape(start)}.*?(?=^#{{2,3}} |\Z)", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
    assert found, f"docs/stability.md has no section {start!r}"
    return found[0]


def named(struct, text):
    """The fields of `struct` that `text` does not name."""
    words = {*re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", text)))}
    return [field for field in struct.__struct_fields__ if field not in words]


@pytest.mark.parametrize(
    ("heading", "module"),
    [
        ("`run.json`", run),
        (FOLDER, grid),
        (FOLDER, find_max),
        (FOLDER, asked),
        (FOLDER, record),
        ("`tune.json`", record),
        ("`service-times.json`", times),
        ("`production.toml`", production),
        ("`report.json`", report),
        ("What `mlserve gate --json` prints", result),
        ("`calibration.json`", calibration),
        ("A history", history),
    ],
)
def test_the_number_of_a_format_is_the_one_that_is_written(heading, module):
    title = section(heading).splitlines()[0]
    assert re.search(r"format (\d+)$", title)[1] == str(module.FORMAT_VERSION), title


@pytest.mark.parametrize(
    ("heading", "structs"),
    [
        ("`run.json`", [run.Run, lock.Lock]),
        (FOLDER, [asked.LiveGate, record.Search, aim.Aim]),
        ("`tune.json`", [record.Record, record.Foretold, attempt.Attempt, choice.Verdict, choice.Tried]),
        ("`production.toml`", [production.Production, production.ServeChoice]),
        ("`production.toml`", [production.Expected, production.Evidence]),
        ("`report.json`", [report.Report, report.Result, report.RunResult, diff.Diff, diff.ResultDiff]),
        ("`report.json`", [diff.FigureChange, choice.Choice]),
        ("What `mlserve gate --json` prints", [result.GateResult, result.MetricVerdict, result.Finding]),
        ("`gate.toml`", [gate_file.GateLoad]),
        ("`calibration.json`", [calibration.GateCalibration, calibration.MetricSpread, result.FalseAlarms]),
        ("A history", [history.HistoryEntry]),
    ],
)
def test_every_field_that_is_written_is_documented(heading, structs):
    text = section(heading)
    assert {struct.__name__: named(struct, text) for struct in structs} == {struct.__name__: [] for struct in structs}


def test_a_field_that_is_not_documented_would_be_seen():
    assert named(run.Run, section("`gate.toml`")) != []


def test_the_modules_that_are_named_are_there():
    root = Path(__file__).parent.parent
    modules = re.findall(r"`(mlserve/[\w/]+\.py)`", DOCUMENT)
    assert len(modules) > 10
    assert [name for name in modules if not (root / name).is_file()] == []
