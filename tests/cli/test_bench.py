"""`mlserve bench` as a user types it: real servers, real generators, real signals.

A run costs seconds before it begins, so that several tests look at the same one, and the command itself mostly runs in
this process where no signal is sent. None looks at how quick anything was, and so they run beside others.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import typer

from mlserve.bench.load.schedule import schedule
from mlserve.bench.payload.expected import WRONG_ANSWER
from mlserve.cli.bench_max import bench_max
from mlserve.errors import RunFileError
from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest, sha256_of
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec
from mlserve.runs.load import Plan, RowShare, Steps
from mlserve.runs.run import read_run
from mlserve.runs.samples import OK, read_samples
from mlserve.tuning.evidence import Objective
from mlserve.tuning.find_max import Quest, find_max
from mlserve.tuning.opening import Contender
from mlserve.tuning.serving import ServerOptions, serving

METADATA = {
    "name": "tiny",
    "versions": ["3"],
    "platform": "test",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 30]}],
    "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 2]}],
}


class OtherServer:
    """A server of others, of a model like ours: V2 over HTTP, one request after the other, `service_s` each.

    The first `good` inference requests are answered well, the rest with `status`, and with another value. `headers` are
    those of all requests.
    """

    def __init__(self, *, service_s=0.0, good=10**9, status=200):
        self.service_s, self.good, self.status = service_s, good, status
        self.asked, self.headers, self.turn = 0, [], threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"other": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self):
        with self.turn:
            self.asked += 1
            time.sleep(self.service_s)
            well = self.asked <= self.good
        outputs = [{"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0 if well else 7.0]}]
        return (200 if well else self.status), {"model_name": "tiny", "model_version": "3", "outputs": outputs}

    def stop(self):
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    other: OtherServer

    def handle(self):
        with contextlib.suppress(OSError, ValueError):  # the client has gone
            super().handle()

    def do_GET(self):
        self._say(*((200, METADATA) if self.path == "/v2/models/tiny" else (404, {"error": self.path})))

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v2/repository/index":
            self._say(200, [{"name": "tiny"}])
        else:
            self._say(*self.other.answer())

    def _say(self, status, content):
        self.other.headers.append((self.path, dict(self.headers.items())))
        body = json.dumps(content, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def other_server():
    """Starts an OtherServer with the settings given; all are stopped with the test."""
    servers = []

    def start(**settings):
        servers.append(OtherServer(**settings))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def formula_server(made_runs):
    """Makes the FormulaServer that the searches' own tests use."""
    path = Path(__file__).parents[1] / "tuning" / "conftest.py"
    spec = importlib.util.spec_from_file_location("formula_servers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda **settings: module.FormulaServer(made_runs, **settings)


class Unheard:
    """A watcher that nobody listens to."""

    def begins(self, *_): ...

    def moves(self, *_): ...

    def ends(self, *_): ...


@pytest.fixture(scope="module")
def served(tiny_onnx, tmp_path_factory):
    """A server of ours that runs already."""
    with serving(str(tiny_onnx), tmp_path_factory.mktemp("store"), ServerOptions()) as running:
        yield running


def started(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "mlserve", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )


def ended(process):
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.communicate()


@pytest.fixture
def start(tmp_path):
    """Starts `mlserve ARGUMENTS...` and returns the process; all are ended with the test."""
    processes = []

    def begin(*arguments):
        processes.append(started(tmp_path, *arguments))
        return processes[-1]

    yield begin
    for process in processes:
        ended(process)


def heard(process, beginning):
    """Waits until `process` says a line that begins so, on stderr."""
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith(beginning):
            return
    raise AssertionError("".join(said))


def until(condition, limit_s=30.0):
    deadline_s = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return condition()


def free_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


def rows_on_disk(directory):
    try:
        return len(read_samples(directory))
    except RunFileError:  # there are none yet
        return 0


def gone(processes):
    return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def checks_of(run):
    return {check.name: check for check in run.certificate.checks}


# One run, from the command line to the files.


def test_a_file_is_served_and_loaded_until_the_figure_is_sure_enough(mlserve, tiny_onnx, tmp_path):
    done = mlserve(
        *("bench", tiny_onnx, "--rps", 400, "--duration", "0.5s", "--warm-up", "auto", "--max-batch-rows", 8),
        *("--percentile", "p50", "--precision", "1%", "--max-duration", "1.5s", "--protocol", "grpc"),
        *("--out", "run", "--json"),
    )
    assert done.returncode == 0, done.stderr
    run = read_run(tmp_path / "run")
    samples, rows = read_samples(tmp_path / "run", run.window), pq.read_table(tmp_path / "run" / "samples.parquet")
    assert run.plan.find_warm_up
    assert run.window.start_s >= 1.0
    assert run.window.duration_s >= 0.5
    assert run.window.end_s <= run.plan.longest_s
    assert run.ended
    due_s = schedule(run.plan) / 1e9
    due_s = due_s[due_s < run.window.end_s]
    assert len(rows) >= len(due_s)
    assert run.counts.scheduled == len(samples) == int((due_s >= run.window.start_s).sum())
    assert (run.counts.ok, run.counts.failed, run.counts.dropped) == (len(samples), 0, 0)
    assert np.all(samples.latency_s >= samples.service_s)
    assert (run.model.name, run.model.version, run.plan.protocol) == ("tiny", "1", "grpc")
    assert (run.server.workers, run.server.max_batch_rows, run.server.device) == (1, 8, "cpu")
    assert run.calibration.requests > 0
    assert {process.role for process in run.resources.processes} >= {"server", "generator"}
    for name in ("schedule kept", "answered", "server counters", "execution provider"):
        assert checks_of(run)[name].ok
    document = json.loads(done.stdout)
    assert document["counts"]["ok"] == len(samples)
    assert document["summary"]["latency_s"]["p50"] <= document["summary"]["latency_s"]["p90"]
    assert document["summary"]["offered_per_s"] == pytest.approx(len(samples) / run.window.duration_s)
    assert document["summary"]["versions"] == {"1": len(samples)}
    assert document["valid"] == run.certificate.valid


def test_people_get_figures_a_verdict_and_the_folder(mlserve, served, tmp_path):
    done = mlserve(
        *("bench", f"{served.http}/v2/models/tiny/versions/1", "--shape", "steps:500,1500", "--duration", "0.4s"),
        *("--warm-up", 0, "--arrivals", "constant", "--server-timing", "all"),
    )
    assert done.returncode == 0, done.stderr
    assert "loading tiny over rest at 500/s, steps of 500/s, 1,500/s, for 400 ms; without warm-up" in done.stderr
    assert "tiny-v1-rest-500rps-steps" in done.stdout
    assert "400 ok, 0 failed, 0 dropped" in done.stdout
    assert "400 ms, no warm-up" in done.stdout
    assert "null server" in done.stdout
    assert "at the same rate" in done.stdout
    assert "INVALID" in done.stdout
    assert "enough samples: 400 answers. Measure for longer" in done.stdout
    assert "p99 needs 459 answered requests, there are 400" in done.stdout
    folder = tmp_path / done.stdout.split()[-1]
    assert folder.parent == tmp_path / "runs"
    run, samples = read_run(folder), read_samples(folder)
    assert (run.counts.ok, run.plan.shape) == (400, Steps((500.0, 1500.0)))
    assert int((samples.scheduled_s < 0.2).sum()) == pytest.approx(100, abs=1)
    assert np.all(samples.compute_s > 0)


def test_a_closed_loop_of_a_scenario_on_a_model_of_the_store_is_called_one_everywhere(mlserve, tiny_onnx, tmp_path):
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
    done = mlserve(  # the store's only model
        *(
            "bench",
            "--scenario",
            "offline",
            "--protocol",
            "sagemaker",
            "--users",
            2,
            "--batch",
            4,
            "--duration",
            "0.3s",
            "--warm-up",
            0,
        ),
        *("--data", "rows.npy", "--check", "--out", "run"),
    )
    assert done.returncode == 0, done.stderr
    assert "with 2 users (closed loop)" in done.stderr
    assert "tiny-fp32-sagemaker-closed-2users-offline" in done.stdout
    assert "latency (closed loop)" in done.stdout
    assert "fit for a peak throughput only" in done.stdout
    assert "offered" not in done.stdout
    run = read_run(tmp_path / "run")
    assert (run.plan.arrivals, run.plan.users, run.plan.rate_per_s, run.plan.scenario) == ("closed", 2, 0.0, "offline")
    assert run.label == "tiny-fp32-sagemaker-closed-2users-offline"
    assert (run.model.name, run.model.version, run.model.variant) == ("tiny", "1", "fp32")
    assert run.model.sha256 == sha256_of(tiny_onnx)
    assert run.plan.payload.startswith("rows.npy (sha256 ")
    assert run.plan.payload.endswith(", 2 bodies")
    assert run.counts.failed == 0
    assert checks_of(run)["right answers"].ok
    assert checks_of(run)["closed loop"].found == "2 users, each waiting for its answer"


# Several generators, a trace, and a server that runs already.


@pytest.fixture(scope="module")
def recorded(served, tiny_onnx, tmp_path_factory):
    """Two generators load a server in JSON of the user's own writing, in mixed sizes, while it is recorded."""
    folder = tmp_path_factory.mktemp("recorded")
    recording = started(
        folder, "record", served.http, "--for", "10m", "--out", "trace.parquet", "--bodies", "keep", "--json"
    )
    try:
        heard(recording, "recording: ")
        bench = started(
            *(folder, "bench", f"{served.http}/invocations", "--protocol", "json", "--inputs", tiny_onnx, "--check"),
            *("--template", '{"instances": {{rows}}}', "--answer", "predictions", "--batch", "1:0.5,3:0.5"),
            *("--workers", 2, "--rps", 1000, "--duration", "0.3s", "--warm-up", "0.2s", "--label", "mine"),
            *("--out", "run", "--json"),
        )
        printed, complaint = bench.communicate(timeout=120)
        assert bench.returncode == 0, complaint
        recording.send_signal(signal.SIGINT)
        told, complaint = recording.communicate(timeout=30)
        assert recording.returncode == 0, complaint
    finally:
        ended(recording)
    return SimpleNamespace(folder=folder, document=json.loads(printed), requests=json.loads(told)["requests"])


def test_two_generators_send_one_schedule(recorded):
    run = read_run(recorded.folder / "run")
    rows = pq.read_table(recorded.folder / "run" / "samples.parquet")
    due_ns = schedule(run.plan)
    assert np.array_equal(np.sort(rows["scheduled_ns"].to_numpy()), due_ns)
    assert (run.label, run.plan.generators, run.counts.failed, run.counts.dropped) == ("mine", 2, 0, 0)
    assert run.counts.ok == int((due_ns >= 0.2e9).sum())
    assert len([process for process in run.resources.processes if process.role == "generator"]) >= 2
    assert checks_of(run)["right answers"].ok


def test_sizes_are_mixed_and_json_is_written_by_the_template(recorded):
    run, samples = read_run(recorded.folder / "run"), read_samples(recorded.folder / "run")
    assert run.plan.row_mix == (RowShare(1, 0.5), RowShare(3, 0.5))
    assert set(samples.rows) == {1, 3}
    assert (run.plan.protocol, run.server) == ("json", None)


def test_a_recorded_trace_is_sent_again_by_a_generator_that_joined(
    recorded, served, tiny_onnx, mlserve_here, start, tmp_path
):
    trace = pq.read_table(recorded.folder / "trace.parquet")
    loaded = len(pq.read_table(recorded.folder / "run" / "samples.parquet"))
    assert len(trace) == recorded.requests > loaded  # the questions before the load, too
    port = free_port()
    joined = start("bench", "--join", f"127.0.0.1:{port}")
    heard(joined, f"joining 127.0.0.1:{port}")
    done = mlserve_here(
        *(
            "bench",
            f"{served.http}/predictions/tiny",
            "--inputs",
            tiny_onnx,
            "--replay",
            recorded.folder / "trace.parquet",
            "--replay-speed",
            5,
            "--check",
        ),
        *("--master", f"127.0.0.1:{port}", "--out", "run"),
    )
    assert done.returncode == 0, done.stderr
    assert f"waiting for 1 generator to join: mlserve bench --join 127.0.0.1:{port}" in done.stderr
    joined.send_signal(signal.SIGINT)
    joined.communicate(timeout=30)
    assert joined.returncode == 130
    run, samples = read_run(tmp_path / "run"), read_samples(tmp_path / "run")
    assert (run.plan.arrivals, run.plan.shape.source, run.plan.shape.speed) == ("replay", "trace.parquet", 5.0)
    assert run.counts.ok == len(samples) == len(trace)
    arrived_s = np.sort(trace["at_ns"].to_numpy()) / 1e9
    assert np.allclose(np.sort(samples.scheduled_s), (arrived_s - arrived_s[0]) / 5, atol=1e-6)
    assert sorted(samples.rows.tolist()) == sorted(trace["rows"].to_pylist())
    assert checks_of(run)["right answers"].ok
    assert run.plan.protocol == "torchserve"
    assert "trace.parquet" in run.plan.payload


def test_two_servers_are_loaded_by_the_same_schedule_in_one_table(served, other_server, mlserve, tmp_path, tiny_onnx):
    done = mlserve(
        *("bench", "--target", f"ours=mlflow+{served.http}/invocations", "--target", f"other={other_server().url}"),
        *("--rps", 500, "--duration", "0.3s", "--warm-up", 0, "--out", "runs", "--inputs", tiny_onnx),
    )
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.rstrip() for line in done.stdout.splitlines() if line}
    assert rows["ours"].endswith(("INVALID", "VALID 1 of 1"))
    assert rows["other"].endswith(("INVALID", "VALID 1 of 1"))
    assert "1/2 " in done.stderr
    runs = {read_run(path.parent).model.variant: path.parent for path in (tmp_path / "runs").glob("*/run.json")}
    assert set(runs) == {"ours", "other"}
    faults = {check.name for path in runs.values() for check in read_run(path).certificate.faults}
    assert "machine known" not in faults  # a name for a target is no promise of a file
    assert read_run(runs["ours"]).plan.protocol == "mlflow"
    assert read_run(runs["other"]).plan.protocol == "rest"
    due = [np.sort(read_samples(path).scheduled_s) for path in runs.values()]
    assert np.array_equal(*due)


def test_a_sweep_that_was_cut_short_goes_on_with_what_is_missing(tiny_onnx, start, mlserve_here, tmp_path):
    command = (
        *("bench", tiny_onnx, "--sweep", "batch=4", "protocol=rest-binary,tfserving", "--rps", "500"),
        *("--duration", "0.3s", "--warm-up", "0", "--out", "sweep", "--json"),
    )
    process = start(*command)
    heard(process, "1/2 ")
    process.send_signal(signal.SIGINT)
    printed, complaint = process.communicate(timeout=30)
    assert (process.returncode, printed) == (130, "")
    assert "the finished runs are kept in sweep; the same command goes on with them" in complaint
    assert "Traceback" not in complaint
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").glob("*/run.json")}
    assert len(before) == 1
    done = mlserve_here(*command)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    cells = json.loads(done.stdout)["cells"]
    assert [cell["values"] for cell in cells] == [
        {"batch": "4", "protocol": protocol} for protocol in ("rest-binary", "tfserving")
    ]
    for cell in cells:
        (run,) = (read_run(tmp_path / run["directory"]) for run in cell["runs"])
        assert run.counts.ok == run.counts.scheduled > 0
        assert (str(run.plan.batch_rows), run.plan.protocol) == tuple(cell["values"].values())
    contradicting = mlserve_here(*command[:-2], "sweep", "--seed", 1)
    assert contradicting.returncode == 2
    assert "holds another sweep: --seed 0 there, 1 now" in contradicting.stderr


def test_headers_are_sent_and_not_kept_and_wrong_answers_are_found(other_server, mlserve_here, tmp_path):
    server = other_server(good=80)
    done = mlserve_here(
        *("bench", server.url, "--rps", 500, "--duration", "0.3s", "--warm-up", 0, "--check", "--out", "run"),
        *("--header", "authorization: Bearer sesame"),
    )
    assert done.returncode == 0, done.stderr
    samples = read_samples(tmp_path / "run")
    assert set(samples.status) == {OK, WRONG_ANSWER}
    assert f"{WRONG_ANSWER}: " in done.stdout
    assert "right answers" in [check.name for check in read_run(tmp_path / "run").certificate.faults]
    asked = [headers for path, headers in server.headers if path == "/v2/models/tiny/infer"]
    assert len(asked) >= len(samples)
    for _, headers in server.headers:
        assert {name.lower(): value for name, value in headers.items()}["authorization"] == "Bearer sesame"
    for file in (tmp_path / "run").iterdir():
        assert b"sesame" not in file.read_bytes()
    assert "sesame" not in done.stdout + done.stderr


def test_a_run_without_one_good_answer_is_written_and_ends_with_1(other_server, mlserve_here, tmp_path):
    done = mlserve_here(
        *("bench", other_server(good=1, status=503).url, "--rps", 500, "--duration", "0.3s", "--warm-up", 0),
        *("--out", "run"),
    )
    assert done.returncode == 1
    run = read_run(tmp_path / "run")
    assert (run.counts.ok, run.counts.failed) == (0, run.counts.scheduled)
    assert "HTTP 503: " in done.stdout
    assert "INVALID" in done.stdout


LOCUSTFILE = """
from locust import HttpUser, task

class Visitor(HttpUser):
    @task
    def look_and_ask(self):
        self.client.get("/v2/models/tiny", name="look")
        self.client.post("/v2/models/tiny/infer", data=b"{}", name="ask")
"""


def test_a_users_own_scenario_is_measured_and_shown_on_locusts_page(other_server, start, tmp_path):
    (tmp_path / "visitor.py").write_text(LOCUSTFILE)
    server, port = other_server(), free_port()
    process = start(
        *("bench", server.url, "--locustfile", "visitor.py", "--rps", 100, "--duration", "0.4s", "--warm-up", 0),
        *("--web", "--web-port", port, "--out", "run"),
    )
    heard(process, "the run is over; its page stays until Ctrl-C")
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/").read()
    assert b"Locust" in page
    figures = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/stats/requests"))
    assert {entry["name"] for entry in figures["stats"]} >= {"look", "ask"}
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    printed, complaint = process.communicate(timeout=30)
    assert process.returncode == 0, complaint
    assert "Traceback" not in complaint
    run, samples = read_run(tmp_path / "run"), read_samples(tmp_path / "run")
    due_s = schedule(run.plan) / 1e9
    assert set(due_s) <= set(samples.scheduled_s)
    assert sorted(set(samples.version)) == ["ask", "look"]
    assert len(samples) == 2 * len(due_s)
    measured = int((samples.scheduled_s < run.window.end_s).sum())  # a task may ask for the second time after it
    assert run.counts.ok == measured >= len(due_s)
    assert f"{measured} ok, 0 failed, 0 dropped" in printed
    assert run.plan.payload == "locustfile visitor.py"


def test_the_protocol_tax_is_split_into_parts(tiny_onnx, mlserve):
    done = mlserve("bench", tiny_onnx, "--tax", "--duration", "0.7s", "--batch", 2)
    assert done.returncode == 0, done.stderr
    assert "one request of 2 rows at a time, each after the one before (closed loop)" in done.stdout
    for word in ("in process", "gRPC", "REST binary", "REST JSON", "client", "network", "parse", "queue", "reply"):
        assert word in done.stdout


def test_a_search_for_the_highest_rate_goes_on_where_it_was_cut_short(
    other_server, formula_server, start, mlserve, tmp_path
):
    """The server does 500 a second. Its first run is real, and its last; a formula stands in for it between them."""
    command = (
        *("bench", other_server(service_s=0.002).url, "--find-max", "--slo", "p50=150ms", "--rps", "300"),
        *("--duration", "0.5s", "--warm-up", "0", "--resolution", "100%", "--out", "max"),
    )
    process = start(*command)
    heard(process, "300/s ")
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command goes on with them" in complaint
    assert "Traceback" not in complaint
    (first,) = (path.parent for path in (tmp_path / "max").glob("*/run.json"))
    formula = formula_server(service_s=0.002)
    quest = msgspec.json.decode((tmp_path / "max" / "max.json").read_bytes(), type=Quest)
    found = find_max(quest, tmp_path / "max", formula.opens, Unheard(), formula.measure)
    assert found.steps[0].recorded.directory == first
    shutil.rmtree(found.points[-1].recorded.directory)
    done = mlserve(*command, "--json")
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stderr.splitlines() if "meet it" in line or "meets it" in line]) == len(
        found.points
    )
    document = json.loads(done.stdout)
    assert 300 <= document["rate_per_s"] == found.passed_per_s < document["failed_per_s"]
    assert (document["end"], len(document["steps"])) == ("found", len(found.steps))
    assert json.loads((tmp_path / "max" / "curve.json").read_bytes()) == document
    again = mlserve(*command)
    assert again.returncode == 0
    for words in ("at most 0.1% errors", "highest rate", "failed (confirmed)", "knee", "search "):
        assert words in again.stdout


def test_a_search_with_runs_too_short_for_the_objective_says_so(formula_server, tmp_path, capsys):
    formula = formula_server(service_s=0.1)
    plan = Plan(rate_per_s=0.5, duration_s=2.0, warm_up_s=0.0)
    objective = Objective(percentile=0.99, limit_s=0.05, max_errors=0.001)
    quest = Quest(contender=Contender("m@1", "m@1"), plan=plan, objective=objective, start_per_s=0.5)
    find_max(quest, tmp_path / "max", formula.opens, Unheard(), formula.measure)
    with pytest.raises(typer.Exit) as left:
        bench_max(quest, formula.opens, tmp_path / "max", json=False)
    assert left.value.exit_code == 1
    said = capsys.readouterr().out
    assert "highest rate  none was found" in said
    assert "a lower rate are too short to tell: p99 takes 459 requests; measure for longer with --duration" in said


# What ends a run early, or keeps it from beginning.


def test_ctrl_c_keeps_the_rows_says_where_and_leaves_no_process(start, tiny_onnx, tmp_path):
    process = start("bench", tiny_onnx, "--rps", 500, "--duration", "60s", "--warm-up", 0, "--out", "run")
    heard(process, "loading ")
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
    assert 20 < len(read_samples(tmp_path / "run")) < 500 * 60
    assert not (tmp_path / "run" / "run.json").exists()


def test_ctrl_c_while_nobody_has_joined_keeps_no_rows_and_says_nothing_of_them(start, served, tmp_path):
    process = start("bench", served.http, "--master", f"127.0.0.1:{free_port()}", "--out", "run")
    heard(process, "waiting for 1 generator to join")
    assert until(lambda: list((tmp_path / "run").glob("samples.*")))
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "rows" not in complaint
    assert "loading" not in complaint
    assert gone(children)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the children of a killed parent")
def test_a_killed_bench_takes_its_generator_and_server_along(start, tiny_onnx, tmp_path):
    process = start("bench", tiny_onnx, "--rps", 500, "--duration", "60s", "--warm-up", 0, "--out", "run")
    heard(process, "loading ")
    children = psutil.Process(process.pid).children(recursive=True)
    assert until(lambda: rows_on_disk(tmp_path / "run") > 20)
    assert not gone(children)
    process.kill()
    process.wait()
    assert until(lambda: gone(children))
    assert len(read_samples(tmp_path / "run")) > 20


def test_the_page_is_refused_where_its_port_is_taken(served, mlserve_here, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = mlserve_here("bench", served.http, "--web", "--web-port", taken.getsockname()[1])
    assert done.returncode == 2
    assert "cannot listen at" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_running_server_says_what_it_serves(served, mlserve_here, tmp_path):
    wrong = mlserve_here("bench", f"{served.http}/v2/models/other", "--out", "wrong")
    assert wrong.returncode == 2
    assert "'other' is not found; it serves tiny" in wrong.stderr
    assert "HTTP/2" in mlserve_here("bench", f"grpc://{served.http[7:]}/tiny").stderr
    assert not (tmp_path / "wrong").exists()


def test_a_file_that_is_no_model_is_refused_before_a_server_starts(mlserve_here, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    done = mlserve_here("bench", "broken.onnx")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "broken.onnx" in done.stderr


def test_a_folder_that_holds_a_run_is_left_alone(mlserve_here, tiny_onnx, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("precious")
    done = mlserve_here("bench", tiny_onnx, "--out", "run")
    assert done.returncode == 2
    assert "holds a run already" in done.stderr
    assert (tmp_path / "run" / "run.json").read_text() == "precious"


def test_help_names_every_option_with_what_it_does(mlserve_here):
    done = mlserve_here("bench", "--help")
    assert done.returncode == 0
    for option in ("--rps", "--warm-up", "--arrivals", "--max-in-flight", "--data", "--device", "--sweep", "--json"):
        assert option in done.stdout
