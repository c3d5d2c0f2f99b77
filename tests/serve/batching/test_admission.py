"""Who is let in, who has to leave, and who is told when: over real connections, with a model that takes its time."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from mlserve.errors import UsageError
from mlserve.serve.settings import BatchSettings, Limits, ServeSettings
from mlserve.wire import messages

INFER = "/inference.GRPCInferenceService/ModelInfer"
SHORT = 1.0  # turn, which takes a millisecond or a few
LONG_S = 0.5


@pytest.fixture(scope="module", params=["native", "grpcio"])
def server(serving_settings, slow_onnx, request):
    """One request runs, two may wait."""
    batch = BatchSettings(max_rows=1, max_waiting_rows=2, overload_status=429)
    with serving_settings(slow_onnx, batch=batch, grpc_transport=request.param) as made:
        yield made


@pytest.fixture(scope="module")
def threads():
    with ThreadPoolExecutor(8) as made:
        yield made


def body(turns=SHORT, **parameters):
    tensor = {"name": "turns", "datatype": "FP32", "shape": [1, 1], "data": [turns]}
    return json.dumps({"inputs": [tensor], "parameters": parameters})


def ask(server, content, headers=None, path="/v2/models/slow/infer"):
    return server.request("POST", path, content, headers)


def call(server, turns=SHORT, timeout_s=60.0):
    """The status of a gRPC call, and its trailers."""
    request = messages.ModelInferRequest(model_name="slow")
    request.inputs.add(name="turns", datatype="FP32", shape=[1, 1])
    request.raw_input_contents.append(np.array([turns], np.float32).tobytes())
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        try:
            channel.unary_unary(INFER)(request.SerializeToString(), timeout=timeout_s)
        except grpc.RpcError as error:
            return error.code().name, dict(error.trailing_metadata() or ())
    return "OK", {}


def ran(server):
    return server.counted("mlserve_rows_total", model="slow")


def long_turns(server):
    """How many turns keep the server busy for a while."""
    started_s = time.perf_counter()
    assert ask(server, body(100.0))[0] == 200
    return 100 * LONG_S / (time.perf_counter() - started_s)


@pytest.fixture(scope="module")
def turns(server):
    return long_turns(server)


@pytest.fixture
def beside(server, threads, until, turns):
    """`beside(play)` plays what must come about while one long run goes on; again with a longer one if it was over."""

    def play_beside(play):
        for times in (1, 4, 16):
            running = threads.submit(ask, server, body(times * turns))
            until(lambda: ask(server, body(timeout=20_000))[0] == 504)  # it had to wait
            try:
                play()
            except Exception:
                if not running.done():
                    raise
            else:
                if not running.done():
                    assert running.result()[0] == 200
                    return
            until(lambda: ask(server, body())[0] == 200)
        raise AssertionError("no run was long enough")

    return play_beside


def test_a_full_queue_refuses_before_it_reads_and_tells_when_to_come_again(server, threads, beside, until):
    told = []

    def play():
        told[:] = [threads.submit(ask, server, body()) for _ in range(2)]
        until(lambda: ask(server, "no JSON at all")[0] == 429, 5)
        status, headers, content = ask(server, "no JSON at all")
        assert (status, int(headers["retry-after"]) >= 1) == (429, True)
        assert "Exceeds maximum queue size: 2 rows wait, the limit is 2" in json.loads(content)["error"]
        assert ask(server, "no JSON, but it may have a priority")[0] == 400
        code, trailers = call(server)
        assert (code, int(trailers["retry-after"]) >= 1) == ("RESOURCE_EXHAUSTED", True)
        page = json.dumps({"model": "slow", "inputs": {"turns": [[1]]}})
        status, headers, _ = ask(server, page, path="/v1/predict")
        assert (status, int(headers["retry-after"]) >= 1) == (429, True)
        waiting = told.copy()
        told.append(threads.submit(ask, server, body(priority=1)))
        until(lambda: any(each.done() for each in waiting), 5)
        (displaced,) = [each.result() for each in waiting if each.done()]
        assert (displaced[0], int(displaced[1]["retry-after"]) >= 1) == (429, True)
        assert "a more urgent request took this one's place" in json.loads(displaced[2])["error"]

    beside(play)
    assert sorted(each.result()[0] for each in told) == [200, 200, 429]
    assert told[2].result()[0] == 200


def test_a_deadline_counts_in_the_queue_wherever_it_comes_from(server, beside):
    ran_before = []

    def play():
        ran_before[:] = [ran(server)]
        in_header = {"x-envoy-expected-rq-timeout-ms": "20"}
        page = json.dumps({"model": "slow", "inputs": {"turns": [[1]]}})
        assert ask(server, body(timeout=20_000))[0] == 504
        assert ask(server, body(), in_header)[0] == 504
        assert ask(server, body(timeout=60_000_000), in_header)[0] == 504
        assert ask(server, page, in_header, "/v1/predict")[0] == 504
        assert call(server, timeout_s=0.02)[0] == "DEADLINE_EXCEEDED"

    beside(play)
    assert ask(server, body(), {"x-envoy-expected-rq-timeout-ms": "soon"})[0] == 200
    assert ran(server) - ran_before[0] == 2  # the long one, and the one without a deadline


def test_what_a_client_asked_that_has_gone_is_not_run_and_its_place_is_free(server, beside, until):
    ran_before = []
    page = b'{"model": "slow", "inputs": {"turns": [[1]]}}'
    head = f"POST /v1/predict HTTP/1.1\r\nhost: 127.0.0.1:{server.http_port}\r\ncontent-length: {len(page)}\r\n\r\n"

    def play():
        ran_before[:] = [ran(server)]
        sent = [socket.create_connection(("127.0.0.1", server.http_port)) for _ in range(2)]
        for connection in sent:
            connection.sendall(head.encode() + page)
        until(lambda: ask(server, "no JSON at all")[0] == 429, 5)
        for connection in sent:
            connection.close()
        until(lambda: ask(server, "no JSON at all")[0] == 400, 5)

    beside(play)
    assert ask(server, body())[0] == 200
    assert ran(server) - ran_before[0] == 2


def test_no_more_work_waits_than_a_drain_can_answer():
    assert ServeSettings().batch_wait_s == 30.0
    assert ServeSettings(batch=BatchSettings(max_wait_s=5.0)).batch_wait_s == 5.0
    assert ServeSettings(limits=Limits(drain_s=3.0)).batch_wait_s == 3.0
    assert ServeSettings(limits=Limits(drain_s=0.0)).batch_wait_s == 30.0


def test_the_flags_reach_the_settings_and_a_file_says_them_too(tmp_path, serving, slow_onnx):
    path = tmp_path / "production.toml"
    said = f'models = ["{slow_onnx}"]\nmax_queue_rows = 1\nmax_wait = "2s"\noverload_status = 429\n'
    path.write_text(f"format_version = 1\n[serve]\n{said}")
    with serving("--config", path, "--max-batch-rows", "1") as server, ThreadPoolExecutor(4) as threads:
        turns = long_turns(server)
        told = [threads.submit(ask, server, body(turns)) for _ in range(4)]
        statuses = sorted(each.result()[0] for each in told)
    assert statuses[0] == 200
    assert set(statuses[1:]) in ({429}, {200, 429})


def test_a_status_that_means_something_else_is_refused(tmp_path):
    from mlserve.runs.production import read_production

    path = tmp_path / "production.toml"
    path.write_text('format_version = 1\n[serve]\nmodels = ["m"]\noverload_status = 500\n')
    with pytest.raises(UsageError, match="overload_status"):
        read_production(path)


def test_the_queue_is_free_at_once_after_a_burst(server, threads):
    started_s = time.perf_counter()
    assert ask(server, body())[0] == 200
    assert time.perf_counter() - started_s < 5.0
