"""TensorFlow Serving's REST API against a real server: every path, both forms, its words, and its numbers."""

import base64
import json
import math
import subprocess

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, save_model

from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec

ROWS = np.random.default_rng(0).standard_normal((3, 30)).astype(np.float32)
X = TensorSpec("x", "float32", ("batch", 2))
LABELS = ("ham", "spam")


def save(path, nodes, inputs, outputs, constants=()):
    element = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "object": TensorProto.STRING}
    values = [
        [helper.make_tensor_value_info(spec.name, element[spec.dtype], list(spec.shape)) for spec in specs]
        for specs in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants]
    graph = helper.make_graph(nodes, "g", *values, tensors)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def publish(store, name, factor, labels=LABELS):
    """`x` [batch, 2] -> `scores` [batch, 2] = factor * x."""
    scores = TensorSpec("scores", "float32", ("batch", 2))
    with store.staging() as folder:
        made = folder / "made"
        made.mkdir()
        node = helper.make_node("Mul", ["x", "factor"], ["scores"])
        save(made / MODEL_FILE, [node], [X], [scores], [("factor", np.float32(factor))])
        store.add(Artifact(made, Manifest(variant="fp32", inputs=(X,), outputs=(scores,), labels=labels)), name)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """`mail-1.0` in two versions, x1 and x10; production is 1, the candidate 2."""
    made = Store(tmp_path_factory.mktemp("tensorflow") / "store")
    for factor in (1, 10):
        publish(made, "mail-1.0", factor)
    made.promote("mail-1.0", 1)
    made.promote("mail-1.0", 2, "candidate")
    return made


@pytest.fixture(scope="module")
def server(serving, store, tiny_onnx, echo_onnx, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    total = TensorSpec("total", "float32", ("batch", 1))
    save(
        folder / "total.onnx",
        [helper.make_node("ReduceSum", ["x", "axis"], ["total"], keepdims=1)],
        [X],
        [total],
        [("axis", np.array([1], np.int64))],
    )
    text, text_bytes, parts = (
        TensorSpec(name, "object", ("batch",) if name != "parts" else ("batch", 2))
        for name in ("text", "text_bytes", "parts")
    )
    save(
        folder / "texts.onnx",
        [
            helper.make_node("Identity", ["text"], ["text_bytes"]),
            helper.make_node("Identity", ["pair"], ["parts"]),
        ],
        [text, TensorSpec("pair", "object", ("batch", 2))],
        [text_bytes, parts],
    )
    number = TensorSpec("number", "float32", ())
    save(
        folder / "scalar.onnx",
        [helper.make_node("Neg", ["number"], ["minus"])],
        [number],
        [TensorSpec("minus", "float32", ())],
    )
    for name, wide in (("halves", 2), ("half", 1)):
        spec = [TensorSpec(tensor, "float16", ("batch", wide)) for tensor in ("x", "scores")]
        save(folder / f"{name}.onnx", [helper.make_node("Identity", ["x"], ["scores"])], spec[:1], spec[1:])
    files = (tiny_onnx, echo_onnx, folder / "total.onnx", folder / "texts.onnx", folder / "scalar.onnx")
    files += (folder / "halves.onnx", folder / "half.onnx")
    with serving("--store", store.root, "mail-1.0@1", "mail-1.0@2", *files) as made:
        yield made


def post(server, path, body):
    """`(status, document)`; `body` is JSON or bytes as they are. Python's json reads NaN and Infinity."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, headers, answer = server.request("POST", f"/v1/models/{path}", raw)
    assert headers["content-type"] == "application/json"
    return status, json.loads(answer)


def right(server, path, body):
    status, document = post(server, path, body)
    assert status == 200, document
    return document


@pytest.fixture
def still_right(server, reference):
    """After the test, the right request is answered rightly: the negative control of every bad one."""
    yield
    found = right(server, "tiny:predict", {"instances": ROWS.tolist()})["predictions"]
    np.testing.assert_allclose(found, reference(ROWS), rtol=1e-5)


# predict


def test_rows_in_are_rows_out(server, reference):
    for body in (
        {"instances": ROWS.tolist()},
        {"instances": [{"x": row} for row in ROWS.tolist()]},
        {"signature_name": "serving_default", "instances": ROWS.tolist(), "more": "is ignored"},
    ):
        document = right(server, "tiny:predict", body)
        assert document.keys() == {"predictions"}
        np.testing.assert_allclose(document["predictions"], reference(ROWS), rtol=1e-5)


def test_columns_in_are_columns_out(server, reference):
    for body in ({"inputs": ROWS.tolist()}, {"inputs": {"x": ROWS.tolist()}}):
        document = right(server, "tiny:predict", body)
        assert document.keys() == {"outputs"}
        np.testing.assert_allclose(document["outputs"], reference(ROWS), rtol=1e-5)


def every_type():
    """An input of every type for `echo`, two rows of one element, as JSON values."""
    values = {
        "BOOL": [True, False],
        "BYTES": ["grüße", ""],
        "FP16": [0.5, -2],
        "FP32": [0.1, -3e38],
        "FP64": [0.1, 1e300],
    }
    for bits in (8, 16, 32, 64):
        values[f"INT{bits}"] = [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1]
        values[f"UINT{bits}"] = [0, 2**bits - 1]
    return {name: [[value] for value in pair] for name, pair in values.items()}


def test_every_type_comes_back_by_row_and_by_column(server):
    values = every_type()
    columns = {f"in_{name}": pair for name, pair in values.items()}
    expected = {f"out_{name}": pair for name, pair in values.items()}
    assert right(server, "echo:predict", {"inputs": columns}) == {"outputs": expected}
    rows = [{name: pair[row] for name, pair in columns.items()} for row in range(2)]
    found = right(server, "echo:predict", {"instances": rows})["predictions"]
    assert found == [{name: pair[row] for name, pair in expected.items()} for row in range(2)]


def test_a_scalar_is_a_plain_value(server):
    assert right(server, "scalar:predict", {"inputs": 2.5}) == {"outputs": -2.5}
    assert right(server, "scalar:predict", {"inputs": {"number": -1}}) == {"outputs": 1.0}


def test_bytes_travel_in_base64_and_a_name_says_that_an_output_is_bytes(server):
    def b64(text):
        return {"b64": base64.b64encode(text.encode()).decode()}

    body = {"instances": [{"text": b64("grüße"), "pair": ["a", b64("b")]}, {"text": "plain", "pair": ["c", "d"]}]}
    assert right(server, "texts:predict", body)["predictions"] == [
        {"text_bytes": b64("grüße"), "parts": ["a", "b"]},
        {"text_bytes": b64("plain"), "parts": ["c", "d"]},
    ]
    body = {"inputs": {"text": [b64("x")], "pair": [["a", "b"]]}}
    assert right(server, "texts:predict", body)["outputs"] == {"text_bytes": [b64("x")], "parts": [["a", "b"]]}


def test_nan_and_infinity_are_words_in_both_directions_here_alone(server, still_right):
    body = b'{"instances": [[NaN, 1.5], [Infinity, -Infinity]]}'
    status, _, answer = server.request("POST", "/v1/models/mail-1.0:predict", body)
    assert (status, answer) == (200, b'{"predictions":[[NaN,1.5],[Infinity,-Infinity]]}')
    status, _, answer = server.request("POST", "/v1/models/mail-1.0:predict", body.replace(b"instances", b"inputs"))
    assert (status, answer) == (200, b'{"outputs":[[NaN,1.5],[Infinity,-Infinity]]}')
    v2 = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [NaN, 1]}]}'
    assert server.request("POST", "/v2/models/mail-1.0/infer", v2)[0] == 400


def test_curl_as_the_documentation_has_it(server):
    url = f"http://{server.http}/v1/models/mail-1.0:predict"
    command = ["curl", "-s", "-d", '{"instances": [[1.0, 2.0]]}', "-X", "POST", url]
    assert json.loads(subprocess.run(command, capture_output=True, check=True).stdout) == {"predictions": [[1.0, 2.0]]}


# Which version


@pytest.mark.parametrize(
    ("path", "factor"),
    [
        ("mail-1.0", 1),
        ("mail-1.0/versions/1", 1),
        ("mail-1.0/versions/2", 10),
        ("mail-1.0/labels/production", 1),
        ("mail-1.0/labels/candidate", 10),
        ("mail%2D1.0/versions/2", 10),
    ],
)
@pytest.mark.parametrize("times", [1, 3])
def test_a_version_a_label_or_neither_says_which_model_answers(server, path, factor, times):
    """Several times, for the first one goes another way through the server than the others."""
    for _ in range(times):
        assert right(server, f"{path}:predict", {"instances": [[1, 2]]})["predictions"] == [[factor, 2 * factor]]
        assert right(server, f"{path}:classify", {"examples": [{"x": [1, 2]}]})["results"] == [
            [["ham", factor], ["spam", 2 * factor]]
        ]


def test_the_fast_lane_learns_these_paths(server):
    """The two ways through the server write their headers in different orders."""
    with server.connect() as connection:
        body = b'{"instances": [[1, 2]]}'
        head = b"POST /v1/models/mail-1.0/labels/candidate:predict HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n"
        answers = []
        for _ in range(2):
            connection.sendall(head % len(body) + body)
            answers.append(connection.recv(65536))
    assert all(answer.endswith(b'{"predictions":[[10.0,20.0]]}') for answer in answers)
    assert b"\r\ncontent-length: 29\r\n\r\n" in answers[1]  # the lane writes it last


# classify, regress


def test_classify_gives_labels_and_scores_in_the_model_s_order(server):
    examples = [{"x": [0.25, 0.75]}, {"x": [1, 0]}]
    for path in ("mail-1.0:classify", "mail-1.0/versions/1:classify"):
        assert right(server, path, {"examples": examples})["results"] == [
            [["ham", 0.25], ["spam", 0.75]],
            [["ham", 1.0], ["spam", 0.0]],
        ]


def test_classify_without_labels_gives_scores(server, reference):
    results = right(server, "tiny:classify", {"examples": [{"x": row} for row in ROWS.tolist()]})["results"]
    assert [[label for label, _ in row] for row in results] == [["", ""]] * 3
    np.testing.assert_allclose([[score for _, score in row] for row in results], reference(ROWS), rtol=1e-5)


def test_regress_gives_a_number_for_each_example(server):
    body = {"signature_name": "tensorflow/serving/regress", "examples": [{"x": [1, 2]}, {"x": [3, 4.5]}]}
    assert right(server, "total:regress", body) == {"results": [3.0, 7.5]}
    assert math.isnan(right(server, "total:regress", b'{"examples": [{"x": [NaN, 1]}]}')["results"][0])


def test_half_floats_are_written_too(server):
    assert right(server, "halves:classify", {"examples": [{"x": [0.5, -2]}]}) == {"results": [[["", 0.5], ["", -2.0]]]}
    assert right(server, "half:regress", {"examples": [{"x": 0.5}, {"x": [1.5]}]}) == {"results": [0.5, 1.5]}


def test_the_context_is_common_to_all_examples(server):
    body = {"context": {"x": [1, 2]}, "examples": [{}, {}]}
    assert right(server, "total:regress", body) == {"results": [3.0, 3.0]}


# What is told of a model


def test_the_status_names_every_version_and_its_state(server):
    def status(version):
        return {"version": version, "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}

    assert server.get_json("/v1/models/mail-1.0") == {"model_version_status": [status("1"), status("2")]}
    for path in ("versions/2", "labels/candidate"):
        assert server.get_json(f"/v1/models/mail-1.0/{path}") == {"model_version_status": [status("2")]}


def test_the_metadata_has_the_signatures(server):
    document = server.get_json("/v1/models/mail-1.0/labels/candidate/metadata")
    assert document["model_spec"] == {"name": "mail-1.0", "signature_name": "", "version": "2"}
    signatures = document["metadata"]["signature_def"]["signature_def"]
    assert signatures.keys() == {"serving_default", "tensorflow/serving/classify"}
    default = signatures["serving_default"]
    assert default["method_name"] == "tensorflow/serving/predict"
    assert default["inputs"] == {
        "x": {
            "name": "x",
            "dtype": "DT_FLOAT",
            "tensor_shape": {"dim": [{"size": "-1", "name": ""}, {"size": "2", "name": ""}], "unknown_rank": False},
        }
    }
    echo = server.get_json("/v1/models/echo/metadata")["metadata"]["signature_def"]["signature_def"]
    types = {name: info["dtype"] for name, info in echo["serving_default"]["inputs"].items()}
    assert (types["in_BYTES"], types["in_FP16"], types["in_UINT64"]) == ("DT_STRING", "DT_HALF", "DT_UINT64")


# The wrong ones


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("nobody:predict", {"instances": [1]}, 404, "Servable not found for request: Latest(nobody)"),
        ("tiny/versions/7:predict", {"instances": [1]}, 404, "Servable not found for request: Specific(tiny, 7)"),
        ("tiny/labels/nobody:predict", {"instances": [1]}, 400, "no served version has the label 'nobody'"),
        ("nobody/labels/nobody:predict", {"instances": [1]}, 404, "Servable not found for request: Latest(nobody)"),
        ("tiny/labels/1:predict", {"instances": [1]}, 400, "no served version has the label '1'"),
        ("tiny:predict", b"", 400, "not JSON"),
        ("tiny:predict", b"{", 400, "not JSON"),
        ("tiny:predict", b"\xff", 400, "not JSON"),
        ("tiny:predict", b"[" * 250_000, 400, "not JSON"),
        ("tiny:predict", b'{"instances": ' + b"[" * 250_000 + b"NaN", 400, "not JSON"),
        ("tiny:predict", [1], 400, "no JSON object"),
        ("tiny:predict", {}, 400, "the request has neither 'instances' (by row) nor 'inputs' (by column)"),
        ("tiny:predict", {"instances": [1], "inputs": [1]}, 400, "or 'inputs' (by column), not both"),
        ("tiny:predict", {"instances": {}}, 400, "'instances' must be a list with one value a row"),
        ("tiny:predict", {"instances": None}, 400, "'instances' must be a list with one value a row"),
        ("tiny:predict", {"instances": []}, 400, "'instances' is empty; send at least one row"),
        ("tiny:predict", {"instances": [1]}, 400, "cannot be read as FP32 of shape [-1, 30]"),
        ("tiny:predict", {"instances": [[1] * 29]}, 400, "expected [-1, 30]"),
        ("tiny:predict", {"instances": [["1"] * 30]}, 400, "Expected `float`, got `str`"),
        ("tiny:predict", {"instances": [[True] * 30]}, 400, "Expected `float`, got `bool`"),
        ("tiny:predict", {"instances": [[None] * 30]}, 400, "Expected `float`, got `null`"),
        ("tiny:predict", {"instances": [[1e39] * 30]}, 400, "beyond the largest of FP32"),
        ("tiny:predict", b'{"instances": [[' + b"1e400," * 29 + b"1]]}", 400, "out of range"),
        ("tiny:predict", {"instances": [{"y": [1] * 30}]}, 400, "unexpected input 'y'"),
        ("tiny:predict", {"instances": [{"x": [1] * 30}, {}]}, 400, "same names"),
        ("tiny:predict", {"inputs": {}}, 400, "missing input 'x'"),
        ("tiny:predict", {"inputs": None}, 400, "cannot be read"),
        ("texts:predict", {"inputs": ["a"]}, 400, "expecting an object as multiple input tensors required: text, pair"),
        ("texts:predict", {"instances": ["a"]}, 400, "send every row as an object"),
        ("texts:predict", {"instances": [{"text": {"b64": "%"}, "pair": ["a", "b"]}]}, 400, "not base64"),
        (
            "tiny:predict",
            {"signature_name": "other", "instances": [1]},
            400,
            'Serving signature name: "other" not found in signature def',
        ),
        ("tiny:predict", {"signature_name": 5, "instances": [1]}, 400, "'signature_name' must be text"),
        (
            "tiny:classify",
            {"signature_name": "other", "examples": [{}]},
            400,
            "No signature was found with the name: other",
        ),
        ("tiny:classify", {}, 400, "a request to classify needs 'examples'"),
        ("tiny:classify", {"examples": {}}, 400, "'examples' must be a list of objects"),
        ("tiny:classify", {"examples": []}, 400, "'examples' is empty; send at least one"),
        ("tiny:classify", {"examples": [1]}, 400, "an example must be an object of features by name"),
        ("tiny:classify", {"examples": [{}], "context": 1}, 400, "an example must be an object of features by name"),
        ("tiny:classify", {"examples": [{"x": [[1] * 30]}]}, 400, "features are flat"),
        ("tiny:classify", {"examples": [{"x": 1}]}, 400, "feature 'x' has 1 values"),
        ("tiny:classify", {"examples": [{"x": 1}], "context": {"x": 1}}, 400, "is in the context and in an example"),
        ("tiny:classify", {"examples": [{}]}, 400, "missing input 'x'"),
        ("tiny:regress", {"examples": [{"x": [1] * 30}]}, 400, "cannot regress"),
        ("echo:classify", {"examples": [{}]}, 400, "cannot classify"),
        ("tiny:explain", {"instances": [1]}, 405, "POST is not what this path takes"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(server, still_right, path, body, status, message):
    found, document = post(server, path, body)
    assert (found, list(document)) == (status, ["error"])
    assert message in document["error"]
    assert len(document["error"]) <= 1024


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("nobody", 404, "model 'nobody' has no version that is served"),
        ("tiny/versions/7", 404, "model 'tiny' has no version 7 that is served"),
        ("tiny/labels/nobody", 400, "no served version has the label 'nobody'"),
        ("nobody/metadata", 404, "Servable not found for request: Latest(nobody)"),
        ("tiny:predict", 404, "model 'tiny:predict' has no version that is served"),
    ],
)
def test_what_is_not_there_is_not_told_of(server, path, status, message):
    found, _, body = server.request("GET", f"/v1/models/{path}")
    assert (found, json.loads(body)) == (status, {"error": message})


def test_errors_and_answers_are_counted_under_the_dialect_s_name(server, until):
    def counted(outcome):
        return server.counted("mlserve_requests_total", model="scalar", protocol="tensorflow-rest", outcome=outcome)

    before = counted("ok"), counted("InvalidRequest")
    right(server, "scalar:predict", {"inputs": 1})
    post(server, "scalar:predict", {"inputs": "1"})
    until(lambda: (counted("ok"), counted("InvalidRequest")) == (before[0] + 1, before[1] + 1))


def test_onnxruntime_agrees_on_every_digit(server, tiny_onnx):
    """What is written as the shortest digits of a float32 is that float32."""
    session = onnxruntime.InferenceSession(str(tiny_onnx), providers=["CPUExecutionProvider"])
    found = right(server, "tiny:predict", {"instances": ROWS[:1].tolist()})["predictions"]
    np.testing.assert_array_equal(np.array(found, np.float32), session.run(None, {"x": ROWS[:1]})[0])
