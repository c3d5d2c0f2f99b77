"""Real servers of ours, one of one model behind a key and one of two, and servers of others as fixed pages."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest


@pytest.fixture(scope="session")
def mixed_onnx(tmp_path_factory):
    """Returns its inputs: `age` float32 [batch, 1], `city` text [batch, 1], `point` float32 [batch, 2], `visits` int64
    [batch].
    """
    from onnx import TensorProto, helper, save_model

    columns = {
        "age": (TensorProto.FLOAT, ["batch", 1]),
        "city": (TensorProto.STRING, ["batch", 1]),
        "point": (TensorProto.FLOAT, ["batch", 2]),
        "visits": (TensorProto.INT64, ["batch"]),
    }
    nodes = [helper.make_node("Identity", [name], [f"same_{name}"]) for name in columns]
    inputs = [helper.make_tensor_value_info(name, *kind) for name, kind in columns.items()]
    outputs = [helper.make_tensor_value_info(f"same_{name}", *kind) for name, kind in columns.items()]
    path = tmp_path_factory.mktemp("models") / "mixed.onnx"
    graph = helper.make_graph(nodes, "mixed", inputs, outputs)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class Address:
    """Where a server is: `http` and `grpc` with their schemes; `key` is what it asks for, "" for nothing."""

    def __init__(self, ready, key=""):
        self.http, self.grpc, self.key = ready["http"], f"grpc://{ready['grpc']}", key
        self.workers = ready["workers"]

    @property
    def headers(self):
        return (("authorization", f"Bearer {self.key}"),) if self.key else ()


@pytest.fixture(scope="session")
def two_servers(tiny_onnx, mixed_onnx, tmp_path_factory):
    """`(lone, both)`: the mixed model alone behind a key; the tiny and the mixed one for everybody."""
    from mlserve.serve.keys import add_key, new_key

    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    made = new_key("bench", ("infer", "metadata", "metrics"))
    add_key(keys, made.key)
    flags = ["-m", "mlserve", "serve", "--http-port", "0", "--grpc-port", "0", "--json"]
    commands = [[*flags, "--keys", str(keys), str(mixed_onnx)], [*flags, str(tiny_onnx), str(mixed_onnx)]]
    processes = [
        subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for command in commands
    ]
    try:
        lone, both = (_ready(process) for process in processes)
        yield Address(lone, made.secret), Address(both)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)
            process.stdout.close()


def _ready(process):
    text = b""
    for line in process.stdout:
        text += line
        try:
            return json.loads(text)
        except ValueError:
            continue
    raise AssertionError(f"the server ended with {process.wait(30)}")


@pytest.fixture(scope="session")
def lone(two_servers):
    return two_servers[0]


@pytest.fixture(scope="session")
def both(two_servers):
    return two_servers[1]


@pytest.fixture(scope="session")
def mixed_rows():
    """`mixed_rows(n)`: n rows for the mixed model, the same every time."""

    def make(rows):
        rng = np.random.default_rng(rows)
        return {
            "age": rng.random((rows, 1), np.float32),
            "city": np.array([[f'Zürich "{i}"'] for i in range(rows)], object),
            "point": rng.standard_normal((rows, 2)).astype(np.float32),
            "visits": rng.integers(-(2**40), 2**40, rows),
        }

    return make


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append((self.command, self.path, dict(self.headers.items()), body))
        status, page = self.server.pages.get(f"{self.command} {self.path}", (404, {"error": "nothing here"}))
        content = page if isinstance(page, bytes) else json.dumps(page).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self):
        self.do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def pages():
    """`pages({"GET /path": (status, document)})` -> a server of just these; `url`, and `asked`: what it was asked."""
    servers = []

    def start(answers):
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        server.daemon_threads = True
        server.pages, server.asked = answers, []
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        return server

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()
