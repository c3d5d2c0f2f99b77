"""Servers that several dialects' tests share, and stores that clients may load from."""

import http.client
import importlib.util
import json
import socket
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from mlserve.serve.settings import Follow, NamedRoute, StoreChoice

VERTEX_HEALTH = "/v1/endpoints/1/deployedModels/2"
VERTEX_PATH = f"{VERTEX_HEALTH}:predict"


@pytest.fixture(scope="module")
def lone_server(serving_settings, tiny_onnx):
    """One model alone, the tiny MLP, and a path for it in each cloud's dialect."""
    routes = tuple(
        NamedRoute(path, "tiny", "", dialect)
        for path, dialect in ((VERTEX_PATH, "vertex"), ("/sm/tiny", "sagemaker"), ("/az/tiny", "azure"))
    )
    with serving_settings(tiny_onnx, routes=routes, health_paths=(VERTEX_HEALTH,)) as server:
        yield server


@pytest.fixture(scope="session")
def mixed_onnx(tmp_path_factory):
    """A row of a table: `age` float32 [batch, 1], `city` text [batch, 1], `visits` int64 [batch], each returned."""
    from onnx import TensorProto, helper, save_model

    columns = {
        "age": (TensorProto.FLOAT, ["batch", 1]),
        "city": (TensorProto.STRING, ["batch", 1]),
        "visits": (TensorProto.INT64, ["batch"]),
    }
    nodes = [helper.make_node("Identity", [name], [f"same_{name}"]) for name in columns]
    inputs = [helper.make_tensor_value_info(name, *kind) for name, kind in columns.items()]
    outputs = [helper.make_tensor_value_info(f"same_{name}", *kind) for name, kind in columns.items()]
    path = tmp_path_factory.mktemp("models") / "mixed.onnx"
    graph = helper.make_graph(nodes, "mixed", inputs, outputs)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def rows_server(serving_settings, tiny_onnx, echo_onnx, mixed_onnx):
    """The tiny MLP, the echo of every type, and a model whose inputs are a table's columns."""
    with serving_settings(tiny_onnx, echo_onnx, mixed_onnx) as server:
        yield server


@pytest.fixture(scope="session")
def made_store():
    """The module that makes a store of models that read texts and images."""
    path = Path(__file__).parents[1] / "pages" / "made_store.py"
    spec = importlib.util.spec_from_file_location("made_store", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def task_server(serving_settings, made_store, tmp_path_factory):
    """`spam`, which reads texts, and `digits`, which reads images; each has a path in each cloud's dialect."""
    root = tmp_path_factory.mktemp("tasks") / "store"
    made_store.make_store(root)
    routes = tuple(
        NamedRoute(f"/{dialect}/{model}", model, "", dialect)
        for dialect in ("vertex", "sagemaker", "azure")
        for model in ("spam", "digits")
    )
    choice = StoreChoice(str(root), (Follow("*"),))
    with serving_settings(store=choice, routes=routes) as server:
        yield server


@pytest.fixture
def posted():
    """`posted(server, path, body, headers...)` -> `(status, document)`, the answer's JSON."""

    def post(server, path, body, method="POST", **headers):
        if not isinstance(body, bytes | str):
            body = json.dumps(body)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        status, _, answer = server.request(method, path, body, named)
        return status, json.loads(answer)

    return post


def _doubling_store(root):
    """A store in `root`: `spam` 1 and `twice` 1 to 3, each of which multiplies `x` [batch, 2] by 10 times its version.

    `twice` 3 is damaged: its file is not the one of its manifest.
    """
    from onnx import TensorProto, helper, numpy_helper, save_model

    from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest
    from mlserve.model.store import Store
    from mlserve.model.tensors import TensorSpec

    store = Store(root)
    for name, factor in (("spam", 10), ("twice", 10), ("twice", 20), ("twice", 30)):
        x, y = (helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["batch", 2]) for tensor in "xy")
        weight = numpy_helper.from_array(np.float32(factor), "factor")
        graph = helper.make_graph([helper.make_node("Mul", ["x", "factor"], ["y"])], "g", [x], [y], [weight])
        specs = [(TensorSpec(tensor, "float32", ("batch", 2)),) for tensor in "xy"]
        with store.staging() as folder:
            made = folder / "made"
            made.mkdir()
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
            save_model(model, made / MODEL_FILE)
            store.add(Artifact(made, Manifest(variant="fp32", inputs=specs[0], outputs=specs[1])), name)
    (store.root / "twice" / "3" / MODEL_FILE).write_bytes(b"damaged")
    store.promote("twice", 1)
    return root


class ManagedServer:
    """A server that loads and unloads what it is told, and its management port."""

    def __init__(self, server, port):
        self.server, self.port = server, port

    def ask(self, method, path, body=None, *, public=False):
        """`(status, document)` of one request to the management port, or to the public one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.http_port if public else self.port, timeout=60)
        try:
            connection.request(method, path, body)
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())
        finally:
            connection.close()

    def factor(self, model):
        """What `/predictions/MODEL` multiplies by; the status where it does not answer."""
        status, answer = self.ask("POST", f"/predictions/{model}", "[1, 1]", public=True)
        return answer[0] if status == 200 else status


@pytest.fixture(scope="session")
def managing(serving_settings, tmp_path_factory):
    """`with managing() as server`: explicit control over a store, of which `twice` 1 is served at first."""

    @contextmanager
    def start():
        root = _doubling_store(tmp_path_factory.mktemp("managed") / "store")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        choice = StoreChoice(str(root), (Follow("twice"),), every_s=0.05)
        with serving_settings(store=choice, model_control="explicit", management_port=port) as server:
            yield ManagedServer(server, port)

    return start


@pytest.fixture
def managed(managing):
    """Such a server, for one test to change."""
    with managing() as server:
        yield server


@pytest.fixture(scope="module")
def managed_unchanged(managing):
    """Such a server for all tests of a module that leave it as it was: it serves `twice` 1 alone."""
    with managing() as server:
        yield server
        assert server.ask("GET", "/models") == (200, {"models": [{"modelName": "twice", "modelUrl": "twice@1"}]})
