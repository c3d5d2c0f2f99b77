"""`mlserve record` as a user types it, against a real server that is asked meanwhile."""

import contextlib
import http.server
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import pyarrow.parquet as pq
import pytest

from mlserve.tuning.serving import ServerOptions, serving

BODY = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 30], "data": [%s]}]}' % b",".join([b"1"] * 30)


@pytest.fixture(scope="module")
def url(tiny_onnx, tmp_path_factory):
    with serving(str(tiny_onnx), tmp_path_factory.mktemp("store"), ServerOptions()) as served:
        yield served.http


@pytest.fixture
def recording(tmp_path):
    """Starts `mlserve record ARGUMENTS...`; ended with the test."""
    processes = []

    def start(*arguments):
        command = [sys.executable, "-m", "mlserve", "record", *map(str, arguments)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def ask_until(url, process, seconds):
    """Asks ten times a second until `process` ends or the time is over; how often."""
    asked, ends_s = 0, time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < ends_s:
        urllib.request.urlopen(f"{url}/v2/models/tiny/infer", BODY).read()
        asked += 1
        time.sleep(0.1)
    return asked


def test_a_trace_is_written_with_what_came_while_it_was_recorded(url, recording, tmp_path):
    process = recording(url, "--for", "1.5s", "--out", tmp_path / "trace.parquet")
    asked = ask_until(url, process, 30)
    printed, complaints = process.communicate(timeout=30)
    assert process.returncode == 0, complaints
    table = pq.read_table(tmp_path / "trace.parquet")
    assert f"{len(table)} requests recorded in" in printed
    assert 5 <= len(table) <= asked
    assert set(table["model"].to_pylist()) == {"tiny"}


def test_ctrl_c_ends_it_early_and_keeps_it(url, recording, tmp_path):
    process = recording(url, "--for", "10m", "--out", tmp_path / "trace.parquet", "--json")
    assert "requests" in process.stderr.readline()  # it has begun
    assert ask_until(url, process, 0.5)
    process.send_signal(signal.SIGINT)
    complaints = process.stderr.read()
    assert process.wait(30) == 0, complaints
    assert "ended early" in complaints
    assert len(pq.read_table(tmp_path / "trace.parquet")) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ftp://127.0.0.1:1",), "is no address of a server; write http://HOST:PORT"),
        (("http://127.0.0.1:1",), "cannot be reached"),
        (("URL", "--bodies", "all"), "--bodies 'all' is unknown; use none, hash, keep or keep:1%"),
        (("URL", "--out", "missing/trace.parquet"), "there is no folder missing"),
        (("URL", "--for", "2000h"), "'for_s' 7.2e+06 is out of range"),
    ],
)
def test_what_cannot_be_recorded_is_told_in_one_line(mlserve_here, url, arguments, message):
    done = mlserve_here("record", *(url if argument == "URL" else argument for argument in arguments))
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("said", [b"[]", b"hello", b"\xff", b'{"number": "one"}'])
def test_a_server_of_another_kind_is_called_so(said, recording, tmp_path):
    class Other(http.server.BaseHTTPRequestHandler):
        def do_POST(self):  # the library's name
            self.send_response(200)
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_): ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        process = recording(f"http://127.0.0.1:{server.server_port}", "--out", tmp_path / "trace.parquet")
        _, complaints = process.communicate(timeout=30)
        server.shutdown()
    assert process.returncode == 2
    assert "is no mlserve server" in complaints
    assert complaints.count("\n") == 1
