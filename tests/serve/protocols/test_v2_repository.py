"""The model repository over both wires: what there is, loading and unloading, and what a client may not change."""

import json
import shutil

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from mlserve.model.artifact import Artifact, Manifest
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec
from mlserve.serve.settings import StoreChoice

ROWS = np.random.default_rng(0).standard_normal((2, 30)).astype(np.float32)
INPUT, OUTPUT = TensorSpec("x", "float32", ("batch", 30)), TensorSpec("scores", "float32", ("batch", 2))


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_onnx):
    """A store with the model `tiny`, and `broken`, whose file is none."""
    store = Store(tmp_path_factory.mktemp("repository"))
    for name in ("tiny", "broken"):
        with store.staging() as folder:
            made = folder / "made"
            made.mkdir()
            shutil.copy(tiny_onnx, made / "model.onnx")
            if name == "broken":
                (made / "model.onnx").write_bytes(b"no model at all")
            store.add(Artifact(made, Manifest(variant="fp32", inputs=(INPUT,), outputs=(OUTPUT,))), name)
    return store.root


@pytest.fixture(scope="module", params=["native", "grpcio"])
def server(request, serving_settings, root):
    """A server that serves nothing until a client loads it."""
    choice = StoreChoice(str(root), ())
    with serving_settings(store=choice, model_control="explicit", grpc_transport=request.param) as made:
        yield made


@pytest.fixture(params=["rest", "grpc"])
def client(request, server):
    """tritonclient of either wire; afterwards nothing is loaded."""
    made = (
        triton_http.InferenceServerClient(server.http)
        if request.param == "rest"
        else triton_grpc.InferenceServerClient(server.grpc)
    )
    with made:
        yield made
        made.unload_model("tiny")


def index(client):
    """`{name: state}`."""
    if isinstance(client, triton_http.InferenceServerClient):
        return {entry["name"]: entry["state"] for entry in client.get_model_repository_index()}
    return {entry.name: entry.state for entry in client.get_model_repository_index().models}


def infer(client, reference):
    triton = triton_http if isinstance(client, triton_http.InferenceServerClient) else triton_grpc
    tensor = triton.InferInput("x", [2, 30], "FP32")
    tensor.set_data_from_numpy(ROWS)
    np.testing.assert_allclose(client.infer("tiny", [tensor]).as_numpy("scores"), reference(ROWS), rtol=1e-5)


def test_a_model_answers_once_it_is_loaded_and_no_longer_once_it_is_unloaded(client, reference):
    assert not client.is_model_ready("tiny")
    for _ in range(2):  # loaded a second time it is as it was
        client.load_model("tiny")
        assert index(client)["tiny"] == "READY"
        assert client.is_model_ready("tiny")
        infer(client, reference)
    client.unload_model("tiny")
    assert not client.is_model_ready("tiny")
    with pytest.raises(InferenceServerException, match="Request for unknown model: 'tiny'"):
        infer(client, reference)


def test_a_model_that_does_not_load_says_why_and_costs_the_others_nothing(client, reference, server):
    client.load_model("tiny")
    with pytest.raises(InferenceServerException, match="failed to load 'broken'") as caught:
        client.load_model("broken")
    assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    assert "/" not in caught.value.message()
    assert index(client)["tiny"] == "READY"
    infer(client, reference)
    status, _, body = server.request("POST", "/v2/repository/index", json.dumps({"ready": True}))
    assert (status, [entry["name"] for entry in json.loads(body)]) == (200, ["tiny"])


@pytest.mark.parametrize("name", ["nobody", "..", ".hidden", "a" * 300])
def test_a_model_that_the_store_lacks_is_not_found(client, name):
    with pytest.raises(InferenceServerException, match=r"failed to load '.*', failed to poll from model repository"):
        client.load_model(name)


def test_what_would_change_a_model_on_its_way_is_refused(client):
    with pytest.raises(InferenceServerException, match="parameter 'config' is refused: a model is loaded as it was"):
        client.load_model("tiny", config=json.dumps({"max_batch_size": 1}))
    with pytest.raises(InferenceServerException, match="is refused: a model is loaded"):
        client.load_model("tiny", config="{}", files={"file:1/model.onnx": b"bytes"})
    assert not client.is_model_ready("tiny")


@pytest.mark.parametrize("name", ["../tiny", "/etc/passwd", "tiny/..", "a\\b"])
def test_a_name_that_leads_out_of_the_store_is_refused(server, name):
    with (
        triton_grpc.InferenceServerClient(server.grpc) as client,
        pytest.raises(InferenceServerException, match="model name must not contain path traversal characters"),
    ):
        client.load_model(name)


def test_an_empty_name_is_refused(server):
    with (
        triton_grpc.InferenceServerClient(server.grpc) as client,
        pytest.raises(InferenceServerException, match="Model name cannot be empty"),
    ):
        client.load_model("")


@pytest.mark.parametrize("page", ["index", "models/tiny/load", "models/tiny/unload"])
@pytest.mark.parametrize("body", [b"[]", b"no json", b"\xff", b'{"ready":1,"parameters":1}', b"[" * 100_000])
def test_a_body_that_is_none_is_refused(server, page, body):
    status, _, answer = server.request("POST", f"/v2/repository/{page}", body)
    assert status == 400
    assert "the request body is not what this page takes" in json.loads(answer)["error"]
    assert server.request("POST", f"/v2/repository/{page}", b"")[0] == 200


def test_where_clients_do_not_choose_they_are_told_how_to(tiny_server):
    for client in (
        triton_http.InferenceServerClient(tiny_server.http),
        triton_grpc.InferenceServerClient(tiny_server.grpc),
    ):
        with client:
            for change in (client.load_model, client.unload_model):
                with pytest.raises(
                    InferenceServerException, match="explicit model load / unload is not allowed"
                ) as caught:
                    change("tiny")
                assert caught.value.status() in ("403", "StatusCode.PERMISSION_DENIED")
            assert client.is_model_ready("tiny")


def test_there_is_one_repository_and_it_has_no_name(tiny_server):
    with triton_grpc.InferenceServerClient(tiny_server.grpc) as client:
        stub = client._client_stub  # tritonclient itself never sends a repository's name
        request = triton_grpc.service_pb2.RepositoryIndexRequest(repository_name="other")
        with pytest.raises(Exception, match="'repository_name' specification is not supported"):
            stub.RepositoryIndex(request)
        ready = stub.RepositoryIndex(triton_grpc.service_pb2.RepositoryIndexRequest(ready=True)).models
        assert {(model.name, model.version, model.state) for model in ready} >= {("tiny", "1", "READY")}
