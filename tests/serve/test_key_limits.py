"""Keys that may ask only so much, at a server: what is answered beyond it, over every way to ask."""

import http.client
import json

import grpc
import pytest

from mlserve.serve.allowance import Allowance
from mlserve.serve.keys import add_key, new_key
from mlserve.wire import messages

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 30], "data": [0.0] * 30}]}).encode()
INFER = "/v2/models/tiny/infer"
MODEL_INFER = f"/{messages.SERVICE}/ModelInfer"
SCOPES = ("infer", "metadata")


ALLOWANCES = {
    **{each: Allowance(rate_per_s=0.01, burst=5) for each in ("fast lane", "slow lane", "a page", "not allowed")},
    "free": None,
    "shared": Allowance(quota_per_day=40),
    "waits": Allowance(rate_per_s=0.1, burst=1),
    "streams": Allowance(quota_per_day=3),
    "quick": Allowance(rate_per_s=2.0, burst=1),
    "changing": Allowance(quota_per_day=1),
}


class Limited:
    """A server with a key for each of `ALLOWANCES`."""

    def __init__(self, server, file, keys):
        self.server, self.file, self.keys = server, file, keys

    def ask(self, key, times, path=INFER, method="POST"):
        """`[(status, retry-after)]` of requests on one connection, which is never made anew."""
        connection, found = http.client.HTTPConnection("127.0.0.1", self.server.http_port, timeout=30), []
        connection.connect()
        socket = connection.sock
        for _ in range(times):
            connection.request(method, path, BODY if method == "POST" else None, {"authorization": f"Bearer {key}"})
            reply = connection.getresponse()
            body = reply.read()
            assert reply.status == 200 or (len(body) < 300 and key.encode() not in body)
            found.append((reply.status, reply.headers["retry-after"]))
            assert connection.sock is socket
        connection.close()
        return found

    def call(self, key, times):
        """The same over gRPC: `[(code, retry-after)]`."""
        tensor = messages.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 30])
        tensor.contents.fp32_contents.extend([0.0] * 30)
        request = messages.ModelInferRequest(model_name="tiny", inputs=[tensor]).SerializeToString()
        found = []
        with grpc.insecure_channel(self.server.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            ask = channel.unary_unary(MODEL_INFER)
            for _ in range(times):
                try:
                    ask(request, metadata=(("authorization", f"Bearer {key}"),), timeout=30)
                    found.append((grpc.StatusCode.OK, None))
                except grpc.RpcError as error:
                    told = dict(error.trailing_metadata() or ())
                    found.append((error.code(), told.get("retry-after")))
        return found


@pytest.fixture(scope="module", params=["native", "grpcio"])
def limited(request, serving_settings, tiny_onnx, tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    made = {name: new_key(name.replace(" ", "-"), SCOPES, "", allowance) for name, allowance in ALLOWANCES.items()}
    for new in made.values():
        add_key(file, new.key)
    # Two workers: what one lets through counts for the other.
    with serving_settings(tiny_onnx, grpc_transport=request.param, keys_file=str(file), workers=2) as server:
        yield Limited(server, file, {name: new.secret for name, new in made.items()})


PAGES = {
    "fast lane": (INFER, "POST"),
    "slow lane": ("/v2/models/t%69ny/infer?x=1", "POST"),
    "a page": ("/v2/models/tiny", "GET"),
}


@pytest.mark.parametrize("way", PAGES)
def test_what_is_too_much_is_refused_and_the_connection_kept(limited, way):
    found = limited.ask(limited.keys[way], 9, *PAGES[way])
    assert [status for status, _ in found] == [200] * 5 + [429] * 4
    assert all(90 <= int(seconds) <= 100 for status, seconds in found if status == 429)
    assert limited.ask(limited.keys["free"], 9, *PAGES[way]) == [(200, None)] * 9  # the negative control


def test_what_a_key_does_not_allow_counts_as_well(limited):
    found = limited.ask(limited.keys["not allowed"], 7, "/v2/repository/models/tiny/load")
    assert [status for status, _ in found] == [403] * 5 + [429] * 2


def test_workers_and_protocols_count_together(limited):
    key = limited.keys["shared"]
    passed = 0
    for number in range(12):  # connections of their own, so that both workers are asked
        found = limited.ask(key, 3) if number % 2 else limited.call(key, 3)
        passed += sum(status in (200, grpc.StatusCode.OK) for status, _ in found)
    assert passed == 36
    assert [code for code, _ in limited.call(key, 6)] == [grpc.StatusCode.OK] * 4 + [
        grpc.StatusCode.RESOURCE_EXHAUSTED
    ] * 2
    ((status, seconds),) = limited.ask(key, 1)
    assert status == 429
    assert 1 <= int(seconds) <= 86_400


def test_grpc_says_when_to_come_again(limited):
    key = limited.keys["waits"]
    (ok, _), (refused, seconds) = limited.call(key, 2)
    assert (ok, refused) == (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert 5 < int(seconds) <= 10


def test_each_message_of_a_stream_counts_and_the_stream_does_not(limited):
    key = limited.keys["streams"]
    message = messages.ModelInferRequest(model_name="absent").SerializeToString()
    with grpc.insecure_channel(limited.server.grpc) as channel:
        stream = channel.stream_stream(f"/{messages.SERVICE}/ModelStreamInfer")
        answers = stream(iter([message] * 5), metadata=(("x-api-key", key),), timeout=30)
        got = []
        with pytest.raises(grpc.RpcError) as refused:
            got.extend(answer for answer in answers)  # keeps those before the error
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert [code for code, _ in limited.call(key, 1)] == [grpc.StatusCode.RESOURCE_EXHAUSTED]


def test_time_gives_it_back_and_public_pages_cost_nothing(limited, until):
    key = limited.keys["quick"]
    assert [status for status, _ in limited.ask(key, 2)] == [200, 429]
    assert [status for status, _ in limited.ask(key, 5, "/v2/health/live", "GET")] == [200] * 5
    until(lambda: limited.ask(key, 1)[0][0] == 200, limit_s=5)


def test_a_changed_limit_counts_soon(limited, until):
    key = limited.keys["changing"]
    assert [status for status, _ in limited.ask(key, 2)] == [200, 429]
    document = json.loads(limited.file.read_text())
    for each in document["keys"]:
        each["quota_per_day"] = 50 if each["name"] == "changing" else each.get("quota_per_day", 0)
    limited.file.write_text(json.dumps(document))
    until(lambda: limited.ask(key, 1)[0][0] == 200)
