"""Statistics are true over all workers: they are what the clients counted."""

import json

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

REQUESTS, ROWS = 40, 3


@pytest.fixture(scope="module", params=["native", "grpcio"])
def server(request, serving_settings, tiny_onnx, tokens_onnx):
    """Two workers that have answered requests of three rows each on many connections, and refused some."""
    with serving_settings(tiny_onnx, tokens_onnx, workers=2, grpc_transport=request.param) as made:
        for number in range(REQUESTS):
            status, _ = made.infer("tiny", {"x": ("FP32", np.full((ROWS, 30), number).tolist())})
            assert status == 200
        for _ in range(5):
            assert made.infer("tiny", {"x": ("FP64", [[1.0] * 30])})[0] == 400
        yield made


@pytest.fixture(scope="module")
def http(server):
    with triton_http.InferenceServerClient(server.http) as client:
        yield client


@pytest.fixture(scope="module")
def grpc(server):
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        yield client


def test_what_was_answered_is_counted_by_rows_by_runs_and_by_requests(http, until):
    def all_counted():
        (told,) = http.get_inference_statistics("tiny")["model_stats"]
        return told if told["inference_stats"]["success"]["count"] == REQUESTS else None

    told = until(all_counted)
    assert (told["name"], told["version"]) == ("tiny", "1")
    assert told["inference_count"] == REQUESTS * ROWS
    assert told["execution_count"] == REQUESTS  # one after the other, so none ran together
    spent = told["inference_stats"]
    assert spent["fail"]["count"] == 5
    assert spent["queue"]["count"] == spent["compute_infer"]["count"] == REQUESTS
    assert 0 < spent["compute_infer"]["ns"] < spent["success"]["ns"]
    assert spent["cache_hit"] == {"count": 0, "ns": 0}


def test_both_wires_tell_the_same_and_triton_s_message_holds_all_of_it(http, grpc):
    told = http.get_inference_statistics("tiny", "1")["model_stats"][0]
    same = grpc.get_inference_statistics("tiny", "1").model_stats[0]
    assert (same.name, same.version) == ("tiny", "1")
    assert (same.inference_count, same.execution_count) == (told["inference_count"], told["execution_count"])
    for name, spent in told["inference_stats"].items():
        assert getattr(same.inference_stats, name).count == spent["count"]
        assert getattr(same.inference_stats, name).ns == spent["ns"]


def test_without_a_name_every_model_is_told_and_one_that_nobody_asked_has_zeros(http, grpc):
    told = {entry["name"]: entry for entry in http.get_inference_statistics()["model_stats"]}
    assert told.keys() == {"tiny", "tokens"}
    assert told["tokens"]["inference_count"] == told["tokens"]["inference_stats"]["success"]["count"] == 0
    assert {entry.name for entry in grpc.get_inference_statistics().model_stats} == {"tiny", "tokens"}


def test_a_model_that_is_not_there_has_none(server, http, grpc):
    for client in (http, grpc):
        with pytest.raises(InferenceServerException, match="Request for unknown model: 'nobody' is not found"):
            client.get_inference_statistics("nobody")
        with pytest.raises(InferenceServerException, match="version 9 is not found"):
            client.get_inference_statistics("tiny", "9")
    status, _, body = server.request("GET", "/v2/models/..%2F/stats")
    assert status == 404
    assert json.loads(body)["error"]
