"""Real servers: started as a user starts them, or from settings the command line does not offer, and always ended."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

_FROM_SETTINGS = """
import sys, msgspec
from mlserve.serve.settings import ServeSettings
from mlserve.serve.supervisor import run_server

def ready(endpoints):
    sys.stdout.buffer.write(msgspec.json.encode(endpoints) + b"\\n")
    sys.stdout.flush()

if __name__ == "__main__":
    run_server(msgspec.json.decode(sys.argv[1], type=ServeSettings), ready)
"""


class RunningServer:
    """A server that was found ready, and the plainest ways to talk to it."""

    def __init__(self, process, ready, log: Path) -> None:
        self.process, self.log_path = process, log
        self.grpc, self.workers = ready["grpc"], list(ready["workers"])
        self.http = ready["http"].removeprefix("http://")
        self.http_port, self.grpc_port = (int(address.rpartition(":")[2]) for address in (self.http, self.grpc))
        self.management_port = int(ready["management"].rpartition(":")[2]) if ready.get("management") else None

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.http_port), timeout=30)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def request(self, method, path, body=None, headers=None):
        """`(status, headers, body)` of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            reply = connection.getresponse()
            return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
        finally:
            connection.close()

    def get_json(self, path):
        status, _, body = self.request("GET", path)
        assert status == 200, body
        return json.loads(body)

    def infer(self, model, inputs, path=None, **extra):
        """`(status, document)`; `inputs` are `{name: (datatype, nested list)}`."""
        tensors = [
            {"name": name, "datatype": datatype, "shape": list(np.shape(values)), "data": values}
            for name, (datatype, values) in inputs.items()
        ]
        body = json.dumps({"inputs": tensors, **extra})
        status, _, answer = self.request("POST", path or f"/v2/models/{model}/infer", body)
        return status, json.loads(answer)

    def metrics(self) -> dict[str, float]:
        """`name{labels}` -> value; labels in the order Prometheus prints them."""
        status, _, body = self.request("GET", "/metrics")
        assert status == 200
        lines = [line.rpartition(" ") for line in body.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def counted(self, metric, **labels) -> float:
        """The sum of every series of `metric` that has all `labels`."""
        wanted = [f'{name}="{value}"' for name, value in labels.items()]
        return sum(
            value
            for name, value in self.metrics().items()
            if name.partition("{")[0] == metric and all(label in name for label in wanted)
        )


@contextmanager
def _running(arguments, log: Path, environment) -> Iterator[RunningServer]:
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=stderr, env={**os.environ, **environment}
        )
    try:
        text = b""
        while line := process.stdout.readline():
            text += line
            with_json = _json_or_none(text)
            if with_json is not None:
                break
        else:
            raise AssertionError(f"the server ended with {process.wait(30)}: {log.read_text()}")
        yield RunningServer(process, with_json, log)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, log.read_text()
        # No test may leave the server with a bug that only its log tells.
        assert not re.search(r"Traceback|Fatal|Exception in", log.read_text()), log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


def _json_or_none(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


@pytest.fixture(scope="session")
def serving(tmp_path_factory):
    """`with serving(ARGUMENTS...) as server`: `mlserve serve ARGUMENTS...` on free ports."""

    def start(*arguments, **environment):
        log = tmp_path_factory.mktemp("serve") / "log"
        # Requests that tests write by hand name any host; tests/serve/test_browsers.py is about which are refused.
        flags = ["-m", "mlserve", "serve", "--http-port", "0", "--grpc-port", "0", "--json", "--allowed-host", "*"]
        return _running([*flags, *map(str, arguments)], log, environment)

    return start


@pytest.fixture(scope="session")
def serving_settings(tmp_path_factory):
    """`with serving_settings(paths, limits=...) as server`: a server with settings that have no flag."""
    from mlserve.serve.settings import AccessSettings, ModelSource, ServeSettings

    def start(*paths, **settings):
        log = tmp_path_factory.mktemp("serve") / "log"
        sources = tuple(ModelSource(path.stem, "1", str(path)) for path in paths)
        complete = ServeSettings(
            **{"models": sources, "defaults": {path.stem: "1" for path in paths}, "http_port": 0, "grpc_port": 0}
            | {"access": AccessSettings(hosts=("*",))}
            | settings
        )
        return _running(["-c", _FROM_SETTINGS, msgspec.json.encode(complete).decode()], log, {})

    return start


@pytest.fixture(scope="module")
def tiny_server(serving_settings, tiny_onnx, echo_onnx, tokens_onnx):
    """One worker with the tiny MLP, the echo of every type, and a model that looks tokens up.

    A server of the session would cost the tests after it more than one for each module does: it never quite rests.
    """
    with serving_settings(tiny_onnx, echo_onnx, tokens_onnx) as server:
        yield server


@pytest.fixture(scope="session")
def reference(tiny_onnx):
    """What onnxruntime itself answers for rows of the tiny model."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tiny_onnx), providers=["CPUExecutionProvider"])
    return lambda rows: session.run(["scores"], {"x": np.asarray(rows, np.float32)})[0]


@pytest.fixture(scope="session")
def echo_onnx(tmp_path_factory):
    """Every type the protocol has, returned unchanged: `in_FP32` [batch, n] -> `out_FP32` [batch, n], and so on."""
    from onnx import TensorProto, helper

    elements = {
        "BOOL": TensorProto.BOOL,
        "BYTES": TensorProto.STRING,
        "FP16": TensorProto.FLOAT16,
        "FP32": TensorProto.FLOAT,
        "FP64": TensorProto.DOUBLE,
        **{
            f"{kind}{bits}": getattr(TensorProto, f"{kind}{bits}")
            for kind in ("INT", "UINT")
            for bits in (8, 16, 32, 64)
        },
    }
    nodes = [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in elements]
    values = [
        [helper.make_tensor_value_info(f"{side}_{name}", element, ["batch", "n"]) for name, element in elements.items()]
        for side in ("in", "out")
    ]
    return _save(tmp_path_factory, "echo", nodes, *values)


@pytest.fixture(scope="session")
def tokens_onnx(tmp_path_factory):
    """An embedding of 10 tokens: `ids` int64 [batch, 4] -> `mean` float32 [batch, 3]."""
    from onnx import TensorProto, helper, numpy_helper

    table = numpy_helper.from_array(np.arange(30, dtype=np.float32).reshape(10, 3), "table")
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[1], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 4])]
    outputs = [helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["batch", 3])]
    return _save(tmp_path_factory, "tokens", nodes, inputs, outputs, [table])


@pytest.fixture(scope="session")
def slow_onnx(tmp_path_factory):
    """`turns` float32 [batch, 1] -> `same` float32 [batch, 1]: the same number, after that many products of matrices.

    One turn takes a millisecond or a few.
    """
    from onnx import TensorProto, helper, numpy_helper

    unit = numpy_helper.from_array(np.eye(256, dtype=np.float32), "unit")
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["before", "unit"], ["after"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [256, 256]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [256, 256]),
        ],
    )
    yes = numpy_helper.from_array(np.array(True), "yes")  # the value of an ONNX constant
    zero = numpy_helper.from_array(np.float32(0), "zero")
    nodes = [
        helper.make_node("ReduceMax", ["turns"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["trips"], to=TensorProto.INT64),
        helper.make_node("Loop", ["trips", "yes", "unit"], ["last"], body=body),
        helper.make_node("ReduceMax", ["last"], ["one"], keepdims=0),
        helper.make_node("Mul", ["one", "zero"], ["nothing"]),
        helper.make_node("Add", ["turns", "nothing"], ["same"]),
    ]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]) for name in ("turns", "same")]
    return _save(tmp_path_factory, "slow", nodes, value[:1], value[1:], [unit, yes, zero])


def _save(tmp_path_factory, name, nodes, inputs, outputs, initializers=()):
    from onnx import helper, save_model

    graph = helper.make_graph(nodes, name, inputs, outputs, list(initializers))
    path = tmp_path_factory.mktemp("models") / f"{name}.onnx"
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="session")
def until():
    """`until(condition)` waits for a truth and returns it; the test fails when it does not come."""

    def wait(condition, limit_s=30.0):
        deadline_s = time.monotonic() + limit_s
        while not (found := condition()):
            assert time.monotonic() < deadline_s, "it did not come about"
            time.sleep(0.02)
        return found

    return wait
