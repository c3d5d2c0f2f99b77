"""V2 over gRPC against real servers, over each transport: tritonclient, raw stubs, and every way to ask wrongly."""

import asyncio
import concurrent.futures
import socket
from contextlib import suppress

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from mlserve.model.tensors import DATATYPE_OF
from mlserve.serve.dialects import CALLS, SLOW_CALLS
from mlserve.serve.settings import BatchSettings, Limits
from mlserve.wire import messages

ROWS = np.random.default_rng(0).standard_normal((3, 30)).astype(np.float32)
SERVICE = "/inference.GRPCInferenceService"
LIMIT_BYTES = 1 << 20


@pytest.fixture(scope="module", params=["native", "grpcio"])
def server(request, serving_settings, tiny_onnx, echo_onnx, tokens_onnx):
    limits = Limits(max_request_bytes=LIMIT_BYTES)
    with serving_settings(tiny_onnx, echo_onnx, tokens_onnx, limits=limits, grpc_transport=request.param) as made:
        made.transport = request.param
        yield made


@pytest.fixture(scope="module")
def patient(server, serving_settings, tiny_onnx, echo_onnx):
    """Waits for more to run together, and takes requests of any length."""
    batch = BatchSettings(16, 0.05)
    with serving_settings(tiny_onnx, echo_onnx, batch=batch, grpc_transport=server.transport) as made:
        yield made


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.grpc) as made:
        yield made


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server.grpc) as made:
        yield made


@pytest.fixture
def still_right(channel, reference):
    """After the test, the same connection answers the right request rightly: the negative control of every bad one."""
    yield
    check(call(channel, "ModelInfer", tiny_request()), reference)


def call(channel, method, payload=b"", service=SERVICE):
    """The response bytes of one call with `payload` just as it is."""
    return channel.unary_unary(f"{service}/{method}")(payload, timeout=20)


def fault(channel, method, payload, service=SERVICE):
    """`(code, details)` of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, payload, service)
    return caught.value.code(), caught.value.details()


def tiny_request(rows=ROWS, model="tiny", version="", *, typed=False, **tensor):
    first = {"name": "x", "datatype": "FP32", "shape": rows.shape} | tensor
    request = messages.ModelInferRequest(model_name=model, model_version=version)
    request.inputs.add(**first)
    if typed:
        request.inputs[0].contents.fp32_contents.extend(rows.ravel().tolist())
    else:
        request.raw_input_contents.append(rows.astype(np.float32).tobytes())
    return request.SerializeToString()


def check(payload, reference, rows=ROWS):
    response = messages.ModelInferResponse.FromString(payload)
    (output,), (raw,) = response.outputs, response.raw_output_contents
    assert (response.model_name, response.model_version) == ("tiny", "1")
    assert (output.name, output.datatype, list(output.shape)) == ("scores", "FP32", [len(rows), 2])
    np.testing.assert_allclose(np.frombuffer(raw, np.float32).reshape(-1, 2), reference(rows), rtol=1e-5)


# The right ones


def test_every_call_of_triton_s_service_is_answered_somehow():
    described = messages.ModelInferRequest.DESCRIPTOR.file.services_by_name["GRPCInferenceService"]
    served = {call.path for call in (*CALLS, *SLOW_CALLS)}
    assert {f"{SERVICE}/{name}" for name in described.methods_by_name} <= served


@pytest.mark.parametrize("version", ["", "1"])
@pytest.mark.parametrize("typed", [False, True])
def test_raw_and_typed_contents_get_onnxruntime_s_own_answers(channel, reference, version, typed):
    check(call(channel, "ModelInfer", tiny_request(version=version, typed=typed)), reference)


def test_every_unary_call_answers(channel):
    assert messages.ServerLiveResponse.FromString(call(channel, "ServerLive")).live
    assert messages.ServerReadyResponse.FromString(call(channel, "ServerReady")).ready
    metadata = messages.ServerMetadataResponse.FromString(call(channel, "ServerMetadata"))
    assert (metadata.name, metadata.version) == ("mlserve", "0.1.0")
    assert "binary_tensor_data" in metadata.extensions
    assert "classification" in metadata.extensions
    name = messages.ModelReadyRequest(name="tiny").SerializeToString()
    assert messages.ModelReadyResponse.FromString(call(channel, "ModelReady", name)).ready
    model = messages.ModelMetadataResponse.FromString(call(channel, "ModelMetadata", name))
    assert (model.name, list(model.versions), model.platform) == ("tiny", ["1"], "onnxruntime_onnx")
    assert (model.inputs[0].name, model.inputs[0].datatype, list(model.inputs[0].shape)) == ("x", "FP32", [-1, 30])
    assert (model.outputs[0].name, list(model.outputs[0].shape)) == ("scores", [-1, 2])


def test_tritonclient_reads_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("tiny", "2")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata().name == "mlserve"
    assert list(client.get_model_metadata("tiny").inputs[0].shape) == [-1, 30]


def _triton_input(name, datatype, array):
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def test_tritonclient_gets_onnxruntime_s_own_answers(client, reference):
    outputs = [triton.InferRequestedOutput("scores")]
    result = client.infer("tiny", [_triton_input("x", "FP32", ROWS)], outputs=outputs, request_id="r1")
    np.testing.assert_allclose(result.as_numpy("scores"), reference(ROWS), rtol=1e-5)
    assert result.get_response().id == "r1"


def test_tritonclient_gets_every_type_back_unchanged(client):
    arrays = {}
    for dtype, datatype in DATATYPE_OF.items():
        if dtype == "object":
            pair = np.array(["", "grüße, 世界 \0"], object)
        elif dtype == "bool":
            pair = np.array([False, True])
        else:
            limits = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
            pair = np.array([limits.min, limits.max], dtype)
        arrays[datatype] = np.tile(pair, (2, 1))
    inputs = [_triton_input(f"in_{datatype}", datatype, array) for datatype, array in arrays.items()]
    result = client.infer("echo", inputs)
    for datatype, array in arrays.items():
        found = result.as_numpy(f"out_{datatype}")
        if datatype == "BYTES":
            found = np.vectorize(bytes.decode, otypes=[object])(found)
        np.testing.assert_array_equal(found, array)


def test_tritonclient_asks_with_a_priority_and_a_timeout(client, reference):
    inputs = [_triton_input("x", "FP32", ROWS)]
    result = client.infer("tiny", inputs, priority=1, timeout=20_000_000, parameters={"my_own": "parameter"})
    np.testing.assert_allclose(result.as_numpy("scores"), reference(ROWS), rtol=1e-5)
    with pytest.raises(InferenceServerException, match="keeps no state between requests"):
        client.infer("tiny", inputs, sequence_id=7, sequence_start=True)


def test_tritonclient_s_asyncio_client_asks_many_things_at_once(server, reference):
    async def ask_all():
        async with triton_aio.InferenceServerClient(server.grpc) as client:
            assert await client.is_server_ready()
            batches = [np.full((1 + number % 3, 30), number / 9, np.float32) for number in range(40)]
            results = await asyncio.gather(
                *(client.infer("tiny", [_triton_input("x", "FP32", batch)]) for batch in batches)
            )
            for batch, result in zip(batches, results, strict=True):
                np.testing.assert_allclose(result.as_numpy("scores"), reference(batch), rtol=1e-5)

    asyncio.run(ask_all())


def test_calls_of_many_clients_at_once_each_get_their_own_answer(server, reference):
    def ask(number):
        rows = np.full((1 + number % 3, 30), number / 9, np.float32)
        with grpc.insecure_channel(server.grpc) as own:
            for _ in range(10):
                check(call(own, "ModelInfer", tiny_request(rows)), reference, rows)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(16)))


def test_calls_that_wait_together_share_a_batch(patient, reference, until):
    with grpc.insecure_channel(patient.grpc) as channel:
        invoke = channel.unary_unary(f"{SERVICE}/ModelInfer")
        rows = [np.full((1, 30), number / 9, np.float32) for number in range(60)]
        for row, answer in [(row, invoke.future(tiny_request(row), timeout=20)) for row in rows]:
            check(answer.result(), reference, row)
    ok = {"model": "tiny", "protocol": "v2-grpc", "outcome": "ok"}
    until(lambda: patient.counted("mlserve_requests_total", **ok) == 60)
    assert patient.counted("mlserve_rows_total", model="tiny") == 60
    assert patient.counted("mlserve_batches_total", model="tiny") < 60


# The wrong ones


@pytest.mark.parametrize(
    ("payload", "code", "message"),
    [
        (b"\xff\xff\xff", "INVALID_ARGUMENT", "the message is no ModelInferRequest"),
        (b"no protobuf at all", "INVALID_ARGUMENT", "the message is no ModelInferRequest"),
        (b"", "NOT_FOUND", "Request for unknown model: '' is not found"),
        (tiny_request(model="nobody"), "NOT_FOUND", "Request for unknown model: 'nobody' is not found"),
        (tiny_request(model="模型 %41\n"), "NOT_FOUND", "Request for unknown model: '模型 %41\n' is not found"),
        (tiny_request(model="m" * 5000), "NOT_FOUND", "is not found"),
        (tiny_request(version="2"), "NOT_FOUND", "Request for unknown model: 'tiny' version 2 is not found"),
        (tiny_request(name="y"), "INVALID_ARGUMENT", "unexpected input 'y' for model 'tiny'; it takes 'x'"),
        (tiny_request(name="入力"), "INVALID_ARGUMENT", "unexpected input '入力'"),
        (tiny_request(datatype="FP64"), "INVALID_ARGUMENT", "has datatype FP64 for model 'tiny', expected FP32"),
        (tiny_request(shape=[90]), "INVALID_ARGUMENT", "has shape [90] for model 'tiny', expected [-1, 30]"),
        (tiny_request(shape=[2, 30]), "INVALID_ARGUMENT", "Expected 240, got 360"),
        (tiny_request(shape=[2**62, 30]), "INVALID_ARGUMENT", "input byte size mismatch"),
        (tiny_request(shape=[-3, 30]), "INVALID_ARGUMENT", "has shape [-3, 30]"),
        (tiny_request(shape=[2, 30], typed=True), "INVALID_ARGUMENT", "but 90 elements in fp32_contents"),
        (tiny_request(np.zeros((3, 29), np.float32)), "INVALID_ARGUMENT", "has shape [3, 29]"),
        (tiny_request(model="echo"), "INVALID_ARGUMENT", "unexpected input 'x' for model 'echo'"),
        (
            messages.ModelInferRequest(model_name="tiny").SerializeToString(),
            "INVALID_ARGUMENT",
            "missing required input",
        ),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(channel, still_right, payload, code, message):
    found, details = fault(channel, "ModelInfer", payload)
    assert found == grpc.StatusCode[code]
    assert message in details


def test_a_token_beyond_the_table_is_the_request_s_fault(channel, still_right):
    request = messages.ModelInferRequest(model_name="tokens")
    request.inputs.add(name="ids", datatype="INT64", shape=[1, 4])
    request.inputs[0].contents.int64_contents.extend([1, 2, 3, 10])
    code, details = fault(channel, "ModelInfer", request.SerializeToString())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "out of data bounds" in details


@pytest.mark.parametrize(
    ("method", "payload", "service", "code"),
    [
        ("ModelReady", b"\xff", SERVICE, "INVALID_ARGUMENT"),
        ("ModelMetadata", b"\xff", SERVICE, "INVALID_ARGUMENT"),
        ("ModelMetadata", messages.ModelMetadataRequest(name="nobody").SerializeToString(), SERVICE, "NOT_FOUND"),
        ("NoSuchCall", b"", SERVICE, "UNIMPLEMENTED"),
        ("ModelInfer", b"", "/other.Service", "UNIMPLEMENTED"),
    ],
)
def test_a_call_that_is_none_is_told(channel, still_right, method, payload, service, code):
    assert fault(channel, method, payload, service)[0] == grpc.StatusCode[code]


def test_a_message_larger_than_allowed_is_refused_and_one_of_that_size_is_not(channel, still_right):
    def padded(size):
        request = messages.ModelInferRequest.FromString(tiny_request())
        request.id = ""
        request.id = "i" * (size - len(request.SerializeToString()) - 4)
        assert len(request.SerializeToString()) == size
        return request.SerializeToString()

    assert call(channel, "ModelInfer", padded(LIMIT_BYTES))
    code, details = fault(channel, "ModelInfer", padded(LIMIT_BYTES + 1))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(LIMIT_BYTES) in details


def test_a_very_large_message_is_refused(channel, still_right):
    assert fault(channel, "ModelInfer", b"\0" * (64 << 20))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_answer_longer_than_grpc_s_four_megabytes_is_sent_whole(patient):
    """Only the request is limited, for the client chose it."""
    with grpc.insecure_channel(patient.grpc, options=[("grpc.max_receive_message_length", -1)]) as channel:
        request = messages.ModelInferRequest(model_name="echo")
        array = np.zeros((1, 700_000), np.float64)
        for dtype, datatype in DATATYPE_OF.items():
            wide = array if datatype == "FP64" else array[:, :1]
            raw = b"\0\0\0\0" if dtype == "object" else wide.astype(dtype).tobytes()
            request.inputs.add(name=f"in_{datatype}", datatype=datatype, shape=wide.shape)
            request.raw_input_contents.append(raw)
        answer = messages.ModelInferResponse.FromString(call(channel, "ModelInfer", request.SerializeToString()))
        assert max(map(len, answer.raw_output_contents)) == array.nbytes


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 200, b"PRI * HTTP/2.0"],
)
def test_garbage_on_the_port_ends_that_connection_alone(server, still_right, garbage):
    address = "127.0.0.1", server.grpc_port
    with socket.create_connection(address, timeout=20) as connection, suppress(ConnectionError):
        connection.sendall(garbage)
        with suppress(OSError):  # the server was quicker to close it
            connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass


def test_a_call_that_is_cancelled_disturbs_nobody(channel, still_right):
    waiting = [channel.unary_unary(f"{SERVICE}/ModelInfer").future(tiny_request()) for _ in range(50)]
    for answer in waiting:
        answer.cancel()


def test_a_compressed_message_is_read_or_refused_clearly(channel, reference, still_right):
    invoke = channel.unary_unary(f"{SERVICE}/ModelInfer")
    answer = invoke.future(tiny_request(), timeout=20, compression=grpc.Compression.Gzip)
    if answer.exception() is None:
        check(answer.result(), reference)
    else:
        assert answer.code() is grpc.StatusCode.UNIMPLEMENTED


def test_tritonclient_is_told_what_is_wrong(client, still_right):
    with pytest.raises(InferenceServerException, match="Request for unknown model: 'nobody' is not found") as caught:
        client.infer("nobody", [_triton_input("x", "FP32", ROWS)])
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException, match="expected FP32"):
        client.infer("tiny", [_triton_input("x", "FP64", ROWS.astype(np.float64))])
