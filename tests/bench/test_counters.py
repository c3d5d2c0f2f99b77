import socket

from prometheus_client import CollectorRegistry, Counter, generate_latest

from mlserve.bench.counters import count_ok, read_count
from mlserve.bench.target import Target

REST = Target(protocol="rest", host="h", port=1, model="m")
GRPC = Target(protocol="grpc", host="h", port=1, model="m", version="2")


def page():
    registry = CollectorRegistry()
    labels = ("model", "version", "protocol", "outcome")
    requests = Counter("mlserve_requests", "Requests.", labels, registry=registry)
    requests.labels("m", "1", "v2-rest", "ok").inc(5)
    requests.labels("m", "2", "v2-rest", "ok").inc(7)
    requests.labels("m", "2", "v2-rest", "InvalidRequest").inc(100)
    requests.labels("m", "2", "v2-grpc", "ok").inc(11)
    requests.labels("m", "1", "v2-grpc", "ok").inc(100)
    requests.labels("other", "2", "v2-grpc", "ok").inc(100)
    return generate_latest(registry).decode()


def test_only_good_answers_of_the_target_count():
    assert count_ok(page(), REST) == 12  # no version was asked for: whichever answered
    assert count_ok(page(), GRPC) == 11


def test_a_model_that_was_never_asked_counts_nothing():
    assert count_ok(page(), Target(protocol="rest", host="h", port=1, model="new")) == 0


def test_a_page_of_another_server_tells_nothing():
    assert count_ok("# TYPE nv_inference_request_success counter\nnv_inference_request_success 3\n", REST) is None


def test_a_server_without_metrics_tells_nothing(slow_server):
    assert read_count(slow_server().url, REST) is None
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert read_count(f"http://127.0.0.1:{port}", REST) is None
