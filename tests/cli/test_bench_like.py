"""`mlserve bench --like`: the same requests at the same instants again, or one line that says why not."""

import contextlib
import json
import shlex
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from mlserve.bench.clients.client import Request
from mlserve.bench.payload.payload import Payload, PayloadWish
from mlserve.bench.sealing import sealed
from mlserve.bench.target import parse_header
from mlserve.cli.main import app
from mlserve.errors import BenchError, UsageError
from mlserve.report.command import bench_command
from mlserve.runs.machine import read_machine
from mlserve.runs.naming import named_runs
from mlserve.runs.run import ServerSettings, read_run, write_run
from mlserve.tuning.locking import Moved, lock_of, made_again, unlike
from mlserve.tuning.opening import open_again
from mlserve.tuning.source import Contender, Source

METADATA = {
    "name": "tiny",
    "versions": ["3"],
    "platform": "test",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 30]}],
    "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 2]}],
}
ANSWER = {"model_name": "tiny", "outputs": [{"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}


class _Handler(BaseHTTPRequestHandler):
    """A V2 server of others that keeps every body it is sent."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    bodies: list[bytes]

    def handle(self):
        with contextlib.suppress(OSError, ValueError):  # the client has gone
            super().handle()

    def do_GET(self):
        self._say(METADATA if self.path == "/v2/models/tiny" else {"error": self.path})

    def do_POST(self):
        self.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self._say([{"name": "tiny"}] if self.path == "/v2/repository/index" else ANSWER)

    def _say(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # a busy machine opens many connections at once


@pytest.fixture(scope="module")
def other_server():
    """Its URL, and all bodies that it was sent."""
    bodies = []
    http = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"bodies": bodies}))
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{http.server_address[1]}", bodies
    http.shutdown()
    http.server_close()


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """`mlserve bench ARGUMENTS...` in this process: its exit code and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("MLSERVE_STORE", raising=False)

    def run(*arguments):
        done = CliRunner().invoke(app, ["bench", *map(str, arguments)])
        return done.exit_code, done.stderr

    return run


def due_ns(directory):
    return np.sort(pq.read_table(directory / "samples.parquet")["scheduled_ns"].to_numpy())


@pytest.fixture(scope="module")
def first(other_server, tmp_path_factory):
    """A folder with a run, the rows it was fed, and the bodies that its server was sent."""
    url, bodies = other_server
    folder = tmp_path_factory.mktemp("first")
    np.save(folder / "rows.npy", np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32))
    command = (
        *(sys.executable, "-m", "mlserve", "bench", url, "--rps", "500", "--duration", "0.3s", "--warm-up", "0.1s"),
        *("--batch", "1:0.7,3:0.3", "--data", "rows.npy", "--seed", "7"),
        *("--header", "authorization: Bearer KEY", "--out", "run"),
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr
    sent = list(bodies)
    bodies.clear()
    return SimpleNamespace(folder=folder, sent=sent)


def test_instants_and_bodies_are_the_same_to_the_last_byte(first, mlserve_here, other_server, tmp_path):
    shutil.copytree(first.folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "rows.npy").rename(tmp_path / "moved.npy")
    done = mlserve_here(
        *("bench", "--like", "run", "--data", "moved.npy", "--header", "authorization: Bearer KEY"),
        *("--out", "again", "--json"),
    )
    assert done.returncode == 0, done.stderr
    before, after = read_run(tmp_path / "run"), read_run(tmp_path / "again")
    assert np.array_equal(due_ns(tmp_path / "run"), due_ns(tmp_path / "again"))
    assert len(due_ns(tmp_path / "run")) > 100
    # Sets, for a busy machine may lose a connection; how often each was to be sent stands in the column `body`.
    inference = [{body for body in sent if b"inputs" in body} for sent in (first.sent, other_server[1])]
    assert inference[0] == inference[1]
    assert len(inference[0]) > 20
    order = [
        pq.read_table(tmp_path / name / "samples.parquet").sort_by("scheduled_ns")["body"] for name in ("run", "again")
    ]
    assert order[0] == order[1]
    assert after.lock.requests_sha256 == before.lock.requests_sha256 != ""
    assert after.lock.schedule_sha256 == before.lock.schedule_sha256 != ""
    assert after.label == before.label
    assert msgspec.structs.replace(after.plan, payload="") == msgspec.structs.replace(before.plan, payload="")
    assert b"KEY" not in (tmp_path / "run" / "run.json").read_bytes()
    assert json.loads(done.stdout)["like"] == {"directory": "run", "other": False, "notes": []}


SERVER = ServerSettings(
    workers=1, threads=1, max_batch_rows=8, max_delay_ms=0.5, device="cpu", cpus=(0,), engine="onnxruntime"
)


@pytest.fixture
def kept(first, tiny_onnx, tmp_path, monkeypatch):
    """The working directory, with a run of a model of ours that wants to be found warm, its rows, and the model."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(first.folder, tmp_path, dirs_exist_ok=True)
    shutil.copy(tiny_onnx, "tiny.onnx")
    run = read_run(tmp_path / "run")
    source = Source(store=tmp_path / "store", wish=PayloadWish(data=Path("rows.npy")))
    lock = lock_of(Contender("tiny.onnx", "tiny.onnx"), source)
    plan = msgspec.structs.replace(run.plan, find_warm_up=True, protocol="grpc")
    write_run(tmp_path / "run", msgspec.structs.replace(run, lock=lock, server=SERVER, plan=plan))
    return tmp_path


def test_a_server_of_ours_is_set_as_it_was_and_the_run_ends_when_it_did(kept):
    run = read_run(kept / "run")
    again = made_again(run, kept / "run", Moved())
    assert again.plan == msgspec.structs.replace(run.plan, payload="")
    assert again.ends_at_s == run.window.end_s
    assert not again.other
    with open_again(again) as subject_of:
        subject = subject_of("grpc")
    assert msgspec.structs.replace(subject.server, cpus=()) == msgspec.structs.replace(SERVER, cpus=())
    assert subject.lock == run.lock
    steady = msgspec.structs.replace(run, plan=msgspec.structs.replace(run.plan, find_warm_up=False))
    assert made_again(steady, kept / "run", Moved()).ends_at_s is None


def test_a_server_of_another_interpreter_is_one_again_and_without_that_interpreter_refused(kept):
    run = read_run(kept / "run")
    assert made_again(run, kept / "run", Moved()).options.python == ""
    other = msgspec.structs.replace(run, server=msgspec.structs.replace(SERVER, python=sys.executable))
    assert made_again(other, kept / "run", Moved()).options.python == sys.executable
    gone = msgspec.structs.replace(run, server=msgspec.structs.replace(SERVER, python="/gone/bin/python"))
    with pytest.raises(UsageError, match="was served by the mlserve of /gone/bin/python, which is not there"):
        made_again(gone, kept / "run", Moved())


def test_the_command_in_a_report_makes_the_run_again(kept):
    (kept / "run").rename(kept / "my run")
    words = shlex.split(bench_command(read_run(kept / "my run"), Path("my run")))
    said = typer.main.get_command(app).commands["bench"].make_context("bench", words[2:]).params
    (named,) = named_runs(said["like"])
    again = made_again(read_run(named), named, Moved(headers=tuple(map(parse_header, said["headers"]))))
    assert (again.run.label, again.other) == (read_run(kept / "my run").label, False)


def test_of_many_runs_those_that_are_made_already_are_not_made_once_more(kept, bench, tmp_path):
    for place in ("both/a", "both/b", "again/01-a", "again/02-b"):
        shutil.copytree(tmp_path / "run", tmp_path / place)
    asked = {"format_version": 1, "runs": [str(tmp_path / "both" / name) for name in "ab"], "where": ["tiny.onnx"] * 2}
    (tmp_path / "again" / "like.json").write_text(json.dumps(asked))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    for named in ("both", tmp_path / "both"):
        code, said = bench("--like", named, "--out", "again")
        assert code == 0, said
        assert "2 runs are made again" in said
    assert before == {path: path.stat().st_mtime_ns for path in before}
    code, said = bench("--like", "again", "--out", "again")
    assert code == 2
    assert "--out again holds another like" in said


def test_other_requests_or_other_instants_than_the_lock_says_are_refused_before_any_load(kept):
    run = read_run(kept / "run")
    payload = Payload(requests=(Request(b"a"), Request(b"b")), order=(0, 1, 0), source="")
    lock = sealed(run.lock, run.plan, payload, PayloadWish())
    assert sealed(lock, run.plan, payload, PayloadWish()) == lock
    later = msgspec.structs.replace(run.plan, seed=8)
    with pytest.raises(BenchError, match="the instants at which requests are due are not those"):
        sealed(lock, later, payload, PayloadWish())
    for other in ((Request(b"ab"), Request(b"")), (Request(b"a"), Request(b"c"))):
        with pytest.raises(BenchError, match="the requests are not those"):
            sealed(lock, run.plan, msgspec.structs.replace(payload, requests=other), PayloadWish())
    with pytest.raises(BenchError, match="the requests are not those"):
        sealed(lock, run.plan, msgspec.structs.replace(payload, order=(0, 0, 1)), PayloadWish())
    assert sealed(None, later, payload, PayloadWish()) is None


def test_a_model_that_changed_is_refused_unless_another_is_named(kept, bench, tiny_onnx, tmp_path):
    with (tmp_path / "tiny.onnx").open("ab") as file:
        file.write(b"\x0a\x00")  # an empty field of protobuf: the same model in other bytes
    code, complaint = bench("--like", "run", "--out", "new")
    assert code == 2
    assert "tiny.onnx is not the model that run asked" in complaint
    assert not (tmp_path / "new").exists()
    run = read_run(tmp_path / "run")
    again = made_again(run, tmp_path / "run", Moved(where="tiny.onnx"))
    assert again.other
    shutil.copy(tiny_onnx, tmp_path / "same.onnx")
    assert not made_again(run, tmp_path / "run", Moved(where="same.onnx")).other


def test_a_model_that_is_gone_is_named_with_what_to_do(kept, bench, tmp_path):
    (tmp_path / "tiny.onnx").unlink()
    code, complaint = bench("--like", "run")
    assert code == 2
    assert "run asked tiny.onnx, which cannot be had" in complaint
    assert "name another model: mlserve bench NAME --like" in complaint
    run = read_run(tmp_path / "run")
    lock = msgspec.structs.replace(run.lock, where="tiny@1")
    write_run(tmp_path / "run", msgspec.structs.replace(run, lock=lock))
    assert "say with --store where it lies now" in bench("--like", "run", "--store", "elsewhere")[1]
    code, complaint = bench("nobody", "--like", "run", "--store", "elsewhere")
    assert complaint.startswith("error: the store elsewhere has no model 'nobody'")


def test_how_a_server_of_another_kind_is_asked_is_kept(kept, tmp_path):
    url = "http://127.0.0.1:9/predict"
    source = Source(
        store=tmp_path / "store",
        wish=PayloadWish(data=Path("rows.npy"), image_sizes=((2, 3),), timed="all"),
        model="m",
        inputs="tiny.onnx",
        template='{"instances": {{rows}}}',
        answer="predictions",
        headers=(("x-key", "KEY"),),
        metrics="http://127.0.0.1:9/metrics",
    )
    run = read_run(tmp_path / "run")
    plan = msgspec.structs.replace(run.plan, protocol="json")
    run = msgspec.structs.replace(run, server=None, plan=plan, lock=lock_of(Contender(url, "theirs"), source))
    again = made_again(run, tmp_path / "run", Moved(headers=source.headers))
    assert (again.contender, again.source, again.options) == (Contender(url, "theirs"), source, None)
    assert again.plan.protocol == "json"
    assert again.source.target(url, "json").path == "/predict"


def test_a_file_that_changed_or_is_gone_is_refused(kept, bench, tmp_path):
    np.save(tmp_path / "other.npy", np.ones((4, 30), np.float32))
    assert "other.npy is not what run read" in bench("--like", "run", "--data", "other.npy")[1]
    assert (
        "--expected other.npy contradicts run, which read no such file"
        in bench("--like", "run", "--expected", "other.npy")[1]
    )
    (tmp_path / "rows.npy").unlink()
    code, complaint = bench("--like", "run")
    assert code == 2
    assert "run read rows.npy, which is not there; say with --data where it lies now" in complaint


def test_what_a_run_did_not_keep_is_said(kept, bench, tmp_path):
    run = read_run(tmp_path / "run")
    write_run(
        tmp_path / "run", msgspec.structs.replace(run, lock=msgspec.structs.replace(run.lock, headers=("x-key",)))
    )
    assert "give it with --header 'x-key: VALUE'" in bench("--like", "run")[1]
    write_run(tmp_path / "run", msgspec.structs.replace(run, lock=None))
    assert "did not keep what a run is made of" in bench("--like", "run")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--like run --rps 3", "--rps contradicts --like, which makes a run again as it was"),
        ("--like run --sweep batch=1", "--sweep contradicts --like"),
        ("--like run --threads 2", "--threads contradicts --like"),
        ("--like missing", "there is no missing"),
    ],
)
def test_what_cannot_be_made_again_is_told(bench, arguments, message):
    code, complaint = bench(*arguments.split())
    assert code == 2
    assert message in complaint


def test_a_machine_that_differs_is_noted_and_one_that_does_not_is_not(kept):
    run = read_run(kept / "run")
    now = read_machine()
    assert unlike(run, now) == []
    packages = now.packages | {"numpy": "0.1"}
    other = msgspec.structs.replace(now, cpu="abacus", python="2.7.0", packages=packages)
    notes = unlike(run, other)
    assert f"cpu {now.cpu} against abacus" in notes
    assert any(note.startswith("python ") for note in notes)
    assert any(note.startswith("numpy ") and note.endswith(" against 0.1") for note in notes)
