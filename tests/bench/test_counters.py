import socket

import pytest
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


@pytest.mark.parametrize(
    ("protocol", "labels"),
    [
        ("rest", ("v2-rest",)),
        ("rest-binary", ("v2-rest",)),
        ("grpc", ("v2-grpc",)),
        ("tfserving", ("tensorflow-rest",)),
        ("tfserving-grpc", ("tensorflow-grpc",)),
        ("torchserve", ("torchserve",)),
        ("sagemaker", ("sagemaker", "invocations")),
        ("mlflow", ("invocations",)),
        ("json", ("friendly", "azure")),
    ],
)
def test_each_protocol_counts_under_its_own_label(protocol, labels):
    lines = [f'mlserve_requests_total{{model="m",version="1",protocol="{label}",outcome="ok"}} 3' for label in labels]
    other = 'mlserve_requests_total{model="m",version="1",protocol="graphql",outcome="ok"} 100'
    page = "\n".join(["# TYPE mlserve_requests counter", *lines, *([] if protocol == "json" else [other]), ""])
    assert count_ok(page, Target(protocol=protocol, host="h", port=1, model="m")) == 3 * len(labels)


def test_an_alias_counts_as_whichever_version_it_means():
    assert count_ok(page(), Target(protocol="rest", host="h", port=1, model="m", version="production")) == 12


@pytest.mark.parametrize(
    "text",
    [
        """# HELP nv_inference_request_success Number of successful inference requests
# TYPE nv_inference_request_success counter
nv_inference_request_success{gpu_uuid="GPU-8674351b",model="m",version="1"} 10.000000
nv_inference_request_success{gpu_uuid="GPU-4bb61721",model="m",version="1"} 2.000000
nv_inference_request_success{model="other",version="1"} 151.000000
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{model="m",version="1",reason="OTHER"} 7
""",
        """# HELP ts_inference_requests_total Torchserve prometheus counter metric with unit: Count
# TYPE ts_inference_requests_total counter
ts_inference_requests_total{model_name="m",model_version="default",hostname="88665a372f4b",} 12.0
ts_inference_requests_total{model_name="mnist",model_version="default",hostname="88665a372f4b",} 1.0
""",
        """# TYPE :tensorflow:serving:request_count counter
:tensorflow:serving:request_count{model_name="m",status="OK"} 12
:tensorflow:serving:request_count{model_name="m",status="INVALID_ARGUMENT"} 4
:tensorflow:serving:request_count{model_name="other",status="OK"} 9
""",
        """# HELP model_infer_request_success_total Model infer request success count
# TYPE model_infer_request_success_total counter
model_infer_request_success_total{model="m",version="1"} 12.0
# TYPE model_infer_request_success_created gauge
model_infer_request_success_created{model="m",version="1"} 1.7e+09
# TYPE model_infer_request_failure_total counter
model_infer_request_failure_total{model="m",version="1"} 3.0
""",
    ],
    ids=["triton", "torchserve", "tfserving", "mlserver"],
)
def test_the_pages_of_other_servers_are_read(text):
    assert count_ok(text, REST) == 12
    assert count_ok(text, Target(protocol="json", host="h", port=1, model="unknown")) == 0


def test_a_page_of_an_unknown_server_tells_nothing():
    assert count_ok("# TYPE http_requests counter\nhttp_requests_total 3\n", REST) is None


def test_a_server_without_metrics_tells_nothing(slow_server):
    assert read_count(slow_server().url, REST) is None
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert read_count(f"http://127.0.0.1:{port}", REST) is None
