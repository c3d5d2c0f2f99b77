"""A store whose versions multiply by their own factor, and clients that check each answer by the version it names."""

import http.client
import json
import threading
import time
from collections import Counter
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save_model

from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec
from mlserve.wire import messages


def scale_onnx(path, factor, layers=0):
    """`x` float32 [batch, 2] -> `y` = factor * x. Each of `layers` takes 16 MB of memory, and adds nothing."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy")
    nodes = [helper.make_node("Mul", ["x", "factor"], ["scaled"])]
    weights = [numpy_helper.from_array(np.float32(factor), "factor")]
    current = "x"
    for number, (wide, narrow) in enumerate([(2, 2048), *[(2048, 2048)] * layers, (2048, 2)] if layers else []):
        nodes.append(helper.make_node("MatMul", [current, f"w{number}"], [f"h{number}"]))
        # Equal ones would be packed into one and the same memory.
        values = np.full((wide, narrow), 1e-4 / (number + 1), np.float32)
        weights.append(numpy_helper.from_array(values, f"w{number}"))
        current = f"h{number}"
    weights.append(numpy_helper.from_array(np.float32(0), "none"))
    nodes.append(helper.make_node("Mul", [current, "none"], ["nothing"]))
    nodes.append(helper.make_node("Add", ["scaled", "nothing"], ["y"]))
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


class Scaling:
    """One model of a store, whose version v multiplies by 10 v."""

    def __init__(self, root, name="m"):
        self.store, self.root, self.name = Store(root), root, name

    @property
    def folder(self):
        return self.root / self.name

    def publish(self, name="", layers=0):
        """The next version of the model (or of the one named), by its number."""
        name = name or self.name
        version = len(self.store.versions(name)) + 1
        with self.store.staging() as folder:
            made = folder / "made"
            made.mkdir()
            scale_onnx(made / MODEL_FILE, 10 * version, layers)
            specs = [(TensorSpec(tensor, "float32", ("batch", 2)),) for tensor in "xy"]
            self.store.add(Artifact(made, Manifest(variant="fp32", inputs=specs[0], outputs=specs[1])), name)
        return str(version)

    def model_file(self, version):
        return self.folder / str(version) / MODEL_FILE

    def promote(self, version, alias="production"):
        self.store.promote(self.name, int(version), alias)


@pytest.fixture(scope="session")
def scaling_of():
    """`scaling_of(root, name)`: one model of the store in `root`."""
    return Scaling


@pytest.fixture
def scaling(tmp_path):
    """A store with version 1 of the model `m`."""
    made = Scaling(tmp_path / "store")
    made.publish()
    return made


def fault_of(asked, number, version, answer):
    """What is wrong with `answer` to `number`, of which the server says that it is of `version`; "" for nothing.

    A request for a version must be answered by it, and every answer must be the one that the version it names gives.
    """
    if asked and asked.isdigit() and version != asked:
        return f"version {asked} was asked, {version} answered"
    if not np.array_equal(answer, np.float32([number, -number]) * 10 * int(version)):
        return f"{answer} is not what version {version} makes of {number}"
    return ""


@pytest.fixture(name="fault_of", scope="session")
def fault_of_fixture():
    return fault_of


PAUSE_S = 0.01  # between the requests of one client: what the load is made of is how many answers cross a swap


class Load:
    """What steady clients saw: how many answers of which version, what was lost, what was wrong."""

    def __init__(self):
        self.answers, self.lost, self.wrong = Counter(), [], []
        self.ending = threading.Event()
        self._lock = threading.Lock()

    def count(self, asked, number, version, answer):
        fault = fault_of(asked, number, version, answer)
        with self._lock:
            self.answers[version] += 1
            if fault:
                self.wrong.append(fault)

    def lose(self, what):
        with self._lock:
            self.lost.append(what)


def _rest(server, name, asked, load, seed):
    path = f"/v2/models/{name}/versions/{asked}/infer" if asked else f"/v2/models/{name}/infer"
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)
    number = seed
    while not load.ending.is_set():
        number = (number + 7) % 1000
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [number, -number]}
        try:
            connection.request("POST", path, json.dumps({"inputs": [tensor]}))
            reply = connection.getresponse()
            status, body = reply.status, reply.read()
        except OSError as error:
            load.lose(repr(error))
            connection.close()
            continue
        if status == 200:
            document = json.loads(body)
            load.count(asked, number, document["model_version"], np.float32(document["outputs"][0]["data"]))
        else:
            load.lose((status, body))
        time.sleep(PAUSE_S)
    connection.close()


def _grpc(server, name, asked, load, seed):
    options = [("grpc.use_local_subchannel_pool", 1)]
    number = seed
    with grpc.insecure_channel(server.grpc, options=options) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        while not load.ending.is_set():
            number = (number + 7) % 1000
            request = messages.ModelInferRequest(model_name=name, model_version=asked)
            request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
            request.raw_input_contents.append(np.float32([number, -number]).tobytes())
            try:
                answer = messages.ModelInferResponse.FromString(infer(request.SerializeToString(), timeout=30))
                found = np.frombuffer(answer.raw_output_contents[0], np.float32)
                load.count(asked, number, answer.model_version, found)
            except grpc.RpcError as error:
                load.lose(f"{error.code()}: {error.details()}")
            time.sleep(PAUSE_S)


@pytest.fixture(scope="session")
def steady_load():
    """`with steady_load(server, versions) as load`: a REST and a gRPC client for each of `versions` ("" for none).

    They ask the model `m`, or the one named.
    """

    @contextmanager
    def start(server, versions, name="m"):
        load = Load()
        work = [(client, version) for version in versions for client in (_rest, _grpc)]
        threads = [
            threading.Thread(target=client, args=(server, name, version, load, 31 * number), daemon=True)
            for number, (client, version) in enumerate(work)
        ]
        for thread in threads:
            thread.start()
        try:
            yield load
        finally:
            load.ending.set()
            for thread in threads:
                thread.join(60)

    return start


@pytest.fixture(scope="session")
def index_of():
    """`index_of(server)` -> `{(name, version): (state, reason)}`, as one of its workers tells."""

    def ask(server):
        status, _, body = server.request("POST", "/v2/repository/index", b"{}")
        assert status == 200, body
        return {
            (entry["name"], entry["version"]): (entry["state"], entry.get("reason", "")) for entry in json.loads(body)
        }

    return ask


@pytest.fixture(scope="session")
def scale_of():
    """`scale_of(server, path)` -> what `/v2/models/PATH` multiplies by; the status where it does not answer."""

    def ask(server, path="m"):
        status, document = server.infer("", {"x": ("FP32", [[1.0, 1.0]])}, path=f"/v2/models/{path}/infer")
        return document["outputs"][0]["data"][0] if status == 200 else status

    return ask


@pytest.fixture(scope="session")
def everywhere(until):
    """`everywhere(question, answer)`: waits until several connections in a row, and so all workers, answer so."""

    def wait(question, answer, times=12, limit_s=20.0):
        until(lambda: [question() for _ in range(times)] == [answer] * times, limit_s)

    return wait
