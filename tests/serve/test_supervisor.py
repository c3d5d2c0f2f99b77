"""Servers as processes: workers that die and come back, signals that drain, and nothing that is left behind."""

import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import grpc
import numpy as np
import psutil
import pytest

from mlserve.serve.settings import BatchSettings, Limits
from mlserve.wire import messages

# Half a second or so of computing: long enough to be in flight when the signal comes.
LONG = 1500.0
ENDLESS = 1e6


def living(pids):
    """Those of `pids` that still run; a zombie that its new parent has not collected yet does not."""
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def slow_request(turns):
    body = json.dumps({"inputs": [{"name": "turns", "datatype": "FP32", "shape": [1, 1], "data": [turns]}]}).encode()
    head = f"POST /v2/models/slow/infer HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def slow_message(turns):
    request = messages.ModelInferRequest(model_name="slow")
    request.inputs.add(name="turns", datatype="FP32", shape=[1, 1])
    request.raw_input_contents.append(np.float32(turns).tobytes())
    return request.SerializeToString()


def everything(connection):
    """What comes until the server closes the connection."""
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


@pytest.fixture
def slow_server(serving_settings, slow_onnx):
    """One worker with a slow model; with a delay its runs are on the engine's thread from the first."""

    def start(**settings):
        return serving_settings(slow_onnx, batch=BatchSettings(1, 0.001), **settings)

    return start


@pytest.fixture
def in_flight():
    """`in_flight(server, turns)` -> `(connection, call)`: a REST and a gRPC request that the server has received."""
    opened = []

    def send(server, turns):
        connection = server.connect()
        channel = grpc.insecure_channel(server.grpc)
        opened.extend([connection, channel])
        connection.sendall(slow_request(turns))
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(slow_message(turns), timeout=50)
        # The same loop, and the same HTTP/2 connection, have answered what came after.
        server.get_json("/health")
        channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=20)
        return connection, call

    yield send
    for each in opened:
        each.close()


# Workers


@pytest.fixture(scope="module")
def pair(serving, tiny_onnx):
    """Two workers, on one host."""
    with serving(tiny_onnx, "--workers", 2, "--host", "localhost") as server:
        yield server


def workers_of(server):
    """Those that it has now."""
    return [child.pid for child in psutil.Process(server.process.pid).children()]


def test_both_workers_answer_on_both_ports(pair, until):
    """Each has counted some of the requests, every one on a connection of its own."""
    before = pair.counted("mlserve_requests_total", outcome="ok")
    for _ in range(60):
        assert pair.infer("tiny", {"x": ("FP32", [[0.0] * 30])})[0] == 200
        with grpc.insecure_channel(pair.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=20)
    for worker in workers_of(pair):
        served = [
            connection for connection in psutil.Process(worker).net_connections() if connection.status == "LISTEN"
        ]
        assert {connection.laddr.port for connection in served} == {pair.http_port, pair.grpc_port}
    until(lambda: pair.counted("mlserve_requests_total", outcome="ok") == before + 60)


def test_a_server_listens_on_the_host_it_was_given_and_on_no_other(pair):
    assert pair.http.startswith("127.0.0.1:")
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", pair.http_port), timeout=5)


def test_a_worker_that_is_killed_is_replaced_and_the_others_serve_meanwhile(pair, until):
    killed, other = workers_of(pair)
    assert {killed, other} == set(pair.workers)
    assert pair.counted("mlserve_model_loaded") == 2
    before = pair.counted("mlserve_requests_total", outcome="ok")

    def ask():
        for _ in range(20):
            assert pair.infer("tiny", {"x": ("FP32", [[0.0] * 30])})[0] == 200

    ask()
    # A reply leaves a moment before it is counted; what dies uncounted stays so.
    until(lambda: pair.counted("mlserve_requests_total", outcome="ok") == before + 20)
    psutil.Process(killed).kill()
    until(lambda: not psutil.pid_exists(killed))  # its last thread has closed the ports
    ask()
    until(lambda: f"worker {killed} ended with status -9; another takes its place" in pair.log)
    until(lambda: pair.counted("mlserve_model_loaded") == 2)
    ask()
    now = workers_of(pair)
    assert len(now) == 2
    assert killed not in now
    assert other in now
    # Those of the killed one too.
    until(lambda: pair.counted("mlserve_requests_total", outcome="ok") == before + 60)


@pytest.fixture
def nobody_speaks(tmp_path, monkeypatch):
    """Takes from the servers that start now who speaks for a worker that was killed."""
    plant = "import mlserve.serve.life.last_words as last_words\nlast_words.appoint = lambda: None\n"
    (tmp_path / "sitecustomize.py").write_text(plant)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process share the files of another")
def test_who_waits_for_a_worker_that_is_killed_is_told(slow_server, in_flight):
    with slow_server() as server:
        connection, call = in_flight(server, ENDLESS)
        with server.connect() as idle:
            psutil.Process(server.workers[0]).kill()
            answer = everything(connection)
            assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"retry-after: 1\r\n" in answer
            assert b"ended before it was answered; send it again" in answer
            # Who has asked for nothing yet is told when it does.
            idle.sendall(slow_request(1.0))
            assert everything(idle) == answer
        assert call.exception().code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process share the files of another")
def test_who_asked_right_after_an_answer_is_told_however_long_ago_that_was(slow_server):
    """The system's clock ticks too seldom to tell which came last."""
    with slow_server() as server, server.connect() as connection:
        connection.sendall(slow_request(1.0))
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 OK\r\n")
        connection.sendall(slow_request(ENDLESS))
        time.sleep(0.3)
        psutil.Process(server.workers[0]).kill()
        assert everything(connection).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")


def test_who_waits_for_a_worker_that_is_killed_is_cut_off_where_nobody_speaks_for_it(
    nobody_speaks, slow_server, in_flight
):
    """The negative control."""
    with slow_server() as server:
        connection, _ = in_flight(server, ENDLESS)
        psutil.Process(server.workers[0]).kill()
        with suppress(ConnectionError):
            assert everything(connection) == b""


# Signals


@pytest.mark.parametrize("transport", ["native", "grpcio"])
def test_sigterm_answers_what_is_in_flight_refuses_what_is_new_and_ends(slow_server, in_flight, until, transport):
    with slow_server(grpc_transport=transport) as server:
        connection, call = in_flight(server, LONG)
        with server.connect() as idle, server.connect() as half:
            half.sendall(slow_request(1.0)[:-1])
            server.get_json("/health")
            server.process.send_signal(signal.SIGTERM)
            assert everything(idle) == b""

            def refused():
                try:
                    server.connect().close()
                except OSError:
                    return True
                return False

            until(refused)
            half.sendall(slow_request(1.0)[-1:])
            late = everything(half)
            assert late.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"the server is shutting down" in late
        answer = everything(connection)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b'"data":[1500.0]}]}')
        assert messages.ModelInferResponse.FromString(call.result()).outputs[0].name == "same"
        assert server.process.wait(30) == 0
        assert living(server.workers) == []


def test_what_outlasts_the_drain_limit_is_told_and_given_up(slow_server, in_flight):
    with slow_server(limits=Limits(drain_s=0.5)) as server:
        connection, call = in_flight(server, ENDLESS)
        server.process.send_signal(signal.SIGTERM)
        answer = everything(connection)
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"the server stopped before this request was answered" in answer
        assert call.exception().code() is grpc.StatusCode.UNAVAILABLE
        assert server.process.wait(30) == 0
        assert living(server.workers) == []
        assert "gave up what still ran after the drain limit of 0.5 s" in server.log


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_ctrl_c_drains_and_a_second_signal_ends_at_once_without_orphans(slow_server, in_flight, until, signals):
    with slow_server() as server:
        connection, _ = in_flight(server, LONG if len(signals) == 1 else ENDLESS)
        with server.connect() as idle:
            for number in signals:
                server.process.send_signal(number)
                assert everything(idle) == b""  # the first has arrived before the second is sent
        assert server.process.wait(30) == 0
        until(lambda: not living(server.workers))
        if len(signals) == 1:
            assert everything(connection).startswith(b"HTTP/1.1 200 OK\r\n")
        else:
            assert everything(connection).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")


def test_workers_end_with_a_supervisor_that_is_killed_and_the_next_removes_what_it_left_and_nothing_of_one_that_lives(
    serving_settings, tiny_onnx, until, tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def left():
        return set(tmp_path.glob("mlserve-run-*"))

    with serving_settings(tiny_onnx):
        (alive,) = left()
        with serving_settings(tiny_onnx, workers=2) as killed:
            (abandoned,) = left() - {alive}
            assert living(killed.workers) == killed.workers
            killed.process.kill()
            killed.process.wait(30)
            until(lambda: not living(killed.workers))
            assert left() == {alive, abandoned}
            with serving_settings(tiny_onnx):
                assert alive in left()
                assert abandoned not in left()
        assert left() == {alive}
    assert not left()


def test_a_signal_while_the_models_load_ends_the_server_without_orphans(tiny_onnx, until):
    command = [
        sys.executable,
        "-m",
        "mlserve",
        "serve",
        tiny_onnx,
        "--http-port",
        "0",
        "--grpc-port",
        "0",
        "--workers",
        "2",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    workers = until(lambda: psutil.Process(process.pid).children())
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "")
    assert "Traceback" not in errors
    until(lambda: not living([worker.pid for worker in workers]))


def test_the_same_ports_can_be_served_again_at_once(serving_settings, tiny_onnx):
    with serving_settings(tiny_onnx) as server:
        ports = {"http_port": server.http_port, "grpc_port": server.grpc_port}
        status, headers, _ = server.request("GET", "/health", headers={"connection": "close"})
        assert (status, headers["connection"]) == (200, "close")
    with serving_settings(tiny_onnx, **ports) as again:
        assert [again.http_port, again.grpc_port] == [server.http_port, server.grpc_port]
        assert again.infer("tiny", {"x": ("FP32", [[0.0] * 30])})[0] == 200


def test_a_worker_started_by_hand_says_what_starts_it():
    worker = subprocess.run(
        [sys.executable, "-m", "mlserve.serve.worker"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert worker.returncode == 1
    assert worker.stderr == "this is started by `mlserve serve`; it reads its settings from stdin\n"
