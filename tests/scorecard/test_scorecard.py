"""The tests of the scorecard that judge times, in their shortest form, one after the other; and the scorecard."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
import pytest
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.catalogue import MODULES, TIMELESS, UNHURRIED, choose, find_cases
from scorecard.playing import Played, play
from scorecard.report import Scorecard, render

from mlserve.runs.machine import read_machine

ROOT = Path(__file__).parents[2]
CASES = find_cases()

PLAYED = [pytest.param(case, id=case.id) for case in CASES if case.run and case.id not in (*TIMELESS, *UNHURRIED)]


@pytest.mark.parametrize("case", PLAYED)
def test_it_passes_and_its_control_does_not(case, tmp_path):
    outcome = case.run(Stage(form="seconds", folder=tmp_path))
    assert outcome.passed, outcome.found
    assert outcome.control_failed, outcome.control


def test_all_forty_are_there_in_order_and_say_what_they_ask():
    assert [case.id for case in CASES] == list(MODULES)
    assert len(CASES) == 40
    for case in CASES:
        assert case.title
        assert case.criterion, f"{case.id}: {case.missing}"
        assert bool(case.run) != bool(case.missing), case.id


def test_tests_are_chosen_by_name_or_by_group():
    assert choose("") == list(MODULES)
    assert choose("b1, A10") == ["A10", "B1"]
    assert choose("F,A1") == ["A1", "F1"]
    with pytest.raises(ValueError, match="no test 'A11'"):
        choose("A11")


def _card(*played):
    return Scorecard(
        version="1",
        commit="abc",
        date="2026-01-01",
        command="python benchmarks/scorecard",
        form="short",
        url="",
        machine=read_machine(),
        load_average=0.0,
        played=list(played),
    )


def _played(case_id, *, passed=True, control_failed=True, **more):
    outcome = Outcome(
        passed=passed,
        found="what was seen",
        figures=(Figure("lost", 0.0, limit="0"), Figure("p99", 3.14159, "ms")),
        control="what was broken",
        control_failed=control_failed,
    )
    return Played(id=case_id, title=f"title of {case_id}", criterion="when", **({"outcome": outcome} | more))


def test_a_control_that_is_not_found_out_costs_the_test_its_pass():
    assert _played("A1").passed
    assert not _played("A1", control_failed=False).passed
    assert "control was not found out" in _played("A1", control_failed=False).reason
    assert not _played("A1", passed=False).passed
    assert not _played("A1", outcome=None, fault="it hung").passed
    # A foreign server has no control to be found out.
    assert _played("A1", control_failed=False, foreign=True).passed


def test_the_report_tells_what_is_not_passed_first_and_then_everything():
    text = render(_card(_played("A1"), _played("B3", passed=False), _played("B7", outcome=None, fault="not built yet")))
    assert "**1 of 3 passed**" in text
    failures, _, rest = text.partition("## In short")
    assert "**B3 title of B3**: what was seen" in failures
    assert "**B7 title of B7**: not built yet" in failures
    assert "**A1" not in failures
    assert rest.index("### A1") < rest.index("### B3") < rest.index("### B7")
    assert "lost 0 (0), p99 3.14 ms" in rest
    assert "Requests lost over hot swaps" in rest
    assert "| B. Lifecycle | 0 | 2 |" in text


def test_a_case_that_breaks_down_is_a_failed_case_and_not_the_end(monkeypatch):
    """In a process of its own, as all are: the exception's words are kept."""
    case = Case(id="A0", title="none", criterion="none", run=lambda _: Outcome(passed=True, found=""))
    played = play(case, "seconds")
    assert not played.passed
    assert "KeyError: 'A0'" in played.fault


def test_the_command_plays_one_writes_what_it_found_and_fails_where_it_must(tmp_path):
    command = [sys.executable, "benchmarks/scorecard", "--only", "B7,B8", "--form", "seconds"]
    ended = subprocess.run(
        [*command, "--json", str(tmp_path / "card.json"), "--report", str(tmp_path / "card.md")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    card = msgspec.json.decode((tmp_path / "card.json").read_bytes(), type=Scorecard)
    assert [one.id for one in card.played] == ["B7", "B8"]
    assert ended.returncode == (0 if card.score == (2, 2) else 1), ended.stderr
    assert (tmp_path / "card.md").read_text() == render(card)


def test_ctrl_c_keeps_what_is_known_and_leaves_no_server_behind(tmp_path):
    command = [sys.executable, "benchmarks/scorecard", "--only", "B7,B8,F1", "--form", "short"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, "--json", str(tmp_path / "card.json")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
    )
    below = []
    with process:
        while not any("mlserve.serve.worker" in " ".join(each.cmdline()) for each in below):
            assert process.poll() is None
            below = _living(psutil.Process(process.pid).children(recursive=True))
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 1
    card = msgspec.json.decode((tmp_path / "card.json").read_bytes(), type=Scorecard)
    assert (card.cut_short, [one.id for one in card.played]) == (True, ["B7", "B8"])
    assert "cut short" in told
    assert "Traceback" not in told
    assert _living(below) == []


def _living(processes):
    """Those that can still be asked for their command."""
    found = []
    for each in processes:
        with suppress(psutil.Error):
            if each.cmdline():
                found.append(each)
    return found
