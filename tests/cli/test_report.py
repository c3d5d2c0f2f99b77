"""`mlserve report` as a user runs it."""

import json
import re
import shlex

import pytest
import typer


@pytest.fixture(scope="module")
def runs(made_runs, tmp_path_factory):
    """fp32 and a faster int8, one run each."""
    folder = tmp_path_factory.mktemp("runs")
    made_runs.save(folder / "fp32", made_runs.Load(8.0))
    made_runs.save(folder / "int8", made_runs.Load(4.0), model=made_runs.INT8, minute=1)
    return folder


def test_it_says_what_to_serve_and_where_the_pages_are(mlserve, runs, tmp_path):
    done = mlserve("report", runs, "--out", "pages")
    assert done.returncode == 0, done.stderr
    assert "Serve int8" in done.stdout
    assert "next: mlserve models promote minilm@2" in done.stdout
    assert done.stdout.splitlines()[-3:] == ["pages/report.html", "pages/report.md", "pages/report.json"]
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == ["report.html", "report.json", "report.md"]


def test_its_json_is_on_stdout_alone(mlserve, runs):
    done = mlserve("report", runs / "fp32", runs / "int8", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["recommendation"]["variant"] == "int8"
    assert document["files"] == {"html": "report/report.html", "md": "report/report.md", "json": "report/report.json"}


def test_the_accuracy_that_may_be_lost_is_an_option(mlserve, runs):
    done = mlserve("report", runs, "--max-accuracy-loss", "0.5%")
    assert done.returncode == 0
    assert "Keep fp32" in done.stdout


def test_one_run_is_reported_without_a_recommendation(mlserve, runs):
    done = mlserve("report", runs / "fp32")
    assert done.returncode == 0
    assert "No recommendation" in done.stdout
    assert "Measure another variant under the same load" in done.stdout


def test_hostile_texts_are_no_terminal_markup(mlserve, made_runs, tmp_path):
    evil = "[bold]x[/] [/no] [link=http://h]y"
    made_runs.save(tmp_path / "evil", made_runs.Load(8.0), label=evil, checks=(made_runs.LATE,))
    done = mlserve("report", tmp_path / "evil", "--out", "[red]out")
    assert done.returncode == 0, done.stderr
    assert evil in done.stdout
    assert "[red]out/report.html" in done.stdout


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
def test_a_damaged_run_is_one_clear_line(mlserve, made_runs, tmp_path, name, content, message):
    folder = damaged(made_runs, tmp_path / "run", name, content)
    done = mlserve("report", folder)
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (tmp_path / "report").exists()


def test_the_same_run_undamaged_is_reported(mlserve, made_runs, tmp_path):
    assert mlserve("report", damaged(made_runs, tmp_path / "run", "run.json", lambda whole: whole)).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing holds no run (run.json); write one with: mlserve bench"),
        ([], "Missing argument 'RUN"),
    ],
)
def test_what_is_no_run_is_refused(mlserve, arguments, message):
    done = mlserve("report", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_folder_that_cannot_be_written_and_a_ratio_that_is_none_are_refused(mlserve, runs, tmp_path):
    (tmp_path / "taken").write_text("a file")
    for arguments, message in (
        (["--out", "taken"], "--out taken cannot be written: File exists; choose another folder"),
        (["--out", "taken/below"], "--out taken/below cannot be written: Not a directory; choose another folder"),
        (["--max-accuracy-loss", "much"], "'much' is no ratio"),
    ):
        done = mlserve("report", runs, *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr


def test_the_command_in_a_report_is_one_that_bench_takes(made_runs):
    from mlserve.cli.main import app
    from mlserve.report.command import bench_command

    bench = typer.main.get_command(app).commands["bench"]
    for settings in ({"protocol": "grpc", "batch_rows": 4, "arrivals": "constant"}, {"server": None}):
        words = shlex.split(bench_command(made_runs.record(made_runs.Load(), **settings).run))
        context = bench.make_context("bench", words[2:])
        assert context.params["rps"] == 60
        assert context.params["duration"] == "20s"
        assert str(context.params["data"]) == "sentences.txt"
        assert context.params["what"] == [words[2]]
