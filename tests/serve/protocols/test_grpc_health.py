"""grpc.health.v1 by both transports, as load balancers use it."""

import signal
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module", params=["native", "grpcio"])
def server(request, serving_settings, tiny_onnx):
    with serving_settings(tiny_onnx, grpc_transport=request.param) as made:
        made.transport = request.param
        yield made


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("name", ["", "inference.GRPCInferenceService"])
def test_the_server_is_healthy(stub, name):
    assert stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=20).status == SERVING


def test_another_service_is_not_found(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=20)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_who_watches_is_told_at_once_and_of_an_unknown_service_that_it_is_none(stub):
    for name, status in (("", SERVING), ("other", health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)):
        watching = stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=20)
        assert next(watching).status == status
        watching.cancel()


def test_who_watches_is_told_when_the_server_drains(serving_settings, slow_onnx, server):
    with (
        serving_settings(slow_onnx, grpc_transport=server.transport) as draining,
        grpc.insecure_channel(draining.grpc) as channel,
    ):
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watching).status == SERVING
        connection = draining.connect()
        body = b'{"inputs":[{"name":"turns","datatype":"FP32","shape":[1,1],"data":[1000]}]}'
        connection.sendall(
            b"POST /v2/models/slow/infer HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        time.sleep(0.1)  # the request is being computed, and keeps the server from ending at once
        draining.process.send_signal(signal.SIGTERM)
        assert next(watching).status == NOT_SERVING
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        connection.close()
        assert draining.process.wait(30) == 0
