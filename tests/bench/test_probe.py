import socket

import pytest

from mlserve.bench.probe import find_model, open_prober
from mlserve.bench.target import parse_target
from mlserve.errors import BenchError
from mlserve.model.tensors import TensorSpec


def prober(server, model="slow"):
    return open_prober(parse_target(server.url, model))


def test_a_server_describes_its_model(slow_server):
    found = prober(slow_server()).metadata()
    assert found.inputs == (TensorSpec("x", "float32", ("batch", 4)),)
    assert (found.name, found.versions) == ("slow", ("7",))


def test_an_answer_tells_the_version(slow_server):
    assert prober(slow_server()).infer(b"{}", {}) == "7"


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
        prober(slow_server(), "other").metadata()


def test_the_servers_own_words_are_passed_on(slow_server):
    with pytest.raises(BenchError, match="HTTP 503: as asked"):
        prober(slow_server(status=503)).infer(b"{}", {})


def test_a_body_cut_short_is_one_clear_line(slow_server):
    with pytest.raises(BenchError, match="does not speak HTTP"):
        prober(slow_server(cut=True)).infer(b"{}", {})


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_port_where_nobody_listens_is_told(scheme):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(BenchError, match=f"{scheme}://127.0.0.1:{port} cannot be reached: .*mlserve serve"):
        open_prober(parse_target(f"{scheme}://127.0.0.1:{port}", "m")).metadata()


def test_grpc_to_an_http_port_is_one_clear_line(slow_server):
    with pytest.raises(BenchError, match="cannot be reached"):
        open_prober(parse_target(slow_server().url.replace("http", "grpc"), "m")).metadata()
