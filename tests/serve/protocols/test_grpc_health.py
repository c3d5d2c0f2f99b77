"""grpc.health.v1 by both transports, as load balancers use it."""

import asyncio
import signal
import time
from contextlib import AsyncExitStack, aclosing

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mlserve.errors import Overloaded
from mlserve.serve.catalog import Catalog
from mlserve.serve.protocols.grpc_health import SLOW_CALLS
from mlserve.serve.service import Service

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


# Without a server


async def _one(payload):
    yield payload


def watch(service, name=""):
    (call,) = SLOW_CALLS
    return call.answer(service, None, _one(health_pb2.HealthCheckRequest(service=name).SerializeToString()))


async def status_of(watching):
    return health_pb2.HealthCheckResponse.FromString(await anext(watching)).status


class CountedService(Service):
    """Counts how often it is asked whether it is ready."""

    asked = 0

    @property
    def ready(self):
        self.asked += 1
        return super().ready


def test_many_who_watch_are_told_of_every_change_and_cost_no_more_looks_than_one():
    async def watched():
        service = CountedService(Catalog())
        async with AsyncExitStack() as stack:
            watching = [await stack.enter_async_context(aclosing(watch(service))) for _ in range(200)]
            assert {await status_of(each) for each in watching} == {SERVING}
            nexts = [asyncio.ensure_future(status_of(each)) for each in watching]
            await asyncio.sleep(0)
            service.asked = 0
            await asyncio.sleep(0.55)
            assert 2 <= service.asked <= 10
            for leaving, status in ((True, NOT_SERVING), (False, SERVING)):
                service.leaving = leaving
                async with asyncio.timeout(10):
                    assert set(await asyncio.gather(*nexts)) == {status}
                nexts = [asyncio.ensure_future(status_of(each)) for each in watching]
            for each in nexts:
                each.cancel()
            await asyncio.wait(nexts)
        await asyncio.sleep(0.1)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(watched())


def test_a_change_right_after_the_first_word_is_told():
    async def watched():
        service = Service(Catalog())
        async with aclosing(watch(service)) as watching, asyncio.timeout(10):
            assert await status_of(watching) == SERVING
            service.draining = True
            assert await status_of(watching) == NOT_SERVING

    asyncio.run(watched())


@pytest.mark.parametrize("name", ["", "other"])
def test_so_many_may_watch_and_one_more_when_one_has_left(name):
    async def watched():
        service = Service(Catalog())
        async with AsyncExitStack() as stack:
            watching = [await stack.enter_async_context(aclosing(watch(service, name))) for _ in range(1024)]
            for each in watching:
                await anext(each)
            with pytest.raises(Overloaded, match="1024 calls of Watch are open already"):
                await anext(watch(service))
            await watching.pop().aclose()
            assert await status_of(await stack.enter_async_context(aclosing(watch(service)))) == SERVING

    asyncio.run(watched())
