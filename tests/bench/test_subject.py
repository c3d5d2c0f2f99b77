import os

import msgspec
import pytest

from mlserve.bench.payload.payload import PayloadWish
from mlserve.bench.subject import url_subject
from mlserve.bench.target import parse_target
from mlserve.errors import BenchError
from mlserve.model.tensors import TensorSpec


def test_a_url_is_described_by_its_server(slow_server):
    server = slow_server()
    subject = url_subject(parse_target(server.url))
    assert (subject.target.model, subject.model.name, subject.model.url) == ("slow", "slow", server.url)
    assert [(spec.name, spec.dtype, spec.shape[1:]) for spec in subject.inputs] == [("x", "float32", (4,))]
    assert [spec.name for spec in subject.outputs] == ["y"]
    assert subject.wish.outputs == subject.outputs
    assert (subject.metrics_url, subject.server, subject.cpus) == (server.url, None, ())
    assert os.getpid() in subject.pids
    assert server.answered == 0


def test_what_is_known_from_elsewhere_is_not_asked_for(slow_server):
    server = slow_server()
    server.metadata = {}  # it does not say what it takes
    known = (TensorSpec("a", "int64", ("batch", 2)),), (TensorSpec("b", "float32", ("batch",)),)
    target = parse_target(server.url, "slow")
    wish = PayloadWish(timed="none")
    subject = url_subject(target, wish, known)
    assert (subject.inputs, subject.outputs) == known
    assert subject.wish == msgspec.structs.replace(wish, outputs=known[1])
    with pytest.raises(BenchError):
        url_subject(target)


def test_counters_are_where_somebody_says_they_are(slow_server):
    target = parse_target(slow_server().url)
    assert url_subject(target, metrics_url="http://127.0.0.1:8002/metrics").metrics_url == (
        "http://127.0.0.1:8002/metrics"
    )


def test_over_grpc_nobody_knows_where_the_counters_are():
    interface = (TensorSpec("x", "float32", ("batch", 4)),), ()
    subject = url_subject(parse_target("grpc://127.0.0.1:9", "m"), None, interface)
    assert (subject.metrics_url, subject.pids) == ("", ())


def test_a_server_that_serves_several_is_asked_for_one_by_its_name(slow_server):
    server = slow_server()
    server.models = ["slow", "other"]
    with pytest.raises(BenchError, match="it serves other, slow; choose one with --model NAME"):
        url_subject(parse_target(server.url))
    assert url_subject(parse_target(server.url, "slow")).model.name == "slow"


def test_a_server_that_is_not_there_is_an_error(slow_server):
    server = slow_server()
    server.stop()
    with pytest.raises(BenchError, match="cannot be reached"):
        url_subject(parse_target(server.url))
