"""`mlserve report` as a user runs it. Most of it in this process: loading what draws takes longer than the rest."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from mlserve.cli import report as verb
from mlserve.cli import report_live

QUICK = ("--formats", "json")


@pytest.fixture(scope="module")
def runs(made_runs, tmp_path_factory):
    """fp32 and a faster int8, one run each."""
    folder = tmp_path_factory.mktemp("runs")
    made_runs.save(folder / "fp32", made_runs.Load(8.0))
    made_runs.save(folder / "int8", made_runs.Load(4.0), model=made_runs.INT8, minute=1)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Runs `mlserve report ARGUMENTS...` in this process and an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    root = typer.Typer()
    root.callback()(lambda: None)
    root.add_typer(verb.app, name="report")

    def run(*arguments):
        done = CliRunner().invoke(root, ["report", *map(str, arguments)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return run


def test_it_says_what_to_serve_and_where_the_pages_are(here, runs, tmp_path):
    done = here(runs, "--out", "pages")
    assert done.exit_code == 0, done.stderr
    assert "Serve int8" in done.stdout
    assert "next: mlserve models promote minilm@2" in done.stdout
    assert done.stdout.splitlines()[-3:] == ["pages/report.html", "pages/report.md", "pages/report.json"]
    names = sorted(path.name for path in (tmp_path / "pages").iterdir())
    assert names == ["report-assets", "report.html", "report.json", "report.md"]
    shown = re.findall(r"!\[.*\]\((.*)\)", (tmp_path / "pages" / "report.md").read_text())
    assert shown
    assert {f"report-assets/{path.name}" for path in (tmp_path / "pages" / "report-assets").iterdir()} == {*shown}


def test_its_json_is_on_stdout_alone(here, runs):
    done = here(runs / "fp32", runs / "int8", "--json", "--formats", "md,json,png")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["recommendation"]["variant"] == document["verdict"]["variant"] == "int8"
    assert (document["format_version"], document["slo"]) == (1, None)
    assert document["files"] == {
        "md": "report/report.md",
        "json": "report/report.json",
        "assets": "report/report-assets",
    }


def test_only_the_formats_that_were_asked_for_are_written(here, runs, tmp_path):
    done = here(runs, "--formats", "json, csv,parquet", "--json")
    assert json.loads(done.stdout)["files"] == {
        "json": "report/report.json",
        "csv": "report/report.csv",
        "runs.csv": "report/report.runs.csv",
        "parquet": "report/report.parquet",
        "runs.parquet": "report/report.runs.parquet",
    }
    assert len(list((tmp_path / "report").iterdir())) == 5
    assert pd.read_csv("report/report.csv")["variant"].tolist() == ["fp32", "int8"]


def test_a_report_without_charts_does_not_load_what_draws(runs, tmp_path):
    code = """
import sys
from mlserve.cli.main import app
for formats in ("json", "json,png"):
    app(["report", *sys.argv[1:], "--formats", formats, "--json"], standalone_mode=False)
    print(*(name in sys.modules for name in ("altair", "vl_convert", "jinja2")), file=sys.stderr)
"""
    command = [sys.executable, "-c", code, str(runs / "fp32"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    alone, drawn = done.stderr.splitlines()
    assert alone == "False False False"
    assert drawn == "True True True"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--formats", "pdf"], "'pdf' is no format; choose among html, md, json, csv, parquet, png"),
        (["--formats", " ,"], "--formats names no format; choose among html"),
        (["--watch", "--formats", "json"], "--watch shows the page, and --formats json makes none; add html"),
        (["--watch", "--json"], "--watch shows run after run and has no one result to print"),
        (["--slo", "p99"], "'p99' is no limit"),
        (["--slo", "fast=1s"], "that is no percentile"),
        (["--slo", "p97=1s"], "a report gives p50, p90, p95, p99, p99.9 of every run"),
        (["--max-accuracy-loss", "much"], "'much' is no ratio"),
    ],
)
def test_flags_that_make_no_sense_are_refused_in_one_line(here, runs, tmp_path, arguments, message):
    done = here(runs, *arguments)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr
    assert not (tmp_path / "report").exists()


def test_the_accuracy_that_may_be_lost_is_an_option(here, runs):
    done = here(runs, "--max-accuracy-loss", "0.5%", *QUICK)
    assert done.exit_code == 0
    assert "Keep fp32" in done.stdout


@pytest.mark.parametrize(("limit", "kept", "meets"), [("15ms", "SLO kept", True), ("2ms", "SLO missed", False)])
def test_what_was_promised_is_in_the_report_and_on_the_terminal(here, runs, limit, kept, meets):
    done = here(runs, "--slo", f"p99={limit}", *QUICK)
    assert done.exit_code == 0, done.stderr
    assert f"{kept}: p99 within " in done.stdout
    document = json.loads(Path("report/report.json").read_text())
    assert (document["slo"]["percentile"], document["verdict"]["meets"]) == (0.99, meets)
    assert document["verdict"]["sentence"] in " ".join(done.stdout.split())


def test_one_run_is_reported_without_a_recommendation(here, runs):
    done = here(runs / "fp32", *QUICK)
    assert done.exit_code == 0
    assert "fp32, measured" in done.stdout
    assert "Measure another variant under the same load" in done.stdout


def test_hostile_texts_are_no_terminal_markup(here, made_runs, tmp_path):
    evil = "[bold]x[/] [/no] [link=http://h]y"
    made_runs.save(tmp_path / "evil", made_runs.Load(8.0), label=evil, checks=(made_runs.LATE,))
    done = here("evil", "--out", "[red]out", *QUICK)
    assert done.exit_code == 0, done.stderr
    assert evil in done.stdout
    assert "[red]out/report.json" in done.stdout


def damaged(made_runs, folder, name, content):
    made_runs.save(folder, made_runs.Load(), duration_s=2.0)
    path = folder / name
    path.write_bytes(content(path.read_bytes()))
    return folder


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", lambda whole: whole[: len(whole) // 2], r"run\.json is damaged: .*; run the bench again"),
        (
            "run.json",
            lambda whole: whole.replace(b'"format_version": 2', b'"format_version": 99'),
            r"run\.json has format 99, this mlserve reads 1 to 2; use the mlserve that wrote it",
        ),
        ("run.json", lambda whole: whole.replace(b'"duration_s": 2.0', b'"duration_s": 0'), r"damaged: .*duration_s"),
        ("samples.parquet", lambda whole: whole[: len(whole) // 2], r"the samples of \S+ are damaged: "),
        ("samples.parquet", lambda _: b"", r"the samples of \S+ are damaged: "),
    ],
)
def test_a_damaged_run_is_one_clear_line(here, made_runs, tmp_path, name, content, message):
    done = here(damaged(made_runs, tmp_path / "run", name, content))
    assert done.exit_code == 2
    assert re.search(message, done.stderr)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (tmp_path / "report").exists()


def test_the_same_run_undamaged_is_reported(here, made_runs, tmp_path):
    assert here(damaged(made_runs, tmp_path / "run", "run.json", lambda whole: whole), *QUICK).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing holds no run (run.json); write one with: mlserve bench"),
        ([], "Missing argument 'RUN"),
    ],
)
def test_what_is_no_run_is_refused(here, arguments, message):
    done = here(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_folder_that_cannot_be_written_is_refused(here, runs, tmp_path):
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "half" / "report.json").mkdir(parents=True)
    (tmp_path / "half" / "report.json" / "x").touch()
    for folder, why in (("taken", "taken is a file"), ("taken/below", "taken is a file"), ("half", "Is a directory")):
        done = here(runs, "--out", folder, *QUICK)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.stderr
        assert f"{folder} cannot be written: " in done.stderr
        assert f"{why}; choose another folder" in done.stderr
    assert [path.name for path in (tmp_path / "half").iterdir()] == ["report.json"]


def test_the_command_in_a_report_is_one_that_bench_takes(made_runs):
    from mlserve.cli.main import app
    from mlserve.report.command import bench_command

    bench = typer.main.get_command(app).commands["bench"]
    for settings in ({"protocol": "grpc", "batch_rows": 4, "arrivals": "constant"}, {"server": None}):
        run = made_runs.record(made_runs.Load(), max_errors=0.05, **settings).run
        words = shlex.split(bench_command(run, Path("runs/one")))
        context = bench.make_context("bench", words[2:])
        assert context.params["rps"] == 60
        assert context.params["duration"] == "20s"
        assert context.params["errors"] == "5%"
        assert str(context.params["data"]) == "sentences.txt"
        assert context.params["what"] == [words[2]]


def test_help_is_that_of_the_report_and_names_the_other_commands(here):
    text = here("--help").stdout
    assert "Usage: root report [OPTIONS] {RUN}..." in " ".join(text.split())
    assert "--max-accuracy-loss" in text
    assert "mlserve report diff" in text
    assert "BEFORE" in here("diff", "--help").stdout


def test_a_folder_called_like_a_command_is_reported_by_its_path(here, made_runs, tmp_path):
    made_runs.save(tmp_path / "diff", made_runs.Load(), duration_s=2.0)
    assert here("./diff", *QUICK).exit_code == 0
    assert "Missing argument 'BEFORE'" in here("diff").stderr


def test_diff_tells_what_changed_on_the_terminal_as_json_and_as_markdown(here, runs):
    told = here("diff", runs / "fp32", runs / "int8")
    assert told.exit_code == 0, told.stderr
    assert re.search(r"p99 .*0\.\d\dx +0\.\d\dx to 0\.\d\dx +better", told.stdout)
    assert re.search(r"model variant +fp32 +→ +int8", told.stdout)
    document = json.loads(here("diff", runs / "fp32", runs / "int8", "--json").stdout)
    assert next(one for one in document["results"][0]["figures"] if one["name"] == "p99")["finding"] == "better"
    assert "| model variant | fp32 | int8 |" in here("diff", runs / "fp32", runs / "int8", "--md").stdout


def test_diff_of_what_is_neither_runs_nor_a_report_is_refused(here, runs, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.json").write_text('{"format_version": 1, "results": 3}')
    for other, why in (("empty", "holds neither runs nor a report.json"), ("other.json", "is no report")):
        done = here("diff", runs / "fp32", other)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.stderr
        assert why in done.stderr
    assert "give one of them" in here("diff", runs, runs, "--json", "--md").stderr


def test_index_lists_the_reports_of_a_folder(here, runs, tmp_path):
    here(runs, "--out", "all/monday", *QUICK)
    done = here("index", "all")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["all/index.html", "all/index.md"]
    assert "monday/report.json" in (tmp_path / "all" / "index.md").read_text()
    assert "is no folder" in here("index", "nowhere").stderr


def test_index_knows_when_a_file_was_committed(here, tmp_path):
    def git(*words):
        environment = {**os.environ, "GIT_AUTHOR_DATE": "1000000000 +0000", "GIT_COMMITTER_DATE": "1000000000 +0000"}
        identity = ["-c", "user.name=x", "-c", "user.email=x@localhost"]
        subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True, env=environment
        )

    for name in ("old", "changed"):
        (tmp_path / "all").mkdir(exist_ok=True)
        (tmp_path / "all" / f"{name}.json").write_text("{}")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    (tmp_path / "all" / "changed.json").write_text('{"a": 1}')
    assert here("index", "all").exit_code == 0
    lines = {
        name: line for line in Path("all/index.md").read_text().splitlines() for name in re.findall(r"<(\w+)", line)
    }
    assert lines["old"].startswith("| 2001-09-09 01:46 UTC |")
    assert not lines["changed"].startswith("| 2001")


def test_schema_is_printed_and_others_are_refused(here):
    assert json.loads(here("schema", "run").stdout)["$id"] == "urn:mlserve:run:2"
    assert "'x' has no schema; choose among report, run" in here("schema", "x").stderr


@pytest.fixture
def browser(tmp_path, monkeypatch):
    """A browser that writes down what it was asked to open, and then stays; its notes."""
    notes = tmp_path / "opened"
    program = tmp_path / "browser"
    program.write_text(f'#!/bin/sh\necho "$1" > {notes}.part && mv {notes}.part {notes}\nexec sleep 3\n')
    program.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(program))
    monkeypatch.setattr("webbrowser._tryorder", None)
    monkeypatch.setattr("webbrowser._browsers", {})
    return notes


def appears(path):
    """The text of `path` as soon as it is there."""
    for _ in range(400):
        with contextlib.suppress(FileNotFoundError):
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def test_open_shows_the_page_and_does_not_wait_for_the_browser(here, runs, browser, tmp_path):
    assert here(runs / "fp32", "--open", *QUICK).exit_code == 0
    assert appears(browser).strip() == (tmp_path / "report" / "report.json").as_uri()


def test_open_without_a_browser_says_where_the_page_is(here, runs, tmp_path, monkeypatch):
    monkeypatch.setattr("webbrowser._tryorder", [])
    monkeypatch.setattr("webbrowser._browsers", {})
    done = here(runs / "fp32", "--open", *QUICK)
    assert done.exit_code == 0
    assert f"there is no browser here; open {(tmp_path / 'report' / 'report.json').as_uri()}" in done.stderr


def test_watch_waits_shows_each_run_that_comes_and_ends_with_ctrl_c(runs, made_runs, tmp_path):
    command = [sys.executable, "-m", "mlserve", "report", "sweep", "--watch", "--formats", "html"]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    killer = threading.Timer(60, watching.kill)
    killer.start()
    try:
        assert "waiting for the first run in sweep" in watching.stderr.readline()
        made_runs.save(tmp_path / "sweep" / "first", made_runs.Load(), duration_s=2.0)
        address = re.search(r"live at (\S+)", watching.stderr.readline())[1]
        with urlopen(f"{address}changes") as changes:
            assert changes.readline() == b"data: 1\n"
            (tmp_path / "sweep" / "broken").mkdir()
            (tmp_path / "sweep" / "broken" / "run.json").write_text("{")
            assert "run.json is damaged" in watching.stderr.readline()
            made_runs.save(tmp_path / "sweep" / "second", made_runs.Load(), duration_s=2.0, model=made_runs.INT8)
            assert re.fullmatch(r"2 runs(; the next look is in .+)?\n", watching.stderr.readline())
            assert next(line for line in changes if line.startswith(b"data")) == b"data: 2\n"
        assert b"int8" in urlopen(f"{address}report").read()
        watching.send_signal(2)
        output, errors = watching.communicate(timeout=20)
        assert (watching.returncode, output, errors) == (130, "", "stopped\n")
    finally:
        killer.cancel()
        watching.kill()
        watching.communicate()


@pytest.mark.parametrize("damaged", [False, True])
def test_watching_a_search_that_ended_without_a_run_ends_and_says_so(here, tmp_path, monkeypatch, damaged):
    def sleep(_):
        raise AssertionError("it waits for runs that will not come")

    monkeypatch.setattr(report_live, "time", SimpleNamespace(sleep=sleep, process_time=time.process_time))
    (tmp_path / "tune" / "001-short").mkdir(parents=True)
    (tmp_path / "tune" / "tune.json").write_text('{"format_version": 1, "verdict": {"pick": null}}')
    if damaged:
        (tmp_path / "tune" / "001-short" / "run.json").write_text("{")
    done = here("tune", "--watch", "--formats", "html")
    assert done.exit_code == 2
    assert "tune is over, and no run of it can be shown; each failure.json in it says why" in done.stderr
    assert not (tmp_path / "report").exists()


def test_watching_takes_a_tenth_of_a_core_however_long_a_page_takes(made_runs, tmp_path, monkeypatch):
    pauses = []

    def sleep(pause_s):
        pauses.append(pause_s)
        if len(pauses) == 3:
            raise KeyboardInterrupt
        made_runs.save(tmp_path / "sweep" / f"run{len(pauses)}", made_runs.Load(), duration_s=2.0)

    def write(_):
        began_s = time.process_time()
        while time.process_time() < began_s + 0.05:
            pass
        (tmp_path / "report.html").write_text("page")
        return tmp_path / "report.html"

    made_runs.save(tmp_path / "sweep" / "first", made_runs.Load(), duration_s=2.0)
    monkeypatch.setattr(report_live, "time", SimpleNamespace(sleep=sleep, process_time=time.process_time))
    with pytest.raises(KeyboardInterrupt):
        report_live.watch([tmp_path / "sweep"], write, open_it=False, look_every_s=0.01)
    assert pauses[0] == 0.01
    assert min(pauses[1:]) >= 0.5
