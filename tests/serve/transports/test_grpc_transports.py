"""What both gRPC transports do around a call: packing, deadlines, cancelling, keys, streams, and the server's end."""

import asyncio
import signal
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import grpc
import msgspec
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from mlserve.serve.settings import BatchSettings, Limits
from mlserve.wire import messages

SERVICE = "/inference.GRPCInferenceService"
LIMIT_BYTES = 1 << 20
SECRET = "a-secret-of-32-characters-or-more"


@pytest.fixture(scope="module", params=["native", "guarded", "grpcio"])
def transport(request):
    return request.param


@pytest.fixture(scope="module")
def server(transport, serving_settings, tiny_onnx, slow_onnx):
    limits = Limits(max_request_bytes=LIMIT_BYTES)
    batch = BatchSettings(max_rows=1)
    with serving_settings(tiny_onnx, slow_onnx, limits=limits, batch=batch, grpc_transport=transport) as made:
        for _ in range(3):  # its warm-up is short; now it is known to need a thread of its own
            made.infer("slow", {"turns": ("FP32", [[100.0]])})
        yield made


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.grpc) as made:
        yield made


def slow_request(turns, **parameters):
    request = messages.ModelInferRequest(model_name="slow", id=str(turns))
    request.inputs.add(name="turns", datatype="FP32", shape=[1, 1])
    request.raw_input_contents.append(np.float32(turns).tobytes())
    for name, value in parameters.items():
        if isinstance(value, bool):
            request.parameters[name].bool_param = value
        else:
            request.parameters[name].int64_param = value
    return request.SerializeToString()


def turns_of(payload):
    return np.frombuffer(messages.ModelInferResponse.FromString(payload).raw_output_contents[0], np.float32)[0]


def infer(channel):
    return channel.unary_unary(f"{SERVICE}/ModelInfer")


def batches(server):
    return server.counted("mlserve_batches_total", model="slow")


@pytest.fixture
def busy(server, channel, until):
    """While the test runs, or for a second or so, the model computes."""
    before = batches(server)
    infer(channel)(slow_request(1.0), timeout=30)
    until(lambda: batches(server) == before + 1)
    running = infer(channel).future(slow_request(1000.0), timeout=30)
    time.sleep(0.05)
    yield running
    assert turns_of(running.result()) == 1000


# Packing


@pytest.mark.parametrize("size", [1, 1000])
def test_gzipped_messages_are_read(server, reference, size):
    rows = np.tile(np.linspace(-1, 1, 30, dtype=np.float32), (size, 1))
    with triton.InferenceServerClient(server.grpc) as client:
        tensor = triton.InferInput("x", rows.shape, "FP32")
        tensor.set_data_from_numpy(rows)
        answer = client.infer("tiny", [tensor], compression_algorithm="gzip")
        np.testing.assert_allclose(answer.as_numpy("scores"), reference(rows), rtol=1e-5)


def test_deflate_is_read_by_grpcio_and_refused_with_its_name_by_the_native_front(server, channel, transport):
    call = infer(channel)
    if transport == "grpcio":
        assert turns_of(call(slow_request(1.0), compression=grpc.Compression.Deflate, timeout=20)) == 1
    else:
        with pytest.raises(grpc.RpcError) as caught:
            call(slow_request(1.0), compression=grpc.Compression.Deflate, timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "deflate" in caught.value.details()


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
def test_a_message_that_unpacks_to_more_than_is_allowed_is_refused(channel, method):
    bomb = b"\0" * (LIMIT_BYTES + 1)
    if method == "ModelInfer":
        call = partial(infer(channel), bomb)
    else:
        stream = channel.stream_stream(f"{SERVICE}/{method}")
        call = lambda **options: list(stream(iter([bomb]), **options))  # noqa: E731  # the same as the other kind
    with pytest.raises(grpc.RpcError) as caught:
        call(compression=grpc.Compression.Gzip, timeout=20)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert turns_of(infer(channel)(slow_request(1.0), timeout=20)) == 1


# Time


def test_where_the_time_went_is_told_to_who_asks(channel):
    response, call = infer(channel).with_call(slow_request(3.0, timing=True), timeout=20)
    assert turns_of(response) == 3
    (told,) = [value for name, value in call.trailing_metadata() if name == "server-timing"]
    assert told.startswith("queue;dur=")
    assert told.endswith('batch;desc="1 row"')
    _, call = infer(channel).with_call(slow_request(3.0), timeout=20)
    assert not [name for name, _ in call.trailing_metadata() if name == "server-timing"]


def test_a_request_past_its_deadline_is_told_while_the_model_runs(channel, busy):
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel)(slow_request(2.0, timeout=50_000), timeout=20)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "Request timeout expired" in caught.value.details()
    assert not busy.done()


@pytest.mark.parametrize("by", ["cancel", "deadline"])
def test_a_call_that_its_client_gave_up_never_runs(server, channel, busy, until, by):
    before = batches(server)
    given_up = [infer(channel).future(slow_request(2.0), timeout=0.1 if by == "deadline" else 20) for _ in range(20)]
    time.sleep(0.05)
    if by == "cancel":
        for call in given_up:
            call.cancel()
    assert all(call.exception() for call in given_up if by == "deadline")
    assert not busy.done()
    time.sleep(0.1)
    assert turns_of(infer(channel)(slow_request(4.0), timeout=30)) == 4
    until(lambda: batches(server) == before + 2)  # the one that ran, and the last


def test_a_stream_that_its_client_gave_up_leaves_nothing_to_run(server, channel, busy, until):
    before = batches(server)
    stop = threading.Event()

    def requests():
        for _ in range(20):
            yield slow_request(2.0)
        stop.wait(20)

    stream = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")(requests(), timeout=20)
    time.sleep(0.1)
    stream.cancel()
    stop.set()
    time.sleep(0.1)
    assert not busy.done()
    assert turns_of(infer(channel)(slow_request(4.0), timeout=30)) == 4
    until(lambda: batches(server) == before + 2)


# Streams


def test_answers_of_a_stream_come_while_requests_are_still_being_sent(channel):
    answered = threading.Event()

    def requests():
        yield slow_request(1.0)
        assert answered.wait(20)
        yield slow_request(2.0)

    responses = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")(requests(), timeout=30)
    first = messages.ModelStreamInferResponse.FromString(next(responses))
    answered.set()
    second = messages.ModelStreamInferResponse.FromString(next(responses))
    assert [first.infer_response.id, second.infer_response.id] == ["1.0", "2.0"]
    assert list(responses) == []


def test_a_stream_whose_client_does_not_read_holds_up_its_own_requests_and_nobody_else(server, channel):
    read, sent = threading.Event(), 0

    def requests():
        nonlocal sent
        for _ in range(3000):
            request = messages.ModelInferRequest(model_name="tiny")
            request.inputs.add(name="x", datatype="FP32", shape=[1000, 30])
            request.raw_input_contents.append(bytes(120_000))
            sent += 1
            yield request.SerializeToString()
            if read.is_set():
                return

    responses = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")(requests(), timeout=60)
    count, stalled_at = -1, 0
    while count != sent:  # until no more is taken
        count = sent
        time.sleep(0.5)
    stalled_at = count
    assert stalled_at < 3000
    assert turns_of(infer(channel)(slow_request(1.0), timeout=20)) == 1
    read.set()
    assert sum(1 for _ in responses) >= stalled_at


def test_many_streams_and_calls_at_once_get_their_own_answers(server, channel):
    failures = []

    def stream(number):
        wanted = [float(100 * number + each) / 1000 for each in range(50)]
        got = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")(map(slow_request, wanted), timeout=60)
        found = [messages.ModelStreamInferResponse.FromString(payload).infer_response.id for payload in got]
        if found != [str(each) for each in wanted]:
            failures.append(found)

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for number in range(50):
        assert turns_of(infer(channel)(slow_request(number / 1000), timeout=30)) == np.float32(number / 1000)
    for thread in threads:
        thread.join(60)
    assert not failures


# Keys


@pytest.fixture(scope="module", params=["native", "grpcio"])  # the guard reads no headers
def locked(request, serving_settings, tiny_onnx, tmp_path_factory):
    from mlserve.serve.access import digest

    path = tmp_path_factory.mktemp("keys") / "keys.json"
    key = {"name": "k", "sha256": digest(SECRET.encode()), "scopes": ["infer", "metadata"], "expires_at": ""}
    path.write_bytes(msgspec.json.encode({"format_version": 1, "keys": [key]}))
    path.chmod(0o600)
    with serving_settings(tiny_onnx, keys_file=str(path), grpc_transport=request.param) as made:
        yield made


METHODS = {
    "ModelInfer": "unary_unary",
    "ServerMetadata": "unary_unary",
    "ModelStreamInfer": "stream_stream",
    "RepositoryModelLoad": "unary_unary",
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ((), "UNAUTHENTICATED"),
        ((("authorization", "Bearer wrong"),), "UNAUTHENTICATED"),
        ((("x-api-key", "wrong"),), "UNAUTHENTICATED"),
        ((("authorization", f"Bearer {SECRET}"),), "OK"),
        ((("x-api-key", SECRET),), "OK"),
    ],
)
def test_every_kind_of_call_asks_for_a_key_by_either_name(locked, method, metadata, code):
    with grpc.insecure_channel(locked.grpc) as channel:
        call = getattr(channel, METHODS[method])(f"{SERVICE}/{method}")
        try:
            if METHODS[method] == "stream_stream":
                list(call(iter([b""]), metadata=metadata, timeout=20))
            else:
                call(b"", metadata=metadata, timeout=20)
            found = "OK"
        except grpc.RpcError as error:
            found = error.code().name
        if code == "OK":  # what comes then is about the empty message, or about the scope
            assert found == {"ModelInfer": "NOT_FOUND", "RepositoryModelLoad": "PERMISSION_DENIED"}.get(method, "OK")
        else:
            assert found == code


def test_health_needs_no_key(locked):
    with grpc.insecure_channel(locked.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=20).status == health_pb2.HealthCheckResponse.SERVING
        watching = stub.Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        watching.cancel()


# The end


def test_open_streams_end_with_unavailable_watchers_are_told_and_no_socket_is_left_when_the_server_stops(
    transport, serving_settings, tiny_onnx
):
    with ExitStack() as stack:
        server = stack.enter_context(serving_settings(tiny_onnx, grpc_transport=transport))
        channel = stack.enter_context(grpc.insecure_channel(server.grpc))
        stop = threading.Event()
        stack.callback(stop.set)

        def requests():
            request = messages.ModelInferRequest(model_name="tiny", id="first")
            request.inputs.add(name="x", datatype="FP32", shape=[1, 30])
            request.raw_input_contents.append(bytes(120))
            yield request.SerializeToString()
            stop.wait(30)

        stream = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")(requests(), timeout=60)
        assert messages.ModelStreamInferResponse.FromString(next(stream)).infer_response.id == "first"
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        sockets = sockets_between(server.workers[0])
        assert bool(sockets) == (transport != "grpcio")  # which is one server only
        server.process.send_signal(signal.SIGTERM)
        assert next(watching).status == health_pb2.HealthCheckResponse.NOT_SERVING
        for open_stream in (stream, watching):
            with pytest.raises(grpc.RpcError) as caught:
                next(open_stream)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        stop.set()
    assert not any(folder.exists() for folder in sockets)


def sockets_between(worker):
    """The folders of the sockets between the two servers that a worker is, which must be private."""
    lines = Path(f"/proc/{worker}/net/unix").read_text().splitlines()
    folders = {Path(line.split()[-1]).parent for line in lines if "/grpc-" in line}
    assert all(folder.stat().st_mode & 0o777 == 0o700 for folder in folders if folder.is_dir())
    return [folder for folder in folders if folder.is_dir() and _owned_by(folder, worker)]


def _owned_by(folder, process):
    """Whether `process` listens on a socket in `folder`."""
    inodes = {
        line.split()[-2] for line in Path("/proc/net/unix").read_text().splitlines() if line.endswith(f"{folder}/s")
    }
    links = [path.readlink().name for path in Path(f"/proc/{process}/fd").iterdir() if path.is_symlink()]
    return any(f"socket:[{inode}]" in links for inode in inodes)


async def _ask_by_asyncio(address, count):
    rows = np.zeros((1, 30), np.float32)
    async with triton_aio.InferenceServerClient(address) as client:
        tensor = triton_aio.InferInput("x", rows.shape, "FP32")
        tensor.set_data_from_numpy(rows)

        async def requests():
            for number in range(count):
                yield {"model_name": "tiny", "inputs": [tensor], "request_id": str(number)}

        found = []
        async for result, error in client.stream_infer(requests()):
            assert error is None
            found.append(result.get_response().id)
        return found


def test_tritonclient_streams_by_asyncio(server):
    assert asyncio.run(_ask_by_asyncio(server.grpc, 200)) == [str(number) for number in range(200)]


def test_tritonclient_streams_with_threads(server):
    answers, done = [], threading.Event()

    def told(result, error):
        answers.append(error or result.get_response().id)
        if len(answers) == 3:
            done.set()

    rows = np.zeros((1, 30), np.float32)
    with triton.InferenceServerClient(server.grpc) as client:
        client.start_stream(told)
        good, bad = triton.InferInput("x", rows.shape, "FP32"), triton.InferInput("y", rows.shape, "FP32")
        for tensor in (good, bad, good):
            tensor.set_data_from_numpy(rows)
            client.async_stream_infer("tiny", [tensor], request_id="r")
        assert done.wait(30)
        client.stop_stream()
    assert [isinstance(answer, InferenceServerException) for answer in answers] == [False, True, False]
