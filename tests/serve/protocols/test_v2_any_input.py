"""Whatever is sent to a V2 page or call is the client's fault, never the server's: no 5xx, no INTERNAL, no silence."""

import json

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlserve.wire import messages

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
PARAMETERS = st.dictionaries(
    st.sampled_from(
        ["timeout", "priority", "timing", "binary_data_output", "binary_data_size", "sequence_id", "config"]
    ),
    JSON,
    max_size=3,
)
TENSOR = st.fixed_dictionaries(
    {"name": st.sampled_from(["x", "scores", ""])},
    optional={
        "datatype": st.sampled_from(["FP32", "BF16", "", "BYTES"]),
        "shape": st.lists(st.sampled_from([-1, 0, 1, 30, 2**31, 2**62, 2**64]), max_size=3) | JSON,
        "data": JSON,
        "parameters": PARAMETERS | JSON,
    },
)
REQUEST = st.fixed_dictionaries(
    {},
    optional={
        "id": JSON,
        "inputs": st.lists(TENSOR, max_size=2) | JSON,
        "outputs": JSON,
        "parameters": PARAMETERS,
        "ready": JSON,
    },
)
PAGES = [
    ("POST", "/v2/models/tiny/infer"),
    ("POST", "/v2/models/tiny/infer?slow=lane"),
    ("POST", "/v2/models/echo/versions/1/infer"),
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/tiny/load"),
    ("POST", "/v2/repository/models/tiny/unload"),
    ("GET", "/v2/models/tiny/versions/%00/stats"),
    ("GET", "/v2/models/%FF/config"),
    ("POST", "/v2/cudasharedmemory/region/a/register"),
]
CALLS = [
    "ModelInfer",
    "ModelReady",
    "ModelMetadata",
    "ModelConfig",
    "ModelStatistics",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryRegister",
    "LogSettings",
]
MODEL_INFER = messages.ModelInferRequest(
    model_name="tiny",
    inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 30]}],
    outputs=[{"name": "scores", "parameters": {"classification": {"int64_param": 1}}}],
    parameters={"timeout": {"int64_param": 20_000_000}},
    raw_input_contents=[b"\0" * 120],
).SerializeToString()


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(PAGES),
    st.binary(max_size=60)
    | JSON.map(lambda value: json.dumps(value).encode())
    | REQUEST.map(lambda value: json.dumps(value).encode()),
    st.none() | st.integers(0, 70),
)
def test_no_body_makes_a_page_fail(tiny_server, page, body, json_bytes):
    method, path = page
    headers = {} if json_bytes is None else {"Inference-Header-Content-Length": str(json_bytes)}
    status, _, answer = tiny_server.request(method, path, body, headers)
    assert status < 500 or status == 504, answer  # 504: the request set itself a limit
    if status >= 400:
        assert 0 < len(json.loads(answer)["error"]) <= 900


@pytest.fixture(scope="module")
def channel(tiny_server):
    with grpc.insecure_channel(tiny_server.grpc) as made:
        yield made


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(CALLS),
    st.binary(max_size=60)
    | st.tuples(st.integers(0, len(MODEL_INFER) - 1), st.integers(0, 255)).map(
        lambda change: MODEL_INFER[: change[0]] + bytes([change[1]]) + MODEL_INFER[change[0] + 1 :]
    ),
)
def test_no_message_makes_a_call_fail(channel, name, payload):
    code = channel.unary_unary(f"/{messages.SERVICE}/{name}").future(payload, timeout=20).code()
    assert code.name in (
        "OK",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "PERMISSION_DENIED",
        "UNIMPLEMENTED",
        "DEADLINE_EXCEEDED",
    )
