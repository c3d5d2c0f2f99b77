"""What a server counts equals what its clients did."""

import json

import grpc
import numpy as np
import pytest

from mlserve.wire import messages

ROW = [[0.5] * 30]


@pytest.fixture
def server(serving, tiny_onnx, tokens_onnx):
    with serving(tiny_onnx, tokens_onnx) as made:
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
        assert server.counted(f"{histogram}_count", model="tiny") == 8
        assert server.counted(f"{histogram}_bucket", model="tiny", le="+Inf") == 8
    assert server.counted("mlserve_batch_rows_sum", model="tiny") == 17
    assert server.counted("mlserve_request_seconds_count", model="tiny") == 8
    assert server.counted("mlserve_model_loaded") == 2


def test_the_latency_of_a_request_holds_what_it_computed(serving, slow_onnx):
    """Sums, not clocks of the test: the request's seconds are at least its run's."""
    with serving(slow_onnx, "--max-delay-ms", 1) as server:
        body = {"inputs": [{"name": "turns", "datatype": "FP32", "shape": [1, 1], "data": [200.0]}]}
        assert server.request("POST", "/v2/models/slow/infer", json.dumps(body))[0] == 200
        computed = server.counted("mlserve_compute_seconds_sum")
        queued = server.counted("mlserve_queue_seconds_sum")
        assert queued >= 0.001
        assert server.counted("mlserve_request_seconds_sum") >= computed + queued
        assert computed > 0
