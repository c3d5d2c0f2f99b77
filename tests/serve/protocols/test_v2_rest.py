"""V2 over REST against a real server: every route, curl and tritonclient, and every way to ask wrongly."""

import asyncio
import concurrent.futures
import json
import shutil
import subprocess

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from mlserve.model.tensors import DATATYPE_OF
from mlserve.serve.settings import BatchSettings

ROWS = np.random.default_rng(0).standard_normal((3, 30)).astype(np.float32)
SERVER = {
    "name": "mlserve",
    "version": "0.1.0",
    "extensions": [
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "model_repository",
        "schedule_policy",
        "statistics",
    ],
}
GOOD = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [3, 30], "data": ROWS.ravel().tolist()}]}


def scores(document):
    (output,) = document["outputs"]
    assert (output["name"], output["datatype"]) == ("scores", "FP32")
    return np.array(output["data"], np.float32).reshape(output["shape"])


@pytest.fixture
def still_right(tiny_server, reference):
    """After the test, the same server answers the right request rightly: the negative control of every bad one."""
    yield
    status, document = tiny_server.infer("tiny", {"x": ("FP32", ROWS.tolist())})
    assert status == 200
    np.testing.assert_allclose(scores(document), reference(ROWS), rtol=1e-5)


# Routes


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/health", {"live": True}),
        ("/ready", {"ready": True}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2", SERVER),
        ("/v2/", SERVER),
        ("/v2/models/tiny/ready", {"name": "tiny", "version": "1", "ready": True}),
        ("/v2/models/tiny/versions/1/ready", {"name": "tiny", "version": "1", "ready": True}),
        (
            "/v2/models/tiny",
            {
                "name": "tiny",
                "versions": ["1"],
                "platform": "onnxruntime_onnx",
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 30]}],
                "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 2]}],
            },
        ),
    ],
)
def test_every_page_answers_curl(tiny_server, path, document):
    curl = shutil.which("curl")
    if curl is None:
        assert tiny_server.get_json(path) == document
        return
    answer = subprocess.run(
        [curl, "-sS", "-w", " %{http_code} %{content_type}", f"http://{tiny_server.http}{path}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    body, status, kind = answer.rsplit(" ", 2)
    assert json.loads(body) == document
    assert (status, kind) == ("200", "application/json")


def test_the_index_lists_every_served_version(tiny_server):
    status, _, body = tiny_server.request("POST", "/v2/repository/index")
    assert status == 200
    assert {entry["name"]: entry["state"] for entry in json.loads(body)} == {
        "tiny": "READY",
        "echo": "READY",
        "tokens": "READY",
    }


def test_metrics_are_prometheus_text(tiny_server):
    status, headers, body = tiny_server.request("GET", "/metrics")
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/plain")
    assert b'mlserve_model_loaded{model="tiny",version="1"} 1.0' in body


@pytest.mark.parametrize("path", ["/v2/models/tiny/infer", "/v2/models/tiny/versions/1/infer"])
def test_curl_infers(tiny_server, reference, path):
    curl = shutil.which("curl")
    assert curl is not None, "there is no curl; make test installs it"
    answer = subprocess.run(
        [curl, "-sS", "--data-binary", "@-", f"http://{tiny_server.http}{path}"],
        input=json.dumps(GOOD),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    document = json.loads(answer)
    assert (document["model_name"], document["model_version"]) == ("tiny", "1")
    np.testing.assert_allclose(scores(document), reference(ROWS), rtol=1e-5)


@pytest.mark.parametrize("path", ["/v2/models/tiny/infer?", "/v2/models/tiny/infer?trace=1", "/v2/models/t%69ny/infer"])
def test_another_spelling_of_the_path_means_the_same(tiny_server, reference, path):
    status, document = tiny_server.infer("tiny", {"x": ("FP32", ROWS.tolist())}, path=path, id="7")
    assert status == 200
    assert document["id"] == "7"
    np.testing.assert_allclose(scores(document), reference(ROWS), rtol=1e-5)


def test_the_outputs_asked_for_are_those_answered_in_that_order(tiny_server):
    inputs = {f"in_{datatype}": (datatype, _example(datatype).tolist()) for datatype in DATATYPE_OF.values()}
    wanted = [{"name": "out_INT8"}, {"name": "out_BYTES"}]
    status, document = tiny_server.infer("echo", inputs, outputs=wanted)
    assert status == 200
    assert [output["name"] for output in document["outputs"]] == ["out_INT8", "out_BYTES"]


# tritonclient


def _example(datatype, rows=2):
    """Two columns: the least and the greatest value of the type, or the like."""
    dtype = np.dtype({name: kind for kind, name in DATATYPE_OF.items()}[datatype])
    if datatype == "BYTES":
        pair = np.array(["", "grüße, 世界 \0"], object)
    elif datatype == "BOOL":
        pair = np.array([False, True])
    else:
        limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        pair = np.array([limits.min, limits.max], dtype)
    return np.tile(pair, (rows, 1))


@pytest.fixture(scope="module")
def client(tiny_server):
    with triton.InferenceServerClient(tiny_server.http, concurrency=4) as made:
        yield made


def _triton_input(name, datatype, array, *, binary):
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def test_tritonclient_reads_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("tiny", "2")
    assert client.get_server_metadata()["name"] == "mlserve"
    assert client.get_model_metadata("tiny")["inputs"][0]["shape"] == [-1, 30]
    assert {entry["name"] for entry in client.get_model_repository_index()} == {"tiny", "echo", "tokens"}


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
def test_tritonclient_gets_onnxruntime_s_own_answers(client, reference, binary_in, binary_out):
    inputs = [_triton_input("x", "FP32", ROWS, binary=binary_in)]
    outputs = [triton.InferRequestedOutput("scores", binary_data=binary_out)]
    result = client.infer("tiny", inputs, outputs=outputs, request_id="r1")
    np.testing.assert_allclose(result.as_numpy("scores"), reference(ROWS), rtol=1e-5)
    assert result.get_response()["id"] == "r1"


@pytest.mark.parametrize("binary", [False, True])
def test_tritonclient_gets_every_type_back_unchanged(client, binary):
    # tritonclient itself writes no FP16 as JSON, and no integer types narrower than the type of the whole list.
    arrays = {datatype: _example(datatype) for datatype in DATATYPE_OF.values()}
    inputs = [
        _triton_input(f"in_{datatype}", datatype, array, binary=binary or datatype == "FP16")
        for datatype, array in arrays.items()
    ]
    outputs = [
        triton.InferRequestedOutput(f"out_{datatype}", binary_data=binary or datatype == "FP16") for datatype in arrays
    ]
    result = client.infer("echo", inputs, outputs=outputs)
    for datatype, array in arrays.items():
        found = result.as_numpy(f"out_{datatype}")
        if datatype == "BYTES":
            found = np.vectorize(lambda value: value.decode() if isinstance(value, bytes) else value, otypes=[object])(
                found
            )
        np.testing.assert_array_equal(found, array)


def test_tritonclient_s_asynchronous_requests_each_get_their_own_answer(client, reference):
    batches = [np.full((1, 30), number, np.float32) for number in range(40)]
    waiting = [client.async_infer("tiny", [_triton_input("x", "FP32", batch, binary=True)]) for batch in batches]
    for batch, request in zip(batches, waiting, strict=True):
        np.testing.assert_allclose(request.get_result().as_numpy("scores"), reference(batch), rtol=1e-5)


def test_tritonclient_is_told_what_is_wrong(client, still_right):
    with pytest.raises(InferenceServerException, match="Request for unknown model: 'nobody' is not found"):
        client.infer("nobody", [_triton_input("x", "FP32", ROWS, binary=True)])
    with pytest.raises(InferenceServerException, match="expected FP32"):
        client.infer("tiny", [_triton_input("x", "FP64", ROWS.astype(np.float64), binary=True)])


@pytest.mark.parametrize("binary_out", [False, True])
def test_tensors_in_json_and_as_bytes_mix_in_one_request(client, binary_out):
    arrays = {datatype: _example(datatype) for datatype in DATATYPE_OF.values()}
    names = sorted(arrays, reverse=True)  # another order than the model's
    inputs = [_triton_input(f"in_{name}", name, arrays[name], binary=name > "INT" or name == "FP16") for name in names]
    outputs = [triton.InferRequestedOutput(f"out_{name}", binary_data=(name > "FP") == binary_out) for name in names]
    result = client.infer("echo", inputs, outputs=[output for output in outputs if output.name() != "out_FP16"])
    for name in names:
        if name not in ("BYTES", "FP16"):
            np.testing.assert_array_equal(result.as_numpy(f"out_{name}"), arrays[name])
    assert [output["name"] for output in result.get_response()["outputs"]] == [
        f"out_{name}" for name in names if name != "FP16"
    ]


def test_without_outputs_named_tritonclient_gets_all_as_bytes(client):
    arrays = {datatype: _example(datatype) for datatype in DATATYPE_OF.values()}
    result = client.infer(
        "echo", [_triton_input(f"in_{name}", name, array, binary=True) for name, array in arrays.items()]
    )
    assert all("binary_data_size" in output["parameters"] for output in result.get_response()["outputs"])
    np.testing.assert_array_equal(result.as_numpy("out_INT64"), arrays["INT64"])


@pytest.mark.parametrize("path", ["/v2/models/tiny/infer", "/v2/models/tiny/infer?slow=lane"])
def test_a_body_of_bytes_alone_is_the_model_s_only_input(tiny_server, reference, path):
    status, headers, body = tiny_server.request(
        "POST", path, ROWS[:1].tobytes(), {"Inference-Header-Content-Length": "0"}
    )
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    split = int(headers["inference-header-content-length"])
    (output,) = json.loads(body[:split])["outputs"]
    assert (output["shape"], output["parameters"]) == ([1, 2], {"binary_data_size": 8})
    np.testing.assert_allclose(np.frombuffer(body[split:], np.float32), reference(ROWS[:1])[0], rtol=1e-5)


def test_tritonclient_asks_with_a_priority_and_a_timeout(client, reference):
    inputs = [_triton_input("x", "FP32", ROWS, binary=True)]
    result = client.infer("tiny", inputs, priority=1, timeout=20_000_000, parameters={"my_own": "parameter"})
    np.testing.assert_allclose(result.as_numpy("scores"), reference(ROWS), rtol=1e-5)
    with pytest.raises(InferenceServerException, match="keeps no state between requests"):
        client.infer("tiny", inputs, sequence_id=7, sequence_start=True)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("asked", ["gzip", "deflate", None])
@pytest.mark.parametrize("answered", ["gzip", "deflate", None])
def test_tritonclient_compresses_what_it_asks_and_takes_compressed_answers(client, binary, asked, answered):
    arrays = {datatype: np.tile(_example(datatype), (1, 2000)) for datatype in DATATYPE_OF.values()}
    result = client.infer(
        "echo",
        [_triton_input(f"in_{name}", name, array, binary=binary or name == "FP16") for name, array in arrays.items()],
        outputs=[triton.InferRequestedOutput("out_INT32", binary_data=binary)],
        request_compression_algorithm=asked,
        response_compression_algorithm=answered,
    )
    np.testing.assert_array_equal(result.as_numpy("out_INT32"), arrays["INT32"])


def test_tritonclient_s_asyncio_client_asks_many_things_at_once(tiny_server, reference):
    async def ask_all():
        async with triton_aio.InferenceServerClient(tiny_server.http) as client:
            assert await client.is_server_ready()
            batches = [np.full((1 + number % 3, 30), number / 9, np.float32) for number in range(40)]
            results = await asyncio.gather(
                *(client.infer("tiny", [_triton_input("x", "FP32", batch, binary=True)]) for batch in batches)
            )
            for batch, result in zip(batches, results, strict=True):
                np.testing.assert_allclose(result.as_numpy("scores"), reference(batch), rtol=1e-5)

    asyncio.run(ask_all())


# Batching


@pytest.fixture(scope="module")
def patient(serving, tiny_onnx, tokens_onnx):
    """Waits for more to run together."""
    with serving(tiny_onnx, tokens_onnx, "--max-delay-ms", 50, "--max-batch-rows", 16) as server:
        yield server


def test_concurrent_requests_share_batches_and_get_their_own_rows(patient, reference, until):
    def ask(number):
        rows = np.full((1 + number % 3, 30), number / 7, np.float32)
        status, document = patient.infer("tiny", {"x": ("FP32", rows.tolist())})
        assert status == 200
        np.testing.assert_allclose(scores(document), reference(rows), rtol=1e-5)
        return len(rows)

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        rows = sum(pool.map(ask, range(60)))
    until(lambda: patient.counted("mlserve_requests_total", model="tiny", protocol="v2-rest", outcome="ok") == 60)
    assert patient.counted("mlserve_rows_total", model="tiny") == rows
    runs = patient.counted("mlserve_batches_total", model="tiny")
    assert runs < 60
    assert patient.counted("mlserve_batch_rows_bucket", model="tiny", le="16.0") == runs
    assert patient.counted("mlserve_batch_rows_bucket", model="tiny", le="2.0") < runs
    assert patient.counted("mlserve_request_seconds_count", model="tiny", protocol="v2-rest") == 60


def test_a_bad_request_in_a_batch_fails_alone(patient, until):
    def ask(token):
        status, document = patient.infer("tokens", {"ids": ("INT64", [[token] * 4])})
        if token == 99:
            assert status == 400
            assert "the model refused these values" in document["error"]
            assert "out of data bounds" in document["error"]
        else:
            assert status == 200
            assert document["outputs"][0]["data"] == [3 * token, 3 * token + 1, 3 * token + 2]

    with concurrent.futures.ThreadPoolExecutor(11) as pool:
        list(pool.map(ask, [0, 99, 1, 2, 3, 99, 4, 5, 6, 7, 8]))
    until(lambda: patient.counted("mlserve_requests_total", model="tokens", outcome="ok") == 9)
    assert patient.counted("mlserve_requests_total", model="tokens", outcome="InvalidRequest") == 2


def test_a_full_queue_refuses_what_is_too_much_and_serves_again_afterwards(serving_settings, slow_onnx):
    def ask(turns):
        tensor = {"name": "turns", "datatype": "FP32", "shape": [1, 1], "data": [turns]}
        status, headers, body = server.request("POST", "/v2/models/slow/infer", json.dumps({"inputs": [tensor]}))
        if status == 503:
            assert headers["retry-after"] == "1"
            assert "Exceeds maximum queue size" in json.loads(body)["error"]
        return status

    with serving_settings(slow_onnx, batch=BatchSettings(1, 0.001, max_waiting_rows=2)) as server:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(ask, [500.0] * 8))
        assert set(statuses) == {200, 503}
        assert ask(1.0) == 200
        assert server.counted("mlserve_requests_total", outcome="Overloaded") == statuses.count(503)


# Bad requests


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("tiny", b"no json", 400, "the request body is not JSON"),
        ("tiny", b"", 400, "the request body is not JSON"),
        ("tiny", b"[" * 200_000, 400, "no V2 inference request"),
        ("tiny", b'{"a":' * 200_000, 400, "the request body is not JSON"),
        ("tiny", json.dumps(GOOD).replace("[3, 30]", "[3, NaN]"), 400, "the request body is not JSON"),
        ("tiny", b"{}", 400, "missing required field `inputs`"),
        ("tiny", {"inputs": []}, 400, "missing required input(s) ['x']"),
        ("tiny", {"name": "y"}, 400, "unexpected input 'y' for model 'tiny'; it takes 'x'"),
        ("tiny", {"name": "入力"}, 400, "unexpected input '入力'"),
        ("tiny", {"datatype": "FP64"}, 400, "has datatype FP64 for model 'tiny', expected FP32"),
        ("tiny", {"shape": [90]}, 400, "has shape [90] for model 'tiny', expected [-1, 30]"),
        ("tiny", {"shape": [2, 45]}, 400, "has shape [2, 45]"),
        ("tiny", {"shape": [2, 30]}, 400, "Shape does not match"),
        ("tiny", {"shape": [2**63, 30]}, 400, "Shape does not match"),
        ("tiny", {"data": [2**63] * 90}, 200, ""),
        ("tiny", {"data": [1e39] * 90}, 400, "Unable to parse 'data' of input 'x' as FP32"),
        ("tiny", {"data": [1.0] * 89 + ["1"]}, 400, "Unable to parse 'data'"),
        ("tiny", {"shape": [-3, 30]}, 400, "has shape [-3, 30] for model 'tiny', expected [-1, 30]"),
        ("tiny", {**GOOD, "outputs": [{"name": "logits"}]}, 400, "unexpected output 'logits' for model 'tiny'"),
        ("tiny", {**GOOD, "parameters": {"sequence_id": 1}}, 400, "this server keeps no state between requests"),
        ("tiny", {**GOOD, "parameters": {"triton_a": 1}}, 400, "'triton_a' is a reserved parameter"),
        ("tiny", {**GOOD, "parameters": {"timeout": -1}}, 400, "'timeout' must be a whole number"),
        ("tiny", {**GOOD, "parameters": {"anything": {"else": [1]}}}, 200, ""),
        ("nobody", GOOD, 404, "Request for unknown model: 'nobody' is not found"),
        ("tiny/versions/2", GOOD, 404, "Request for unknown model: 'tiny' version 2 is not found"),
        ("tiny/versions/" + "9" * 5000, GOOD, 404, "is not found"),
        ("%E6%A8%A1%E5%9E%8B", GOOD, 404, "Request for unknown model: '模型' is not found"),
        ("..%2F..%2Fetc", GOOD, 404, "no such page"),
        (
            "tokens",
            {"inputs": [{"name": "ids", "datatype": "INT64", "shape": [1, 4], "data": [10, 0, 0, 0]}]},
            400,
            "refused these values",
        ),
        (
            "tokens",
            {"inputs": [{"name": "ids", "datatype": "INT64", "shape": [1, 4], "data": [2**63, 0, 0, 0]}]},
            400,
            "Unable to parse 'data'",
        ),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(tiny_server, still_right, path, body, status, message):
    if isinstance(body, dict):
        body = body if "inputs" in body else {"inputs": [{**GOOD["inputs"][0], **body}]}
        body = json.dumps(body)
    found, headers, answer = tiny_server.request("POST", f"/v2/models/{path}/infer", body)
    assert (found, headers["content-type"]) == (status, "application/json")
    if status != 200:
        assert message in json.loads(answer)["error"]


def test_rows_that_differ_between_inputs_are_told(tiny_server, still_right):
    inputs = {
        f"in_{datatype}": (datatype, _example(datatype, rows=1 if datatype == "BOOL" else 2).tolist())
        for datatype in DATATYPE_OF.values()
    }
    status, document = tiny_server.infer("echo", inputs)
    assert status == 400
    assert "inputs of one request must have one number of rows" in document["error"]


@pytest.mark.parametrize("path", ["/v2/models/tiny/infer", "/v2/models/tiny/infer?slow=lane"])
@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Inference-Header-Content-Length": "ten"}, "is no number of bytes"),
        ({"Inference-Header-Content-Length": "-1"}, "is no number of bytes"),
        ({"Inference-Header-Content-Length": "9" * 5000}, "is no number of bytes"),
        (
            {"Inference-Header-Content-Length": "0"},
            "input byte size mismatch for input 'x' for model 'tiny'. Expected 120",
        ),
        ({"Inference-Header-Content-Length": "999999"}, "the body has"),
        ({"Inference-Header-Content-Length": "10"}, "the request body is not JSON"),
        (
            {"Content-Encoding": "br"},
            "content-encoding 'br' is not supported; send gzip, deflate, or the body as it is",
        ),
    ],
)
def test_headers_that_do_not_fit_the_body_are_told_in_both_lanes(tiny_server, still_right, path, headers, message):
    status, _, answer = tiny_server.request("POST", path, json.dumps(GOOD).encode(), headers)
    assert status == (415 if "Content-Encoding" in headers else 400)
    assert message in json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/v2/models/tiny/infer", 405),
        ("GET", "/v2/models/tiny/infer", 405),
        ("HEAD", "/v2/models/tiny/infer", 405),
        ("DELETE", "/v2/models/tiny", 405),
        ("OPTIONS", "/v2/models/tiny/infer", 405),
        ("POST", "/v2", 405),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/v2/models/nobody/ready", 404),
        ("GET", "/v2/models/tiny/versions/2/ready", 404),
        ("GET", "/v2/../v2", 404),
        ("HEAD", "/v2/health/live", 200),
        ("BREW", "/v2", 400),
    ],
)
def test_a_wrong_method_or_page_is_told(tiny_server, still_right, method, path, status):
    found, headers, body = tiny_server.request(method, path)
    assert found == status
    if status == 405:
        assert headers["allow"]
    if method == "HEAD":
        assert body == b""
    elif status != 200:
        assert json.loads(body)["error"]
