"""A server must answer as many rows as it is asked, where its model's interface says that it does."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from mlserve.bench.clients.client import Request
from mlserve.bench.payload.answered_rows import check_answered_rows
from mlserve.bench.target import Target
from mlserve.errors import BenchError
from mlserve.model.tensors import TensorSpec
from mlserve.wire import messages

HTTP = Target(protocol="rest", host="127.0.0.1", port=9, model="m")
GRPC = Target(protocol="grpc", host="127.0.0.1", port=9, model="m")
X = TensorSpec("x", "float32", ("batch", 2))
SCORES = TensorSpec("y", "float32", ("batch", 3))


def answer(shape, name="y", target=HTTP):
    values = np.zeros(shape, np.float32)
    if target is GRPC:
        output = {"name": name, "datatype": "FP32", "shape": shape}
        return messages.ModelInferResponse(outputs=[output], raw_output_contents=[values.tobytes()]).SerializeToString()
    outputs = [{"name": name, "datatype": "FP32", "shape": shape, "data": values.ravel().tolist()}]
    return json.dumps({"model_name": "m", "outputs": outputs}).encode()


def check(content, *, rows=4, inputs=(X,), outputs=(SCORES,), target=HTTP):
    check_answered_rows(target, [Request(b"", rows=rows)], content, inputs, outputs)


@pytest.mark.parametrize("target", [HTTP, GRPC])
@pytest.mark.parametrize(("shape", "found"), [([1, 3], "1 row "), ([8, 3], "8 rows "), ([0, 3], "0 rows ")])
def test_an_output_of_another_number_of_rows_is_named_with_both_numbers(target, shape, found):
    with pytest.raises(BenchError, match=rf"was asked for 4 rows, and its output 'y' has {found}\(shape \[{shape[0]}"):
        check(answer(shape, target=target), target=target)
    check(answer([4, 3], target=target), target=target)


def test_an_answer_without_any_output_is_none():
    with pytest.raises(BenchError, match="model 'm' answers without any output"):
        check(json.dumps({"model_name": "m", "outputs": []}).encode())


@pytest.mark.parametrize(
    ("shape", "inputs", "outputs"),
    [
        ([7, 6], (X,), (TensorSpec("y", "float32", ("found", 6)),)),  # boxes, of another dimension
        ([2, 6], (X,), (TensorSpec("y", "float32", (2, 6)),)),
        ([], (X,), (TensorSpec("y", "float32", ()),)),
        ([1], (TensorSpec("x", "float32", (4, 2)),), (TensorSpec("y", "float32", ("batch",)),)),
        ([1], (X, TensorSpec("k", "int64", ("others",))), (TensorSpec("y", "float32", ("batch",)),)),
        ([1], (X, TensorSpec("k", "int64", ())), (TensorSpec("y", "float32", ("batch",)),)),
        ([4, 3], (X,), (SCORES, TensorSpec("left out", "float32", ("batch",)))),
        ([1], (), (SCORES,)),
    ],
)
def test_what_no_interface_says_is_held_against_nobody(shape, inputs, outputs):
    check(answer(shape), inputs=inputs, outputs=outputs)


class _OneRow(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        content = answer([1, 3])
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def test_of_requests_of_several_sizes_the_largest_is_asked_too():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _OneRow)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        target = Target(protocol="rest", host="127.0.0.1", port=server.server_address[1], model="m")
        sizes = [Request(b"{}", rows=rows) for rows in (1, 1, 8, 2)]
        with pytest.raises(BenchError, match="was asked for 8 rows, and its output 'y' has 1 row "):
            check_answered_rows(target, sizes, answer([1, 3]), (X,), (SCORES,))
        check_answered_rows(target, sizes[:2], answer([1, 3]), (X,), (SCORES,))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
