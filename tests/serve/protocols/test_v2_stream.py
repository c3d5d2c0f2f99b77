"""ModelStreamInfer by both transports: answers in the order of the requests, errors that cost one of them, and clients
that leave.
"""

import asyncio
import queue
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from mlserve.serve.batching.batcher import Batch
from mlserve.serve.batching.future import Answered
from mlserve.serve.protocols.dialect import InferCall
from mlserve.serve.protocols.v2_stream import stream_of
from mlserve.wire import messages
from mlserve.wire.signature import InferRequest

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"


@pytest.fixture(scope="module", params=["native", "grpcio"])
def server(request, serving_settings, tiny_onnx, slow_onnx):
    with serving_settings(tiny_onnx, slow_onnx, grpc_transport=request.param) as made:
        yield made


@pytest.fixture
def stream(server):
    """`(client, answers)`: tritonclient with an open stream, and the queue that its answers come into."""
    answers = queue.Queue()
    with triton.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        yield client, answers
        client.stop_stream()
        assert client.is_server_ready()


def tensor(rows):
    made = triton.InferInput("x", list(rows.shape), "FP32")
    made.set_data_from_numpy(rows)
    return made


def rows_of(number):
    return np.full((1 + number % 3, 30), number / 9, np.float32)


def check(result, number, reference):
    assert result.get_response().id == str(number)
    np.testing.assert_allclose(result.as_numpy("scores"), reference(rows_of(number)), rtol=1e-5)


def test_many_requests_of_one_stream_are_answered_in_their_order(stream, reference):
    client, answers = stream
    for number in range(300):
        client.async_stream_infer("tiny", [tensor(rows_of(number))], request_id=str(number))
    for number in range(300):
        result, error = answers.get(timeout=20)
        assert error is None
        check(result, number, reference)


def test_a_wrong_request_costs_the_stream_one_error(stream, reference):
    client, answers = stream
    client.async_stream_infer("tiny", [tensor(rows_of(0))], request_id="0")
    client.async_stream_infer("nobody", [tensor(rows_of(1))], request_id="1")
    client.async_stream_infer("tiny", [tensor(np.zeros((1, 29), np.float32))], request_id="2")
    client.async_stream_infer("tiny", [tensor(rows_of(3))], request_id="3", sequence_id=5)
    client.async_stream_infer("tiny", [tensor(rows_of(4))], request_id="4")
    found = [answers.get(timeout=20) for _ in range(5)]
    check(found[0][0], 0, reference)
    messages_of = [str(error) for _, error in found[1:4]]
    assert "Request for unknown model: 'nobody' is not found" in messages_of[0]
    assert "has shape [1, 29] for model 'tiny'" in messages_of[1]
    assert "keeps no state between requests" in messages_of[2]
    check(found[4][0], 4, reference)


def test_every_answer_is_a_final_one_for_who_asks(stream):
    client, answers = stream
    client.async_stream_infer("tiny", [tensor(rows_of(0))], enable_empty_final_response=True)
    client.async_stream_infer("tiny", [tensor(rows_of(0))])
    asked, plain = (answers.get(timeout=20)[0].get_response() for _ in range(2))
    assert asked.parameters["triton_final_response"].bool_param
    assert not plain.parameters


def test_a_slow_request_holds_up_its_own_stream_alone(stream, server, reference):
    client, answers = stream
    turns = triton.InferInput("turns", [1, 1], "FP32")
    turns.set_data_from_numpy(np.full((1, 1), 300, np.float32))
    client.async_stream_infer("slow", [turns], request_id="slow")
    client.async_stream_infer("tiny", [tensor(rows_of(1))], request_id="1")
    with triton.InferenceServerClient(server.grpc) as other:
        answer = other.infer("tiny", [tensor(rows_of(2))])
        np.testing.assert_allclose(answer.as_numpy("scores"), reference(rows_of(2)), rtol=1e-5)
    assert answers.get(timeout=30)[0].get_response().id == "slow"
    check(answers.get(timeout=30)[0], 1, reference)


def test_errors_of_a_stream_carry_the_request_s_id_and_garbage_ends_nothing(server):
    wrong = messages.ModelInferRequest(model_name="nobody", id="mine").SerializeToString()
    with grpc.insecure_channel(server.grpc) as channel:
        replies = channel.stream_stream(METHOD)(iter([b"\xff\xff", wrong, b"", wrong]), timeout=20)
        told = [messages.ModelStreamInferResponse.FromString(reply) for reply in replies]
    assert told[0].error_message == "the message is no ModelInferRequest"
    assert [reply.infer_response.id for reply in told] == ["", "mine", "", "mine"]
    assert all("Request for unknown model" in reply.error_message for reply in told[1:])


def test_a_stream_without_requests_ends_without_answers(server):
    with grpc.insecure_channel(server.grpc) as channel:
        assert list(channel.stream_stream(METHOD)(iter([]), timeout=20)) == []


def test_a_client_that_leaves_in_the_middle_disturbs_nobody(server, reference):
    for _ in range(5):
        with triton.InferenceServerClient(server.grpc) as client:
            client.start_stream(lambda **_: None)
            for number in range(100):
                client.async_stream_infer("tiny", [tensor(rows_of(number))])
            client.stop_stream(cancel_requests=True)
    with triton.InferenceServerClient(server.grpc) as client:
        result = client.infer("tiny", [tensor(rows_of(1))])
        np.testing.assert_allclose(result.as_numpy("scores"), reference(rows_of(1)), rtol=1e-5)


def test_tritonclient_s_asyncio_client_streams_too(server, reference):
    async def requests():
        for number in range(50):
            yield {"model_name": "tiny", "inputs": [tensor(rows_of(number))], "request_id": str(number)}

    async def ask_all():
        async with triton_aio.InferenceServerClient(server.grpc) as client:
            number = 0
            async for result, error in client.stream_infer(requests()):
                assert error is None
                check(result, number, reference)
                number += 1
            assert number == 50

    asyncio.run(ask_all())


def test_requests_of_a_stream_are_counted(server, stream, until):
    client, answers = stream

    def counted(outcome):
        return server.counted("mlserve_requests_total", model="tiny", protocol="v2-grpc", outcome=outcome)

    answered, refused = counted("ok"), counted("InvalidRequest")
    for rows in (rows_of(1), np.zeros((1, 29), np.float32), rows_of(2)):
        client.async_stream_infer("tiny", [tensor(rows)])
        answers.get(timeout=20)
    until(lambda: (counted("ok"), counted("InvalidRequest")) == (answered + 2, refused + 1))


class HeldBack:
    """In the place of `Answering`: answers only when told to, and knows how much was asked of it at once."""

    def __init__(self):
        self.now = self.most = 0
        self.go = asyncio.Event()

    async def infer(self, *_):
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.go.wait()
        finally:
            self.now -= 1
        return Answered({}, Batch(1, 0.0, 0.0))


def answers_to(held, payloads):
    """The stream's own generator, behind which nothing is computed."""
    call = InferCall(
        "/a/b",
        "test",
        messages.ModelInferRequest.FromString,
        lambda *_: None,
        lambda message, _: InferRequest({}, 1, message.id),
        lambda _, request, __: messages.ModelInferResponse(id=request.id).SerializeToString(),
    )

    async def requests():
        for payload in payloads:
            yield payload

    return stream_of(call).answer(SimpleNamespace(check_serving=lambda: None), held, requests())


@pytest.mark.parametrize(("padding_bytes", "most"), [(0, 64), (30 << 20, 2), (70 << 20, 1)])
def test_only_so_much_of_a_stream_runs_at_once(padding_bytes, most):
    padded = "p" * padding_bytes
    payloads = [
        messages.ModelInferRequest(id=str(number), model_name=padded).SerializeToString()
        for number in range(100 if not padding_bytes else 4)
    ]

    async def scenario():
        held = HeldBack()
        answers = answers_to(held, payloads)
        first = asyncio.ensure_future(anext(answers))
        for _ in range(300):
            await asyncio.sleep(0)
        assert held.now == most
        held.go.set()
        found = [await first, *[answer async for answer in answers]]
        assert held.most == most
        return [messages.ModelStreamInferResponse.FromString(answer).infer_response.id for answer in found]

    assert asyncio.run(scenario()) == [str(number) for number in range(len(payloads))]


def test_who_leaves_a_stream_leaves_nothing_running():
    async def scenario():
        held = HeldBack()
        answers = answers_to(held, [b""] * 10)
        first = asyncio.ensure_future(anext(answers))
        for _ in range(50):
            await asyncio.sleep(0)
        assert held.now == 10
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await answers.aclose()
        for _ in range(10):
            await asyncio.sleep(0)
        assert held.now == 0

    asyncio.run(scenario())
