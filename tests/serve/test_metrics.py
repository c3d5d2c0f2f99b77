"""What a server counts equals what its clients did."""

import http.client
import itertools
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import Histogram

import mlserve
from mlserve.serve.batching.batcher import Batch, Ticket
from mlserve.serve.metrics import ModelMeter, read_metrics
from mlserve.serve.settings import BatchSettings
from mlserve.wire import messages

ROW = [[0.5] * 30]
BOUNDS = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@pytest.fixture(scope="module")
def server(serving_settings, tiny_onnx, tokens_onnx, slow_onnx):
    """Each of its models is asked by one test."""
    with serving_settings(tiny_onnx, tokens_onnx, slow_onnx, batch=BatchSettings(max_delay_s=0.001)) as made:
        yield made


def infer(channel, model, shape, **tensor):
    request = messages.ModelInferRequest(model_name=model)
    request.inputs.add(shape=shape, **tensor)
    request.raw_input_contents.append(np.zeros(shape, np.float32).tobytes())
    return channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(request.SerializeToString(), timeout=20)


def test_the_counters_equal_the_requests_by_model_protocol_and_outcome(server, until):
    for rows in (1, 2, 3, 4):
        assert server.infer("tiny", {"x": ("FP32", ROW * rows)})[0] == 200
    assert server.infer("tiny", {"x": ("FP32", ROW)}, path="/v2/models/tiny/infer?lane=slow")[0] == 200
    for path in ("/v2/models/tiny/infer", "/v2/models/tiny/infer?lane=slow"):
        assert server.request("POST", path, b"{}")[0] == 400
    assert server.infer("tokens", {"ids": ("INT64", [[99] * 4])})[0] == 400
    assert server.infer("nobody", {"x": ("FP32", ROW)})[0] == 404
    with grpc.insecure_channel(server.grpc) as channel:
        for _ in range(3):
            infer(channel, "tiny", [2, 30], name="x", datatype="FP32")
        with pytest.raises(grpc.RpcError):
            infer(channel, "tiny", [2, 30], name="y", datatype="FP32")
    # A reply leaves a moment before it is counted, and the time it took is counted last.
    until(lambda: server.counted("mlserve_compute_seconds_count", model="tiny") == 8)
    metrics = {name: value for name, value in server.metrics().items() if "tiny" in name or "tokens" in name}
    tiny = 'model="tiny",outcome="{}",protocol="v2-{}",version="1"'

    def requests(outcome, protocol):
        return metrics.get(f"mlserve_requests_total{{{tiny.format(outcome, protocol)}}}", 0)

    assert requests("ok", "rest") == 5
    assert requests("ok", "grpc") == 3
    assert requests("InvalidRequest", "rest") == 2
    assert requests("InvalidRequest", "grpc") == 1
    assert server.counted("mlserve_requests_total", model="tokens", outcome="InvalidRequest") == 1
    assert server.counted("mlserve_requests_total", model="tokens", outcome="ok") == 0
    assert server.counted("mlserve_rows_total", model="tiny") == 1 + 2 + 3 + 4 + 1 + 3 * 2
    assert server.counted("mlserve_batches_total", model="tiny") == 8
    for histogram in ("mlserve_batch_rows", "mlserve_queue_seconds", "mlserve_compute_seconds"):
        for protocol, count in (("v2-rest", 5), ("v2-grpc", 3)):
            labels = {"model": "tiny", "protocol": protocol, "outcome": "ok"}
            assert server.counted(f"{histogram}_count", **labels) == count
            assert server.counted(f"{histogram}_bucket", le="+Inf", **labels) == count
    assert server.counted("mlserve_batch_rows_sum", model="tiny") == 17
    assert server.counted("mlserve_request_seconds_count", model="tiny") == 8
    assert server.counted("mlserve_model_loaded") == 3


def test_the_latency_of_a_request_holds_what_it_computed(server):
    """Sums, not clocks of the test: the request's seconds are at least its run's."""
    body = {"inputs": [{"name": "turns", "datatype": "FP32", "shape": [1, 1], "data": [200.0]}]}
    assert server.request("POST", "/v2/models/slow/infer", json.dumps(body))[0] == 200
    computed = server.counted("mlserve_compute_seconds_sum", model="slow")
    queued = server.counted("mlserve_queue_seconds_sum", model="slow")
    assert queued >= 0.001
    assert server.counted("mlserve_request_seconds_sum", model="slow") >= computed + queued
    assert computed > 0


def test_what_is_refused_or_fails_is_counted_by_its_outcome(serving_settings, slow_onnx, tokens_onnx, until):
    batch = BatchSettings(max_rows=1, max_waiting_rows=1)
    with serving_settings(slow_onnx, tokens_onnx, batch=batch) as server:
        body = json.dumps({"inputs": [{"name": "turns", "datatype": "FP32", "shape": [1, 1], "data": [300.0]}]})
        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(lambda _: server.request("POST", "/v2/models/slow/infer", body)[0], range(8)))
        assert server.infer("tokens", {"ids": ("INT64", [[99] * 4])})[0] == 400
        for status, outcome in ((200, "ok"), (503, "Overloaded")):
            labels = {"model": "slow", "outcome": outcome}
            until(lambda: server.counted("mlserve_requests_total", **labels) == statuses.count(status))  # noqa: B023
            timed = server.counted("mlserve_request_seconds_count", **labels)
            # A full queue refuses a request before it is read, when it has taken no time yet.
            assert timed == statuses.count(status) if outcome == "ok" else timed <= statuses.count(status)
        assert 503 in statuses
        assert server.counted("mlserve_batches_total", model="slow") == statuses.count(200)
        assert server.counted("mlserve_compute_seconds_count", model="tokens", outcome="InvalidRequest") == 1
        assert server.counted("mlserve_compute_seconds_count", model="tokens", outcome="ok") == 0
        assert server.counted("mlserve_waiting_rows") == 0


def test_workers_are_counted_together_and_a_dead_one_leaves_no_level(serving_settings, tiny_onnx, until):
    with serving_settings(tiny_onnx, workers=2) as server:
        for _ in range(40):
            assert server.infer("tiny", {"x": ("FP32", ROW)})[0] == 200
        until(lambda: server.counted("mlserve_batches_total") == 40)
        assert server.counted("mlserve_model_loaded") == 2
        assert server.counted("mlserve_worker_resident_bytes") > 2 * 20e6
        doomed = server.workers[0]
        os.kill(doomed, signal.SIGKILL)
        until(lambda: f'mlserve_worker_threads{{worker="{doomed}"}}' not in _survived(server))
        until(lambda: _survived(server).get('mlserve_model_loaded{model="tiny",version="1"}') == 2)
        assert server.counted("mlserve_requests_total", outcome="ok") == 40
        assert server.counted("mlserve_request_seconds_count") == 40


def test_a_model_tells_what_it_holds_and_what_loading_it_took(server, tiny_onnx):
    assert server.counted("mlserve_model_size_bytes", model="tiny") == tiny_onnx.stat().st_size
    assert server.counted("mlserve_model_load_seconds", model="tiny") > 0
    assert server.counted("mlserve_model_resident_bytes", model="tiny") >= 0
    (worker,) = server.workers
    for figure in ("cpu_seconds_total", "resident_bytes", "open_fds", "threads", "start_time_seconds"):
        assert server.counted(f"mlserve_worker_{figure}", worker=worker) > 0
    assert server.counted("mlserve_build_info", version=mlserve.__version__) == 1


def _survived(server):
    """The metrics, or nothing when the worker asked was the one that died, and said so."""
    try:
        return server.metrics()
    except (OSError, http.client.HTTPException, AssertionError):  # it hung up, or answered 503
        return {}


_NUMBERS = itertools.count()


class _Waiting(Ticket):
    """A request that came at `arrived_s`."""

    __slots__ = ()

    def __init__(self, arrived_s, protocol="rest"):
        self.arrived_s, self.protocol, self.rows = arrived_s, protocol, 1

    def answer(self, outputs, batch):
        raise NotImplementedError

    def fail(self, error):
        raise NotImplementedError


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 40.0), st.sampled_from(["rest", "grpc"])), min_size=1, max_size=20),
)
def test_a_batch_counted_at_once_is_its_requests_counted_one_by_one(waits):
    """The law behind counting once a batch, against prometheus-client's own histogram."""
    model, started_s = f"m{next(_NUMBERS)}", time.perf_counter()
    meter = ModelMeter(model, "1")
    tickets = [_Waiting(started_s - wait_s, protocol) for wait_s, protocol in waits]
    meter.ran(Batch(len(tickets), started_s, 0.5), tickets, "ok", 0)
    meter.close()
    protocols = {protocol for _, protocol in waits}
    label = protocols.pop() if len(protocols) == 1 else "mixed"
    expected = Histogram("expected", "", registry=None, buckets=[float(bound) for bound in BOUNDS])
    for ticket in tickets:
        expected.observe(started_s - ticket.arrived_s)
    (found,) = [metric for metric in read_metrics() if metric.name == "mlserve_queue_seconds"]
    ours = {
        (sample.name.rpartition("_")[2], sample.labels.get("le")): sample.value
        for sample in found.samples
        if sample.labels["model"] == model
    }
    assert {sample.labels["protocol"] for sample in found.samples if sample.labels["model"] == model} == {label}
    (theirs,) = expected.collect()
    for sample in theirs.samples:
        kind = sample.name.rpartition("_")[2]
        if kind != "created":
            assert ours[kind, sample.labels.get("le")] == pytest.approx(sample.value, abs=1e-6)
