"""One line of JSON for a request: whole, honest, and never at the request's expense."""

import json
import subprocess
import sys
import threading
import time

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlserve.serve.batching.batcher import Batch, Ticket
from mlserve.serve.settings import WatchSettings
from mlserve.serve.watching.request_log import LineWriter, encode_line
from mlserve.serve.watching.watched import _writer, open_meter
from mlserve.wire import messages
from mlserve.wire.signature import InferRequest

ROW = [[0.5] * 30]


@settings(deadline=None)
@given(st.text())
def test_no_text_of_a_client_ends_a_line_or_drives_a_terminal(text):
    line = encode_line({"id": text})
    assert json.loads(line)["id"] == text
    assert line[-1:] == b"\n"
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_file_that_was_rotated_is_made_anew(tmp_path):
    path = tmp_path / "requests.log"
    writer = LineWriter(str(path))
    writer.write({"number": 1})
    writer.flush()
    path.rename(tmp_path / "requests.log.1")
    writer.write({"number": 2})
    writer.flush()
    path.unlink()
    writer.write({"number": 3})
    writer.flush()
    assert lines_of(tmp_path / "requests.log.1") == [{"number": 1}]
    assert lines_of(path) == [{"number": 3}]


def test_a_full_disk_costs_lines_and_the_next_one_says_how_many(tmp_path, until, caplog):
    path = tmp_path / "requests.log"
    path.symlink_to("/dev/full")
    writer = LineWriter(str(path))
    for number in range(3):
        writer.write({"number": number})
    writer.flush()
    assert writer.dropped == 3
    assert caplog.text.count("cannot be written") == 1
    path.unlink()

    def recovered():
        writer.write({"late": True})
        writer.flush()
        return lines_of(path)

    until(recovered)
    (line,) = lines_of(path)
    assert line["late"]
    assert line["dropped"] >= 3


def test_lines_of_many_threads_stay_whole(tmp_path):
    path = tmp_path / "requests.log"
    writers = [LineWriter(str(path)), LineWriter(str(path))]  # as two workers have them

    def write(writer, start):
        for number in range(start, start + 500):
            writer.write({"number": number, "padding": "x" * 200})

    threads = [threading.Thread(target=write, args=(writers[turn % 2], 500 * turn)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for writer in writers:
        writer.flush()
    assert sorted(line["number"] for line in lines_of(path)) == list(range(2000))


@pytest.fixture
def logged(serving_settings, tiny_onnx, tmp_path):
    """`with logged(SHARE) as (server, lines)`: the lines are read when the server has ended."""

    class Logged:
        def __init__(self, share):
            self.path = tmp_path / "requests.log"
            watch = WatchSettings(log_share=share, log_file=str(self.path))
            self.context = serving_settings(tiny_onnx, watch=watch)

        def __enter__(self):
            return self.context.__enter__(), lambda: lines_of(self.path)

        def __exit__(self, *error):
            return self.context.__exit__(*error)

    return Logged


def test_every_request_has_its_line_at_a_share_of_one(logged, until):
    with logged(1.0) as (server, lines):
        inputs = {"x": ("FP32", ROW)}
        assert server.infer("tiny", inputs, id="mine")[0] == 200
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 30], "data": ROW}]})
        for path in ("/v2/models/tiny/infer", "/v2/models/tiny/infer?lane=slow"):
            assert server.request("POST", path, body, {"x-request-id": f"given\x85{len(path)}"})[0] == 200
        assert server.infer("tiny", {"x": ("FP32", ROW * 3)})[0] == 200
        assert server.infer("tiny", {"y": ("FP32", ROW)})[0] == 400
        with grpc.insecure_channel(server.grpc) as channel:
            request = messages.ModelInferRequest(model_name="tiny", id="by grpc\nforged")
            request.inputs.add(name="x", datatype="FP32", shape=[1, 30])
            request.raw_input_contents.append(bytes(120))
            channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(request.SerializeToString(), timeout=20)
        until(lambda: len(lines()) == 6)
        worker = server.workers[0]
        found = lines()
    assert [line["outcome"] for line in found] == ["ok", "ok", "ok", "ok", "InvalidRequest", "ok"]
    assert found[0]["id"] == "mine"
    assert [line["id"] for line in found[1:3]] == ["given\x8521", "given\x8531"]
    assert found[3]["id"] not in ("", found[4]["id"])
    assert found[5]["id"] == "by grpc\nforged"
    assert [line["status"] for line in found] == [200, 200, 200, 200, 400, 200]
    assert [line["protocol"] for line in found] == ["v2-rest"] * 5 + ["v2-grpc"]
    assert found[3]["rows"] == found[3]["batch_rows"] == 3
    for line in found:
        assert (line["model"], line["version"], line["worker"]) == ("tiny", "1", worker)
        assert "0.5" not in str({key: value for key, value in line.items() if key != "time" and key[-2:] != "_s"})
        if line["outcome"] == "ok":
            assert 0 <= line["queue_s"] <= line["queue_s"] + line["compute_s"] <= line["total_s"] + 2e-6


def test_a_share_of_nothing_leaves_the_errors_and_not_all_of_a_flood(logged, until):
    with logged(0.0) as (server, lines):
        for _ in range(20):
            assert server.infer("tiny", {"x": ("FP32", ROW)})[0] == 200
        started_s = time.monotonic()
        for _ in range(300):
            assert server.infer("tiny", {"y": ("FP32", ROW)})[0] == 400
        took_s = time.monotonic() - started_s
        time.sleep(1.1)
        assert server.infer("tiny", {"y": ("FP32", ROW)})[0] == 400
        until(lambda: sum(1 + line.get("suppressed", 0) for line in lines()) >= 301)
        found = lines()
    assert {line["outcome"] for line in found} == {"InvalidRequest"}
    assert len(found) <= 20 * (took_s + 3)
    assert len(found) + sum(line.get("suppressed", 0) for line in found) == 301


def test_a_batch_of_several_protocols_has_a_line_for_each_request(tmp_path):
    path = tmp_path / "requests.log"
    meter = open_meter("m", "1", WatchSettings(log_share=1.0, log_file=str(path)))

    class Asked(Ticket):
        def __init__(self, number):
            self.request = InferRequest({}, 1, id=str(number))
            self.rows, self.protocol = 1, ("v2-rest", "v2-grpc", "tfs-rest")[number % 3]
            self.arrived_s = time.perf_counter()

        def answer(self, outputs, batch):
            pass

        def fail(self, error):
            pass

    meter.answered([Asked(number) for number in range(5)], Batch(5, time.perf_counter(), 0.001))
    meter.close()
    _writer(str(path), 0, 5).flush()
    assert sorted(line["id"] for line in lines_of(path)) == ["0", "1", "2", "3", "4"]


def test_no_log_no_line(serving_settings, tiny_onnx):
    """The negative control: a server that was not asked for a log says nothing of requests."""
    with serving_settings(tiny_onnx) as server:
        assert server.infer("tiny", {"y": ("FP32", ROW)})[0] == 400
        assert "InvalidRequest" not in server.log


# Files that make room


def test_a_file_that_is_large_makes_room_and_so_many_older_ones_are_kept(tmp_path):
    path = tmp_path / "requests.log"
    writer = LineWriter(str(path), max_bytes=100, keep=2)
    for number in range(5):
        writer.write({"number": number, "padding": "x" * 100})
        writer.flush()
    assert [line["number"] for line in lines_of(path)] == [4]
    assert [line["number"] for line in lines_of(tmp_path / "requests.log.1")] == [3]
    assert [line["number"] for line in lines_of(tmp_path / "requests.log.2")] == [2]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_file_without_a_limit_grows(tmp_path):
    """The negative control."""
    path = tmp_path / "requests.log"
    writer = LineWriter(str(path))
    for number in range(5):
        writer.write({"number": number, "padding": "x" * 100})
        writer.flush()
    assert len(lines_of(path)) == 5
    assert list(tmp_path.iterdir()) == [path]


_WRITER = """
import sys
from mlserve.serve.watching.request_log import LineWriter
writer = LineWriter(sys.argv[1], max_bytes=20_000, keep=100)
for number in range(1000):
    writer.write({"worker": int(sys.argv[2]), "number": number, "padding": "x" * 100})
    if number % 10 == 0:
        writer.flush()
"""


def test_several_processes_make_room_without_losing_a_line(tmp_path):
    path = tmp_path / "requests.log"
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, str(path), str(number)]) for number in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    files = [path, *(tmp_path / f"requests.log.{number}" for number in range(1, 100))]
    found = [(line["worker"], line["number"]) for file in files for line in lines_of(file)]
    assert sorted(found) == [(worker, number) for worker in range(3) for number in range(1000)]
    assert sum(file.exists() for file in files) > 10
    assert all(file.stat().st_size < 60_000 for file in files if file.exists())
