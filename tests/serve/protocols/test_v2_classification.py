"""The best classes of a real model's answers, over both wires, by both gRPC transports and in a stream."""

import queue
import shutil

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from mlserve.model.artifact import Artifact, Manifest
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec
from mlserve.serve.settings import Follow, StoreChoice

ROWS = np.random.default_rng(0).standard_normal((3, 30)).astype(np.float32)
LABELS = ("ham", "spam")


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_onnx):
    """A store with the tiny model, whose two classes have names."""
    made = Store(tmp_path_factory.mktemp("labelled"))
    with made.staging() as folder:
        (folder / "made").mkdir()
        shutil.copy(tiny_onnx, folder / "made" / "model.onnx")
        manifest = Manifest(
            variant="fp32",
            labels=LABELS,
            inputs=(TensorSpec("x", "float32", ("batch", 30)),),
            outputs=(TensorSpec("scores", "float32", ("batch", 2)),),
        )
        made.add(Artifact(folder / "made", manifest), "mail")
    return made.root


@pytest.fixture(scope="module", params=["native", "grpcio"])
def server(request, serving_settings, store):
    choice = StoreChoice(str(store), (Follow("mail"),))
    with serving_settings(store=choice, grpc_transport=request.param) as made:
        yield made


def tensor(triton):
    made = triton.InferInput("x", list(ROWS.shape), "FP32")
    made.set_data_from_numpy(ROWS)
    return made


def check(answer, scores, most):
    """Each row's texts are `value:index:label`, the best first."""
    texts = [[text.decode() if isinstance(text, bytes) else text for text in row] for row in answer]
    assert np.shape(texts) == (len(ROWS), min(most, 2))
    for row, expected in zip(texts, scores, strict=True):
        order = np.argsort(-expected)[:most]
        parts = [text.split(":") for text in row]
        np.testing.assert_allclose([float(value) for value, _, _ in parts], expected[order], rtol=1e-5)
        assert [(int(index), label) for _, index, label in parts] == [(index, LABELS[index]) for index in order]


@pytest.mark.parametrize("most", [1, 2, 9])
@pytest.mark.parametrize("binary", [False, True])
def test_over_rest_classes_come_as_json_or_as_bytes(server, reference, most, binary):
    output = triton_http.InferRequestedOutput("scores", binary_data=binary, class_count=most)
    with triton_http.InferenceServerClient(server.http) as client:
        result = client.infer("mail", [tensor(triton_http)], outputs=[output])
        assert result.get_output("scores")["datatype"] == "BYTES"
        check(result.as_numpy("scores"), reference(ROWS), most)
        plain = client.infer("mail", [tensor(triton_http)])  # the next request is not affected
        np.testing.assert_allclose(plain.as_numpy("scores"), reference(ROWS), rtol=1e-5)


@pytest.mark.parametrize("most", [1, 9])
def test_over_grpc_classes_come_as_bytes(server, reference, most):
    output = triton_grpc.InferRequestedOutput("scores", class_count=most)
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        result = client.infer("mail", [tensor(triton_grpc)], outputs=[output])
        check(result.as_numpy("scores"), reference(ROWS), most)


def test_in_a_stream_classes_come_too(server, reference):
    answers = queue.Queue()
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        output = triton_grpc.InferRequestedOutput("scores", class_count=2)
        client.async_stream_infer("mail", [tensor(triton_grpc)], outputs=[output])
        result, error = answers.get(timeout=20)
        client.stop_stream()
    assert error is None
    check(result.as_numpy("scores"), reference(ROWS), 2)


def test_an_output_without_an_order_has_no_classes(tiny_server):
    inputs = []
    for name in (
        "BOOL",
        "BYTES",
        *(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)),
        "FP16",
        "FP32",
        "FP64",
    ):
        array = (
            np.array([[b"text"]], object) if name == "BYTES" else np.ones((1, 1), triton_http.triton_to_np_dtype(name))
        )
        made = triton_http.InferInput(f"in_{name}", [1, 1], name)
        made.set_data_from_numpy(array)
        inputs.append(made)
    with triton_http.InferenceServerClient(tiny_server.http) as client:
        for name in ("BOOL", "BYTES"):
            output = triton_http.InferRequestedOutput(f"out_{name}", class_count=1)
            with pytest.raises(InferenceServerException, match=f"unsupported type '{name}'"):
                client.infer("echo", inputs, outputs=[output])
        for name, text in (("INT8", "1:0"), ("FP16", "1.0:0")):
            output = triton_http.InferRequestedOutput(f"out_{name}", binary_data=False, class_count=1)
            assert client.infer("echo", inputs, outputs=[output]).as_numpy(f"out_{name}").tolist() == [[text]]
