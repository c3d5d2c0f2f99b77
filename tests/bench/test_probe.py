import socket

import pytest

from mlserve.bench.clients.client import Request
from mlserve.bench.dialects.find import find_dialect
from mlserve.bench.probe import ask_once, describe_model, find_model, inputs_of
from mlserve.bench.target import parse_target
from mlserve.errors import BenchError, MlserveError
from mlserve.model.tensors import TensorSpec


def slow(server, model="slow"):
    return parse_target(server.url, model)


def test_a_server_describes_its_model(slow_server):
    found = describe_model(slow(slow_server()))
    assert found.inputs == (TensorSpec("x", "float32", ("batch", 4)),)
    assert (found.name, found.versions) == ("slow", ("7",))


def test_an_answer_tells_the_version(slow_server):
    assert find_dialect("rest").version(ask_once(slow(slow_server()), Request(b"{}"))) == "7"


def test_the_only_model_is_found(slow_server):
    assert find_model(parse_target(slow_server().url)).model == "slow"


def test_a_model_that_was_named_is_not_searched():
    target = parse_target("http://127.0.0.1:9", "m")
    assert find_model(target) is target


@pytest.mark.parametrize(("models", "said"), [(["a", "b"], "it serves a, b"), ([], "it serves none")])
def test_the_choice_is_told_where_there_is_one(slow_server, models, said):
    server = slow_server()
    server.models = models
    with pytest.raises(BenchError, match=f"{said}; choose one with --model NAME"):
        find_model(parse_target(server.url))


def test_grpc_without_a_model_says_what_to_add():
    with pytest.raises(BenchError, match="--model NAME"):
        find_model(parse_target("grpc://127.0.0.1:9"))


def test_an_unknown_model_is_told_with_those_there_are(slow_server):
    with pytest.raises(BenchError, match=r"HTTP 404: nothing at /v2/models/other; it serves slow"):
        describe_model(slow(slow_server(), "other"))


def test_the_servers_own_words_are_passed_on(slow_server):
    with pytest.raises(BenchError, match="HTTP 503: as asked"):
        ask_once(slow(slow_server(status=503)), Request(b"{}"))


def test_a_body_cut_short_is_one_clear_line(slow_server):
    with pytest.raises(BenchError, match="does not speak HTTP"):
        ask_once(slow(slow_server(cut=True)), Request(b"{}"))


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_port_where_nobody_listens_is_told(scheme):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(BenchError, match=f"{scheme}://127.0.0.1:{port} cannot be reached: .*mlserve serve"):
        describe_model(parse_target(f"{scheme}://127.0.0.1:{port}", "m"))


def test_grpc_to_an_http_port_is_one_clear_line(slow_server):
    with pytest.raises(BenchError, match="cannot be reached"):
        describe_model(parse_target(slow_server().url.replace("http", "grpc"), "m"))


@pytest.mark.parametrize("protocol", ["torchserve", "mlflow", "sagemaker", "tfserving", "json"])
def test_nobody_there_is_told_for_a_protocol_that_describes_nothing(protocol):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    form = {"template": "{{rows}}"} if protocol == "json" else {}
    with pytest.raises(BenchError, match="cannot be reached"):
        describe_model(parse_target(f"http://127.0.0.1:{port}", "m", protocol, **form))


def test_a_file_or_a_model_of_the_store_says_what_a_server_does_not(tiny_onnx, tmp_path):
    x, scores = TensorSpec("x", "float32", ("batch", 30)), TensorSpec("scores", "float32", ("batch", 2))
    assert inputs_of(str(tiny_onnx), tmp_path) == ((x,), (scores,))
    with pytest.raises(MlserveError, match="no-such"):
        inputs_of("no-such-model", tmp_path)
    with pytest.raises(MlserveError, match="no-such"):
        inputs_of("no-such.onnx", tmp_path)
