"""Traces, as a collector receives them."""

import gzip
import http.server
import json
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlserve.serve.settings import WatchSettings
from mlserve.serve.watching.tracing import parse_traceparent

ROW = [[0.5] * 30]
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("value", "sampled"),
    [(f"00-{TRACE}-{SPAN}-01", True), (f"00-{TRACE}-{SPAN}-00", False), (f"01-{TRACE}-{SPAN}-03-x", True)],
)
def test_a_traceparent_is_read_as_the_standard_has_it(value, sampled):
    assert parse_traceparent(value.encode()) == (int(TRACE, 16), int(SPAN, 16), sampled)


@pytest.mark.parametrize(
    "value",
    ["", "00", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01",
     f"00-{TRACE}-{SPAN}-01-x", f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01\n"],
)  # fmt: skip
def test_a_traceparent_that_is_none_counts_as_none(value):
    assert parse_traceparent(value.encode()) is None


@settings(deadline=None)
@given(st.binary())
def test_any_bytes_may_be_a_traceparent(value):
    found = parse_traceparent(value)
    assert found is None or found.trace_id > 0


@pytest.fixture
def collector():
    """`(address, spans)`: a collector on a free port, and every span it has received, by name and as it came."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/traces":
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", spans
        server.shutdown()
        thread.join()


def attributes(span):
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def test_a_request_is_a_span_with_its_wait_and_its_run_inside(serving_settings, tiny_onnx, collector):
    address, spans = collector
    with serving_settings(tiny_onnx, watch=WatchSettings(otlp_endpoint=address, trace_share=1.0)) as server:
        assert server.infer("tiny", {"x": ("FP32", ROW * 2)}, id="mine")[0] == 200
    whole = {span.name: span for span in spans}
    assert sorted(whole) == ["compute", "infer tiny", "queue"]
    root, queue, compute = whole["infer tiny"], whole["queue"], whole["compute"]
    assert {queue.parent_span_id, compute.parent_span_id} == {root.span_id}
    assert {queue.trace_id, compute.trace_id} == {root.trace_id}
    assert not root.parent_span_id
    for one, other in ((queue, compute), (queue, queue), (compute, compute)):
        assert one.start_time_unix_nano <= other.end_time_unix_nano
    assert abs(queue.start_time_unix_nano - root.start_time_unix_nano) < 1000
    assert abs(queue.end_time_unix_nano - compute.start_time_unix_nano) < 1000
    found = attributes(root)
    assert found["mlserve.protocol"] == "v2-rest"
    assert (found["mlserve.model"], found["mlserve.version"], found["mlserve.request_id"]) == ("tiny", "1", "mine")
    assert found["mlserve.rows"] == found["mlserve.batch_rows"] == 2


def test_the_client_decides_where_it_traces(serving_settings, tiny_onnx, collector):
    paths = {TRACE: "/v2/models/tiny/infer", "b" * 32: "/v2/models/tiny/infer?lane=slow"}
    address, spans = collector
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 30], "data": ROW}]})
    with serving_settings(tiny_onnx, watch=WatchSettings(otlp_endpoint=address, trace_share=0.0)) as server:
        for trace, path in paths.items():
            assert server.request("POST", path, body, {"traceparent": f"00-{trace}-{SPAN}-01"})[0] == 200
            assert server.request("POST", path, body, {"traceparent": f"00-{'a' * 32}-{SPAN}-00"})[0] == 200
            assert server.request("POST", path, body)[0] == 200
    assert {span.trace_id.hex() for span in spans} == paths.keys()
    roots = [span for span in spans if span.name == "infer tiny"]
    assert [root.trace_id.hex() for root in roots] == list(paths)
    assert {root.parent_span_id.hex() for root in roots} == {SPAN}


def test_a_collector_that_is_not_there_costs_no_request(serving_settings, tiny_onnx):
    watch = WatchSettings(otlp_endpoint="http://127.0.0.1:9", trace_share=1.0)
    with serving_settings(tiny_onnx, watch=watch) as server:
        for _ in range(5):
            assert server.infer("tiny", {"x": ("FP32", ROW)})[0] == 200


def test_without_the_extra_the_error_names_it():
    code = (
        "import sys; sys.modules['opentelemetry.exporter.otlp.proto.http.trace_exporter'] = None\n"
        "from mlserve.errors import UsageError\n"
        "from mlserve.serve.watching.tracing import Tracing\n"
        "try: Tracing('http://127.0.0.1:4318')\n"
        "except UsageError as error: print(error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install 'mlserve[otel]'" in ended.stdout, ended.stderr


def test_a_worker_that_does_not_trace_does_not_load_what_traces():
    code = "import sys, mlserve.serve.worker; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.stdout == "[]\n", ended.stderr
