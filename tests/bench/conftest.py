"""A V2 server over HTTP that is as slow, or as broken, as a test wants it."""

import json
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

METADATA = {
    "name": "slow",
    "versions": ["7"],
    "platform": "test",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
}
ANSWER = {
    "model_name": "slow",
    "model_version": "7",
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 1], "data": [0.5]}],
}


class SlowServer:
    """Answers inference after `delay_s` with `status`; `cut` closes the connection in the middle of the body.

    `answered` counts inference requests; `fault_after` of them are answered well before `status` and `cut` count.
    """

    def __init__(self, *, delay_s: float = 0.0, status: int = 200, cut: bool = False, fault_after: int = 0) -> None:
        self.delay_s, self.status, self.cut, self.fault_after = delay_s, status, cut, fault_after
        self.models, self.metadata = ["slow"], dict(METADATA)
        self.answered = 0
        self.bodies: list[bytes] = []
        self._lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"slow": self}))
        self._http.daemon_threads = True
        self._http.connections = set()
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def count(self, body: bytes) -> int:
        with self._lock:
            self.answered += 1
            self.bodies.append(body)
            return self.answered

    def stop(self) -> None:
        """Refuses new connections and cuts those there are."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
            self._http.server_close()
            for connection in list(self._http.connections):
                with suppress(OSError):  # its client was quicker
                    connection.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    request_queue_size = 512  # as many as connect at once, or the system lets some wait for a second


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    slow: SlowServer

    def setup(self):
        super().setup()
        self.server.connections.add(self.request)

    def finish(self):
        self.server.connections.discard(self.request)
        with suppress(OSError, ValueError):  # as in handle
            super().finish()

    def handle(self):
        try:
            super().handle()
        except (OSError, ValueError):  # the client, or `stop`, has closed the connection
            self.close_connection = True

    def do_GET(self):
        if self.path == "/v2/models/slow":
            self._answer(200, self.slow.metadata)
        else:
            self._answer(404, {"error": f"nothing at {self.path}"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v2/repository/index":
            self._answer(200, [{"name": name} for name in self.slow.models])
        elif self.path == "/v2/models/slow/infer":
            faulty = self.slow.count(body) > self.slow.fault_after
            time.sleep(self.slow.delay_s)
            status = self.slow.status if faulty else 200
            content = ANSWER if status == 200 else {"error": "as asked"}
            self._answer(status, content, cut=faulty and self.slow.cut)
        else:
            self._answer(404, {"error": f"nothing at {self.path}"})

    def _answer(self, status, content, *, cut=False):
        body = json.dumps(content, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.wfile.flush()
        if cut:
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def new_slow_server():
    """Makes a SlowServer, which whoever asked for it stops."""
    return SlowServer


@pytest.fixture
def slow_server():
    """Starts a SlowServer with the settings given; all are stopped with the test."""
    servers = []

    def start(**settings) -> SlowServer:
        servers.append(SlowServer(**settings))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
