"""Servers whose workers hang, whose models kill, whose memory runs short, and that are told to stop: real processes."""

import http.client
import os
import resource
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2

from mlserve.serve.life.shedding import Shedding
from mlserve.serve.life.slate import Slate
from mlserve.serve.settings import LifeSettings, Limits
from mlserve.wire import messages

ROW = {"x": ("FP32", [[0.0] * 30])}
DEADLY, HARMLESS = {"x": ("FP32", [[5000.0]])}, {"x": ("FP32", [[1.0]])}


@pytest.fixture(scope="session")
def deadly_onnx(tmp_path_factory):
    """`x` float32 [batch, 1] -> `y`; an `x` above 1000 divides the smallest int32 by -1, and the processor objects."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    constants = {"limit": np.float32(1000), "one": np.int32(1), "least": np.int32(-(2**31)), "minus": np.int32(-1)}
    nodes = [
        helper.make_node("Greater", ["x", "limit"], ["deadly"]),
        helper.make_node("Where", ["deadly", "least", "one"], ["dividend"]),
        helper.make_node("Where", ["deadly", "minus", "one"], ["divisor"]),
        helper.make_node("Div", ["dividend", "divisor"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["y"], to=TensorProto.FLOAT),
    ]
    values = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1])] for name in "xy"]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    path = tmp_path_factory.mktemp("models") / "deadly.onnx"
    graph = helper.make_graph(nodes, "deadly", *values, held)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def asked(server, model, inputs):
    """The status of an answer, or how the connection ended."""
    try:
        return server.infer(model, inputs)[0]
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """`planted(code)`: what the processes that start now run first."""

    def plant(code):
        (tmp_path / "sitecustomize.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return plant


def workers(server):
    return {child.pid for child in psutil.Process(server.process.pid).children()}


def test_a_worker_that_stands_still_is_replaced_but_not_where_everybody_was_stopped(serving_settings, tiny_onnx, until):
    with serving_settings(tiny_onnx, workers=2, life=LifeSettings(hang_after_s=1.0)) as server:
        everybody = [psutil.Process(pid) for pid in (server.process.pid, *server.workers)]
        for process in everybody:
            process.suspend()
        time.sleep(1.8)  # as when a laptop sleeps
        for process in reversed(everybody[1:]):
            process.resume()
        everybody[0].resume()
        time.sleep(0.5)
        assert workers(server) == set(server.workers)
        stopped = psutil.Process(server.workers[0])
        stopped.suspend()
        until(lambda: not psutil.pid_exists(stopped.pid), 10.0)
        assert f"worker {stopped.pid} does not answer and is killed" in server.log
        until(lambda: server.counted("mlserve_model_loaded") == 2)
        assert server.workers[1] in workers(server)
        assert asked(server, "tiny", ROW) == 200


def test_a_worker_that_stands_still_stays_where_nobody_asked_for_more(serving_settings, tiny_onnx):
    """The negative control."""
    with serving_settings(tiny_onnx, life=LifeSettings(hang_after_s=0.0)) as server:
        (worker,) = [psutil.Process(pid) for pid in server.workers]
        worker.suspend()
        time.sleep(1.5)
        assert worker.is_running()
        worker.resume()
        assert asked(server, "tiny", ROW) == 200


def test_a_model_that_kills_is_held_back_and_the_others_go_on(serving_settings, tiny_onnx, deadly_onnx, until):
    with serving_settings(tiny_onnx, deadly_onnx, life=LifeSettings(deaths_to_hold=2)) as server:
        assert asked(server, "deadly", HARMLESS) == 200
        until(lambda: asked(server, "deadly", DEADLY) and "is held back for" in server.log)
        until(lambda: asked(server, "tiny", ROW) == 200)
        status, answer = server.infer("deadly", HARMLESS)
        assert status == 503
        assert "held back: server processes died of it (signal SIGFPE)" in answer["error"]
        index = server.request("POST", "/v2/repository/index", "{}")[2]
        assert b'"state":"UNAVAILABLE","reason":"model \'deadly\' version 1 is held back' in index
        assert server.request("GET", "/v2/models/deadly/ready")[0] == 503
        with grpc.insecure_channel(server.grpc) as channel:
            request = messages.ModelInferRequest(model_name="deadly").SerializeToString()
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            with pytest.raises(grpc.RpcError) as refused:
                call(request, timeout=20)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert server.log.count("it was running deadly@1") == 2


def test_short_memory_sheds_inference_and_nothing_else_until_there_is_more(serving_settings, tiny_onnx, until):
    with serving_settings(tiny_onnx) as server:
        worker = server.workers[0]
        use = psutil.Process(worker).memory_info().vms
        resource.prlimit(worker, resource.RLIMIT_AS, (round(1.01 * use), resource.RLIM_INFINITY))
        until(lambda: asked(server, "tiny", ROW) == 503)
        status, headers, body = server.request("POST", "/v2/models/tiny/infer", "{}")
        assert (status, b"no memory left" in body, "retry-after" in headers) == (503, True, True)
        assert server.request("GET", "/v2/health/live")[0] == server.request("GET", "/v2/health/ready")[0] == 200
        resource.prlimit(worker, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        until(lambda: asked(server, "tiny", ROW) == 200, 5.0)
        assert server.log.count("memory is short") == server.log.count("memory suffices again") == 1
        assert workers(server) == {worker}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_lame_duck_takes_what_comes_and_says_that_it_is_not_ready(serving_settings, tiny_onnx, until, number):
    life, limits = LifeSettings(lame_duck_s=1.0), Limits(drain_s=10.0)
    with serving_settings(tiny_onnx, life=life, limits=limits) as server:
        with grpc.insecure_channel(server.grpc) as channel, server.connect() as kept:
            health = channel.unary_unary(
                "/grpc.health.v1.Health/Check", response_deserializer=health_pb2.HealthCheckResponse.FromString
            )
            assert health(b"", timeout=20).status == health_pb2.HealthCheckResponse.SERVING
            server.process.send_signal(number)
            if number == signal.SIGINT:  # nobody stands in front of who types Ctrl-C
                kept.settimeout(20)
                assert kept.recv(1) == b""
                return
            started_s = time.monotonic()
            until(lambda: server.request("GET", "/v2/health/ready")[0] == 503, 0.9)
            assert server.request("GET", "/v2/health/live")[0] == 200
            assert health(b"", timeout=20).status == health_pb2.HealthCheckResponse.NOT_SERVING
            status, headers, _ = server.request("GET", "/v2/health/live")
            assert (status, headers["connection"]) == (200, "close")
            assert asked(server, "tiny", ROW) == 200
        assert server.process.wait(30) == 0
        assert time.monotonic() - started_s > 0.9


_SLOW_START = """
import os, time
import mlserve.serve.versions.following as following

right = following.load_model

def late(*given, **named):
    if given[1].resumes:
        time.sleep(3.0)
    return right(*given, **named)

following.load_model = late
"""


def test_a_successor_that_loads_slowly_keeps_nobody_from_being_watched(planted, serving_settings, tiny_onnx, until):
    planted(_SLOW_START)
    with serving_settings(tiny_onnx, workers=2) as server:
        first, second = map(psutil.Process, server.workers)
        first.kill()
        until(lambda: not psutil.pid_exists(first.pid))
        killed_s = time.monotonic()
        second.kill()
        until(lambda: f"worker {second.pid} ended with status -9" in server.log)
        assert time.monotonic() - killed_s < 2.0
        until(lambda: asked(server, "tiny", ROW) == 200)


_STUCK_LOAD = """
import time
from pathlib import Path

import mlserve.engines.opening as opening

at_once = opening.OnnxEngine

def engine(*arguments):
    while Path({stuck!r}).exists():
        time.sleep(0.05)
    return at_once(*arguments)

opening.OnnxEngine = engine
"""


def test_a_worker_that_is_killed_leaves_nothing_in_the_servers_folder(
    planted, serving_settings, tiny_onnx, until, tmp_path, monkeypatch
):
    stuck, temporary = tmp_path / "stuck", tmp_path / "temporary"
    temporary.mkdir()
    planted(_STUCK_LOAD.format(stuck=str(stuck)))
    monkeypatch.setenv("TMPDIR", str(temporary))

    def copies():
        return [path.name for path in temporary.glob("mlserve-run-*/mlserve-loading-*")]

    def sockets(worker):
        """Its folder is in the server's, where the path of that is not too long for a socket."""
        return [*temporary.glob(f"mlserve-run-*/grpc-{worker}-*"), *Path("/tmp").glob(f"grpc-mlserve-run-*-{worker}-*")]

    with serving_settings(tiny_onnx) as server:
        (first,) = map(psutil.Process, server.workers)
        assert sockets(first.pid)
        assert copies() == []
        stuck.touch()
        first.kill()
        (copy,) = until(copies)
        assert not sockets(first.pid)
        (loading,) = [pid for pid in workers(server) if f"-{pid}-" in copy]
        psutil.Process(loading).kill()
        until(lambda: copy not in copies())
        stuck.unlink()
        until(lambda: asked(server, "tiny", ROW) == 200)
        assert copies() == []
        last = workers(server)
        assert any(map(sockets, last))
    assert not any(map(sockets, last))


def test_a_server_with_many_descriptors_starts_and_replaces_workers(planted, serving_settings, tiny_onnx, until):
    """More than `select.select` can take; whoever starts it may have left them open."""
    planted("import os\nheld = [os.open(os.devnull, 0) for _ in range(1100)]\n")
    with serving_settings(tiny_onnx) as server:
        psutil.Process(server.workers[0]).kill()
        until(lambda: asked(server, "tiny", ROW) == 200)


@contextmanager
def without_descriptors():
    """This process can open no file."""
    before, free = resource.getrlimit(resource.RLIMIT_NOFILE), os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Worker:
    """One as `Shedding` sees it."""

    def __init__(self) -> None:
        self.pid, self.slate = os.getpid(), Slate()


def test_without_descriptors_the_last_word_on_memory_stays():
    worker = Worker()
    shedding = Shedding(1e-9)
    shedding.look([worker], 1.0)
    assert worker.slate.short_of_memory
    worker.slate.short_of_memory = False
    with without_descriptors():
        shedding.look([worker], 2.0)
        assert not worker.slate.short_of_memory
    shedding.look([worker], 3.0)
    assert worker.slate.short_of_memory
