"""What Triton offers and this server does not is answered with the reason, by tritonclient's own calls."""

import json

import grpc
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

CALLS = [
    (lambda client: client.get_system_shared_memory_status(), "shared memory is not supported"),
    (lambda client: client.get_system_shared_memory_status("region"), "shared memory is not supported"),
    (lambda client: client.register_system_shared_memory("region", "/key", 64), "shared memory is not supported"),
    (lambda client: client.unregister_system_shared_memory("region"), "shared memory is not supported"),
    (lambda client: client.unregister_system_shared_memory(), "shared memory is not supported"),
    (lambda client: client.get_cuda_shared_memory_status(), "shared memory is not supported"),
    (lambda client: client.register_cuda_shared_memory("region", b"aGFuZGxl", 0, 64), "shared memory is not supported"),
    (lambda client: client.unregister_cuda_shared_memory(), "shared memory is not supported"),
    (lambda client: client.get_trace_settings("tiny"), "tracing is set where the server is started"),
    (lambda client: client.update_trace_settings(settings={"trace_file": "/tmp/x"}), "tracing is set where"),
    (lambda client: client.get_log_settings(), "logging is set where the server is started"),
    (lambda client: client.update_log_settings({"log_file": "/tmp/x"}), "logging is set where the server is started"),
]


@pytest.mark.parametrize(("ask", "reason"), CALLS)
def test_tritonclient_is_told_why_not(tiny_server, ask, reason):
    with triton_http.InferenceServerClient(tiny_server.http) as client:
        with pytest.raises(InferenceServerException, match=reason) as caught:
            ask(client)
        assert caught.value.status() == "404"
        assert client.is_server_ready()
    with triton_grpc.InferenceServerClient(tiny_server.grpc) as client:
        with pytest.raises(InferenceServerException, match=reason) as caught:
            ask(client)
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
        assert client.is_server_ready()


def test_a_tensor_in_shared_memory_is_refused_on_both_wires(tiny_server):
    for triton, address in ((triton_http, tiny_server.http), (triton_grpc, tiny_server.grpc)):
        tensor = triton.InferInput("x", [1, 30], "FP32")
        tensor.set_shared_memory("region", 120)
        with (
            triton.InferenceServerClient(address) as client,
            pytest.raises(InferenceServerException, match="tensor 'x': shared memory is not supported"),
        ):
            client.infer("tiny", [tensor])


def test_garbage_is_told_the_same(tiny_server):
    status, _, body = tiny_server.request("POST", "/v2/systemsharedmemory/region/..%00/register", b"\xff" * 100)
    assert (status, json.loads(body)["error"]) == (404, "shared memory is not supported; send tensors as raw bytes")
    with grpc.insecure_channel(tiny_server.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/SystemSharedMemoryRegister")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff" * 100, timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
