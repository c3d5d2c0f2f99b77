"""The report as a value: results in the order they are read, and commands that make the runs again."""

import shlex
from pathlib import Path

import msgspec
import pytest

from mlserve.report.command import bench_command
from mlserve.report.report import build_report
from mlserve.runs.lock import Lock

HERE = Path("runs/one")


def test_results_of_one_load_stand_together_and_variants_keep_their_order(demo_report):
    assert [(result.load, result.variant) for result in demo_report.results] == [
        ("60 requests/s over REST", "fp32"),
        ("60 requests/s over REST", "int8"),
        ("60 requests/s over gRPC", "fp32"),
        ("60 requests/s over gRPC", "int8"),
    ]
    assert [result.recommended for result in demo_report.results] == [False, True, False, True]
    assert all(len(result.runs) == 2 for result in demo_report.results)
    assert len(demo_report.machines) == 1


def test_the_figures_of_a_result_are_those_of_its_valid_runs(made_runs):
    def report_on(*runs):
        return build_report(runs, max_accuracy_loss=0.01, created_at="2026-11-21T13:00:00+00:00").results[0]

    good = made_runs.record(made_runs.Load(4.0))
    spoilt = made_runs.record(made_runs.Load(400.0), checks=(made_runs.LATE,), minute=1)
    both, alone, invalid = report_on(good, spoilt), report_on(good), report_on(spoilt)
    assert both.summary == alone.summary
    assert [run.valid for run in both.runs] == [True, False]
    assert both.valid
    assert not invalid.valid
    assert invalid.summary.percentile("p50").latency_s > 0.1


def test_the_command_says_all_that_the_plan_says(made_runs):
    run = made_runs.record(made_runs.Load(), protocol="grpc", batch_rows=8, seed=3).run
    words = shlex.split(bench_command(run, HERE))
    assert words[:3] == ["mlserve", "bench", "minilm@1"]
    flags = dict(zip(words[3::2], words[4::2], strict=True))
    assert flags["--protocol"] == "grpc"
    assert flags["--rps"] == "60"
    assert flags["--duration"] == "20s"
    assert flags["--batch"] == "8"
    assert flags["--data"] == "sentences.txt"
    assert flags["--threads"] == "1"


def test_the_command_for_a_server_that_was_not_ours_names_its_address_and_sets_nothing(made_runs):
    run = made_runs.record(made_runs.Load(), server=None, payload="synthetic rows (seed 0), 32 bodies").run
    words = shlex.split(bench_command(run, HERE))
    assert words[2] == "http://127.0.0.1:40001"
    assert not {"--workers", "--device", "--data"} & set(words)


def test_a_command_is_one_line_of_shell_whatever_the_names_are(made_runs):
    evil = msgspec.structs.replace(made_runs.FP32, name="a; rm -rf /\n`id`", url="http://h/$(id)")
    for server in (made_runs.SERVER, None):
        words = shlex.split(bench_command(made_runs.record(made_runs.Load(), model=evil, server=server).run, HERE))
        assert words[2] in ("a; rm -rf /\n`id`@1", "http://h/$(id)")


def test_a_run_that_kept_its_lock_is_made_again_from_its_folder_whatever_that_is_called(made_runs):
    run = made_runs.record(made_runs.Load()).run
    locked = msgspec.structs.replace(run, lock=Lock(where="a/tiny.onnx", name="tiny", headers=("authorization",)))
    words = shlex.split(bench_command(locked, Path("my runs/a; rm -rf $(id)")))
    assert words == [
        *("mlserve", "bench", "--like", "my runs/a; rm -rf $(id)"),
        *("--header", "authorization: VALUE"),
    ]


def test_the_report_says_from_which_folder_a_run_is_made_again(made_runs):
    one = made_runs.record(made_runs.Load(), duration_s=3.0, directory=Path("out/my run"))
    locked = msgspec.structs.replace(one, run=msgspec.structs.replace(one.run, lock=Lock(where="tiny", name="tiny")))
    report = build_report([locked], max_accuracy_loss=0.01, created_at="2026-11-21T13:00:00+00:00")
    assert report.results[0].runs[0].command == "mlserve bench --like 'out/my run'"


@pytest.mark.parametrize(
    ("payload", "flags"),
    [
        ("synthetic rows, 32 bodies", {}),
        ("synthetic rows (seed 0), 32 bodies", {}),
        ("", {}),
        ("synthetic rows of 8 to 128 tokens, 64 bodies", {"--lengths": "8..128"}),
        ("synthetic rows of 64 tokens, 64 bodies", {"--lengths": "64"}),
        ("synthetic rows of 16, 64 tokens, 64 bodies", {"--lengths": "16:SHARE,64:SHARE"}),
        ("synthetic rows of about 64 tokens, 64 bodies", {"--lengths": "lognormal:64,SPREAD"}),
        ("synthetic rows of 224 x 224, 512 x 384 pixels, 9 bodies", {"--image-sizes": "224x224,512x384"}),
        ("synthetic-1k.npz (sha256 4f1a), 252 bodies", {"--data": "synthetic-1k.npz"}),
        ("my rows.npz (sha256 4f1a), 252 bodies", {"--data": "my rows.npz"}),
    ],
)
def test_a_command_without_a_lock_says_which_rows_were_sent_as_far_as_the_run_tells(made_runs, payload, flags):
    words = shlex.split(bench_command(made_runs.record(made_runs.Load(), payload=payload).run, HERE))
    said = dict(zip(words[3::2], words[4::2], strict=True))
    assert {name: said[name] for name in ("--data", "--lengths", "--image-sizes") if name in said} == flags


@pytest.mark.parametrize(("max_errors", "said"), [(0.01, None), (0.05, "5%"), (0.001, "0.1%"), (0.0, "0%")])
def test_a_command_allows_as_many_errors_as_the_run(made_runs, max_errors, said):
    words = shlex.split(bench_command(made_runs.record(made_runs.Load(), max_errors=max_errors).run, HERE))
    assert dict(zip(words[3::2], words[4::2], strict=True)).get("--errors") == said
