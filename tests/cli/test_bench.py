"""`mlserve bench` as a user types it: real servers, a real generator, real signals."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from mlserve.bench.load.schedule import schedule
from mlserve.errors import RunFileError
from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest, sha256_of
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec
from mlserve.runs.run import read_run
from mlserve.runs.samples import read_samples
from mlserve.tuning.serving import ServerOptions, serving


@pytest.fixture
def start_bench(tmp_path):
    """Starts `mlserve bench ARGUMENTS...` and returns the process once it loads; all are ended with the test."""
    processes = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "mlserve", "bench", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        )
        processes.append(process)
        line = process.stderr.readline()
        assert line.startswith("loading "), line + process.stderr.read()
        return process

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def until(condition, limit_s=20.0):
    deadline_s = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return condition()


def rows_on_disk(directory):
    try:
        return len(read_samples(directory))
    except RunFileError:  # there are none yet
        return 0


def gone(processes):
    return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_file_is_served_loaded_and_measured(mlserve, tiny_onnx, tmp_path, protocol):
    done = mlserve(
        *("bench", tiny_onnx, "--rps", 300, "--duration", "3s", "--warm-up", "1s"),
        *("--protocol", protocol, "--max-batch-rows", 8, "--out", "run", "--json"),
    )
    assert done.returncode == 0, done.stderr
    due_ns = schedule("poisson", 300, 4.0, 0)
    assert len(pq.read_table(tmp_path / "run" / "samples.parquet")) == len(due_ns)
    run, samples = read_run(tmp_path / "run"), read_samples(tmp_path / "run")
    assert run.counts.scheduled == len(samples) == int((due_ns >= 1e9).sum())
    assert (run.counts.ok, run.counts.failed, run.counts.dropped) == (len(samples), 0, 0)
    assert np.all(samples.latency_s >= samples.service_s)
    assert (run.model.name, run.model.version, run.plan.protocol) == ("tiny", "1", protocol)
    assert (run.server.workers, run.server.max_batch_rows, run.server.device) == (1, 8, "cpu")
    checks = {check.name: check.ok for check in run.certificate.checks}
    for name in ("schedule kept", "answered", "enough samples", "server counters", "device"):
        assert checks[name]
    document = json.loads(done.stdout)
    assert document["counts"]["ok"] == len(samples)
    assert document["summary"]["latency_s"]["p50"] <= document["summary"]["latency_s"]["p99"]
    assert document["summary"]["offered_per_s"] == pytest.approx(len(samples) / 3)


def test_people_get_figures_a_verdict_and_the_folder(mlserve, tiny_onnx, tmp_path):
    done = mlserve("bench", tiny_onnx, "--rps", 50, "--duration", "1s", "--warm-up", 0, "--arrivals", "constant")
    assert done.returncode == 0, done.stderr
    assert "tiny-v1-rest-50rps" in done.stdout
    assert "50 ok, 0 failed, 0 dropped" in done.stdout
    assert "INVALID" in done.stdout
    assert "enough samples: 50 answers, limit: at least 459 for p99. Measure for longer" in done.stdout
    assert "50 answers: p99 needs 459" in done.stdout
    folder = tmp_path / done.stdout.split()[-1]
    assert folder.parent == tmp_path / "runs"
    assert read_run(folder).counts.ok == 50


def test_a_model_of_the_store_is_loaded_with_its_own_data(mlserve, tiny_onnx, tmp_path):
    store = Store(tmp_path / "store")
    manifest = Manifest(
        variant="fp32",
        inputs=(TensorSpec("x", "float32", ("batch", 30)),),
        outputs=(TensorSpec("scores", "float32", ("batch", 2)),),
    )
    with store.staging() as folder:
        shutil.copy(tiny_onnx, folder / MODEL_FILE)
        store.add(Artifact(folder, manifest), "tiny")
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((9, 30)).astype(np.float32))
    done = mlserve(
        *("bench", "--rps", 100, "--duration", "1s", "--warm-up", 0, "--batch", 4),  # the store's only model
        *("--data", "rows.npy", "--label", "mine", "--out", "run"),
    )
    assert done.returncode == 0, done.stderr
    run = read_run(tmp_path / "run")
    assert (run.label, run.model.name, run.model.version, run.model.variant) == ("mine", "tiny", "1", "fp32")
    assert run.model.sha256 == sha256_of(tiny_onnx)
    assert run.plan.payload.startswith("rows.npy (sha256 ")
    assert run.plan.payload.endswith(", 2 bodies")
    assert run.plan.batch_rows == 4
    assert run.counts.failed == 0


def test_a_running_server_is_loaded_over_both_protocols(mlserve, tiny_onnx, tmp_path):
    with serving(str(tiny_onnx), tmp_path, ServerOptions()) as served:
        for number, arguments in enumerate(
            ([served.http], [f"{served.http}/v2/models/tiny/versions/1"], [served.grpc, "--model", "tiny"])
        ):
            done = mlserve(
                "bench", *arguments, "--rps", 100, "--duration", "1s", "--warm-up", 0, "--out", f"run{number}"
            )
            assert done.returncode == 0, done.stderr
            run = read_run(tmp_path / f"run{number}")
            assert (run.counts.failed, run.counts.dropped, run.server) == (0, 0, None)
            assert (run.model.name, run.model.version) == ("tiny", "1")
            counted = [check.name for check in run.certificate.checks if check.name == "server counters"]
            assert counted == ([] if "grpc" in run.model.url else ["server counters"])
        wrong = mlserve("bench", f"{served.http}/v2/models/other", "--out", "wrong")
        assert wrong.returncode == 2
        assert "'other' is not found; it serves tiny" in wrong.stderr
        assert "HTTP/2" in mlserve("bench", f"grpc://{served.http[7:]}/tiny").stderr
        given = mlserve("bench", served.http, "--workers", 2, "--device", "cpu")
        assert f"--workers, --device: {served.http} runs already" in given.stderr
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["TINY", "--rps", "0"], "--rps 0"),
        (["TINY", "--rps", "-5"], "--rps -5"),
        (["TINY", "--rps", "nan"], "--rps nan"),
        (["TINY", "--rps", "2e6"], "--rps 2e+06"),
        (["TINY", "--duration", "0s"], "'0s'"),
        (["TINY", "--duration", "soon"], "'soon'"),
        (["TINY", "--batch", "0"], "--batch 0"),
        (["TINY", "--max-in-flight", "0"], "--max-in-flight 0"),
        (["TINY", "--protocol", "soap"], "--protocol 'soap'"),
        (["TINY", "--arrivals", "burst"], "--arrivals 'burst'"),
        (["TINY", "--workers", "0"], "--workers 0"),
        (["TINY", "--max-delay-ms", "nan"], "--max-delay-ms nan"),
        (["TINY", "--model", "m"], "--model m"),
        (["TINY", "--data", "missing.csv"], "missing.csv"),
        (["TINY", "--out", "TINY/run"], "cannot be written"),
        (["missing.onnx"], "missing.onnx"),
        (["missing"], "no model 'missing'"),
        ([], "holds no model"),
        (["https://127.0.0.1:1"], "TLS"),
        (["http://127.0.0.1:PORT"], "cannot be reached"),
        (["grpc://127.0.0.1:PORT/m"], "cannot be reached"),
        (["http://127.0.0.1:PORT", "--protocol", "grpc"], "contradicts"),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(mlserve, tiny_onnx, tmp_path, arguments, said):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = str(unused.getsockname()[1])
    arguments = [part.replace("TINY", str(tiny_onnx)).replace("PORT", port) for part in arguments]
    done = mlserve("bench", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_model_is_refused_before_a_server_starts(mlserve, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    done = mlserve("bench", "broken.onnx")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "broken.onnx" in done.stderr


def test_a_folder_that_holds_a_run_is_left_alone(mlserve, tiny_onnx, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("precious")
    done = mlserve("bench", tiny_onnx, "--out", "run")
    assert done.returncode == 2
    assert "holds a run already" in done.stderr
    assert (tmp_path / "run" / "run.json").read_text() == "precious"


def test_ctrl_c_keeps_the_rows_says_where_and_leaves_no_process(start_bench, tiny_onnx, tmp_path):
    process = start_bench(tiny_onnx, "--rps", 200, "--duration", "60s", "--warm-up", 0, "--out", "run")
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3  # the generator, the server, its worker
    assert until(lambda: rows_on_disk(tmp_path / "run") > 20)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the rows so far are kept in run; it is no finished run" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert gone(children)
    assert 20 < len(read_samples(tmp_path / "run")) < 200 * 60
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the children of a killed parent")
def test_a_killed_bench_takes_its_generator_and_server_along(start_bench, tiny_onnx, tmp_path):
    process = start_bench(tiny_onnx, "--rps", 200, "--duration", "60s", "--warm-up", 0, "--out", "run")
    children = psutil.Process(process.pid).children(recursive=True)
    assert until(lambda: rows_on_disk(tmp_path / "run") > 20)
    assert not gone(children)
    process.kill()
    process.wait()
    assert until(lambda: gone(children))
    assert len(read_samples(tmp_path / "run")) > 20


def test_a_run_without_one_answer_is_written_and_ends_with_1(start_bench, tiny_onnx, tmp_path):
    with serving(str(tiny_onnx), tmp_path, ServerOptions()) as served:
        process = start_bench(
            *(served.http, "--rps", 100, "--duration", "1s", "--warm-up", "6s", "--timeout", "1s", "--out", "run")
        )
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    run = read_run(tmp_path / "run")
    assert (run.counts.ok, run.counts.failed) == (0, run.counts.scheduled)
    assert "connection refused" in stdout
    assert "INVALID" in stdout


def test_help_names_every_option_with_what_it_does(mlserve):
    done = mlserve("bench", "--help")
    assert done.returncode == 0
    for option in ("--rps", "--warm-up", "--arrivals", "--max-in-flight", "--data", "--device", "--json"):
        assert option in done.stdout


def test_the_command_line_imports_no_load_generator():
    code = (
        "import sys, mlserve.cli.main; print([m for m in ('locust', 'gevent', 'pyarrow', 'grpc') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]", done.stderr
