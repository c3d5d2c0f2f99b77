"""TensorFlow Serving over gRPC against real servers, over each transport: TensorFlow's tensors in and out."""

import os

import grpc
import numpy as np
import pytest

from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest
from mlserve.model.store import Store
from mlserve.model.tensors import DATATYPE_OF, TensorSpec
from mlserve.wire import tensorflow_messages as messages

ROWS = np.random.default_rng(0).standard_normal((3, 30)).astype(np.float32)
PREDICTION, MODEL = "/tensorflow.serving.PredictionService", "/tensorflow.serving.ModelService"
X = TensorSpec("x", "float32", ("batch", 2))


@pytest.fixture(scope="module")
def tf():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow

    return tensorflow


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """`scale` in two versions, x1 and x10, with labels; production is 1, the candidate 2."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    made = Store(tmp_path_factory.mktemp("tensorflow") / "store")
    scores = TensorSpec("scores", "float32", ("batch", 2))
    for factor in (1, 10):
        with made.staging() as folder:
            source = folder / "made"
            source.mkdir()
            values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "scores")]
            constant = numpy_helper.from_array(np.array(factor, np.float32), "factor")
            node = helper.make_node("Mul", ["x", "factor"], ["scores"])
            graph = helper.make_graph([node], "g", values[:1], values[1:], [constant])
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
            save_model(model, source / MODEL_FILE)
            manifest = Manifest(variant="fp32", inputs=(X,), outputs=(scores,), labels=("ham", "spam"))
            made.add(Artifact(source, manifest), "scale")
    made.promote("scale", 1)
    made.promote("scale", 2, "candidate")
    return made


@pytest.fixture(scope="module", params=["native", "grpcio"])
def server(request, serving_settings, tiny_onnx, echo_onnx, slow_onnx, store):
    from mlserve.serve.settings import Follow, StoreChoice

    choice = StoreChoice(str(store.root), (Follow("*", "all"),))
    with serving_settings(tiny_onnx, echo_onnx, slow_onnx, store=choice, grpc_transport=request.param) as made:
        yield made


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.grpc) as made:
        yield made


@pytest.fixture
def still_right(channel, tf, reference):
    """After the test, the same connection answers the right request rightly: the negative control of every bad one."""
    yield
    check(tf, call(channel, "Predict", request(tf)), reference)


def call(channel, method, payload, service=PREDICTION):
    """The response bytes of one call with `payload` just as it is."""
    return channel.unary_unary(f"{service}/{method}")(payload, timeout=20)


def fault(channel, method, payload, service=PREDICTION):
    """`(code, details)` of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, payload, service)
    return caught.value.code().name, caught.value.details()


def request(tf, inputs=None, model="tiny", output_filter=(), **spec):
    """A PredictRequest; the tensors are TensorFlow's own."""
    message = messages.PredictRequest(model_spec={"name": model, **spec}, output_filter=output_filter)
    for name, value in ({"x": ROWS} if inputs is None else inputs).items():
        proto = value if hasattr(value, "tensor_shape") else tf.make_tensor_proto(value)
        message.inputs[name].ParseFromString(proto.SerializeToString())
    return message.SerializeToString()


def answer(tf, payload):
    """`(model_spec, arrays)` of a PredictResponse, the arrays by TensorFlow's own `make_ndarray`."""
    from tensorflow.core.framework import tensor_pb2

    response = messages.PredictResponse.FromString(payload)
    protos = {
        name: tensor_pb2.TensorProto.FromString(tensor.SerializeToString()) for name, tensor in response.outputs.items()
    }
    return response.model_spec, {name: tf.make_ndarray(proto) for name, proto in protos.items()}


def check(tf, payload, reference, rows=ROWS):
    spec, arrays = answer(tf, payload)
    assert (spec.name, spec.version.value, spec.signature_name) == ("tiny", 1, "serving_default")
    np.testing.assert_allclose(arrays["scores"], reference(rows), rtol=1e-5)


# The right ones


def test_predict_gives_onnxruntime_s_own_answers(channel, tf, reference):
    check(tf, call(channel, "Predict", request(tf)), reference)
    check(tf, call(channel, "Predict", request(tf, signature_name="serving_default")), reference)
    check(tf, call(channel, "Predict", request(tf, version={"value": 1})), reference)


def test_a_scalar_that_fills_its_shape_is_the_whole_tensor(channel, tf, reference):
    filled = tf.make_tensor_proto(0.5, tf.float32, shape=[2, 30])
    assert filled.ByteSize() < 32
    check(tf, call(channel, "Predict", request(tf, {"x": filled})), reference, np.full((2, 30), 0.5, np.float32))


def test_the_answer_is_in_the_list_of_its_type(channel, tf, reference):
    """Clients in the wild read `response.outputs["scores"].float_val`."""
    response = messages.PredictResponse.FromString(call(channel, "Predict", request(tf)))
    found = np.array(response.outputs["scores"].float_val, np.float32).reshape(3, 2)
    np.testing.assert_allclose(found, reference(ROWS), rtol=1e-5)


def every_type(tf):
    arrays = {}
    for dtype, datatype in DATATYPE_OF.items():
        if dtype == "object":
            pair = np.array(["", "grüße, 世界 \0"], object)
        elif dtype == "bool":
            pair = np.array([False, True])
        else:
            limits = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
            pair = np.array([limits.min, limits.max], dtype)
        arrays[datatype] = np.tile(pair, (2, 1))
    return arrays


def test_every_type_comes_back_unchanged(channel, tf):
    arrays = every_type(tf)
    _, found = answer(tf, call(channel, "Predict", request(tf, {f"in_{n}": a for n, a in arrays.items()}, "echo")))
    for name, array in arrays.items():
        expected = np.vectorize(str.encode, otypes=[object])(array) if array.dtype == object else array
        np.testing.assert_array_equal(found[f"out_{name}"], expected)


def test_the_output_filter_chooses(channel, tf):
    inputs = {f"in_{name}": array for name, array in every_type(tf).items()}
    _, found = answer(tf, call(channel, "Predict", request(tf, inputs, "echo", ["out_INT8", "out_BYTES"])))
    assert found.keys() == {"out_INT8", "out_BYTES"}


def scaled(tf, channel, **spec):
    spec, arrays = answer(
        tf, call(channel, "Predict", request(tf, {"x": np.ones((1, 2), np.float32)}, "scale", **spec))
    )
    return spec.version.value, arrays["scores"][0, 0]


def test_a_version_a_label_or_neither_says_which_model_answers(channel, tf):
    assert scaled(tf, channel) == (1, 1)
    assert scaled(tf, channel, version={"value": 2}) == (2, 10)
    assert scaled(tf, channel, version_label="candidate") == (2, 10)
    assert scaled(tf, channel, version_label="production") == (1, 1)


def examples(tf, kind, *rows, model="scale", feature="x"):
    """The bytes of a ClassificationRequest or RegressionRequest; the examples are TensorFlow's own."""
    message = kind(model_spec={"name": model})
    for row in rows:
        made = tf.train.Example()
        made.features.feature[feature].float_list.value.extend(row)
        message.input.example_list.examples.add().ParseFromString(made.SerializeToString())
    return message.SerializeToString()


def test_classify_gives_labels_and_scores(channel, tf):
    payload = examples(tf, messages.ClassificationRequest, [0.25, 0.75], [1.0, 0.0])
    response = messages.ClassificationResponse.FromString(call(channel, "Classify", payload))
    found = [[(each.label, each.score) for each in row.classes] for row in response.result.classifications]
    assert found == [[("ham", 0.25), ("spam", 0.75)], [("ham", 1.0), ("spam", 0.0)]]
    assert (response.model_spec.name, response.model_spec.version.value) == ("scale", 1)


def test_regress_gives_a_number_for_each_example(channel, tf):
    payload = examples(tf, messages.RegressionRequest, [1.0], [2.0], model="slow", feature="turns")
    response = messages.RegressionResponse.FromString(call(channel, "Regress", payload))
    assert [each.value for each in response.result.regressions] == [1.0, 2.0]


def test_the_metadata_has_the_signatures(channel):
    ask = messages.GetModelMetadataRequest(model_spec={"name": "tiny"}, metadata_field=["signature_def"])
    found = messages.GetModelMetadataResponse.FromString(call(channel, "GetModelMetadata", ask.SerializeToString()))
    assert (found.model_spec.name, found.model_spec.version.value) == ("tiny", 1)
    packed = found.metadata["signature_def"]
    assert packed.type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    default = messages.SignatureDefMap.FromString(packed.value).signature_def["serving_default"]
    assert default.inputs["x"].dtype == messages.DataType["DT_FLOAT"]
    assert [dim.size for dim in default.inputs["x"].tensor_shape.dim] == [-1, 30]
    assert [dim.size for dim in default.outputs["scores"].tensor_shape.dim] == [-1, 2]


def test_the_status_names_every_version_and_its_state(channel):
    def status(**spec):
        ask = messages.GetModelStatusRequest(model_spec={"name": "scale", **spec})
        payload = call(channel, "GetModelStatus", ask.SerializeToString(), MODEL)
        found = messages.GetModelStatusResponse.FromString(payload)
        return [(each.version, each.state, each.status.error_code) for each in found.model_version_status]

    assert status() == [(1, 30, 0), (2, 30, 0)]  # 30 is AVAILABLE
    assert status(version={"value": 2}) == [(2, 30, 0)]
    assert status(version_label="candidate") == [(2, 30, 0)]


def test_bytes_written_by_hand_from_the_public_field_numbers_are_read(channel, reference):
    """No message class is involved: what the definitions here say of numbers must be what everybody else says."""

    def field(number, payload):
        assert len(payload) < 1 << 14
        return bytes([number << 3 | 2, len(payload) & 0x7F | 0x80, len(payload) >> 7]) + payload

    spec = field(1, b"tiny") + field(2, b"\x08\x01") + field(3, b"serving_default")  # name, version, signature_name
    shape = field(2, b"\x08\x03") + field(2, b"\x08\x1e")  # dim { size: 3 } dim { size: 30 }
    tensor = b"\x08\x01" + field(2, shape) + field(4, ROWS.tobytes())  # dtype, tensor_shape, tensor_content
    payload = call(
        channel, "Predict", field(1, spec) + field(2, field(1, b"x") + field(2, tensor)) + field(3, b"scores")
    )
    assert b"\x0a\x06scores" in payload  # outputs { key: "scores" }
    float_val = payload.index(b"\x2a\x18")  # float_val, 24 bytes
    found = np.frombuffer(payload[float_val + 2 : float_val + 26], np.float32).reshape(3, 2)
    np.testing.assert_allclose(found, reference(ROWS), rtol=1e-5)


# The wrong ones


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"model": "nobody"}, "NOT_FOUND", "Servable not found for request: Latest(nobody)"),
        ({"version": {"value": 7}}, "NOT_FOUND", "Servable not found for request: Specific(tiny, 7)"),
        ({"version": {"value": -1}}, "NOT_FOUND", "Servable not found for request: Specific(tiny, -1)"),
        ({"version": {"value": 0}}, "NOT_FOUND", "Servable not found for request: Specific(tiny, 0)"),
        ({"version_label": "nobody"}, "INVALID_ARGUMENT", "no served version has the label 'nobody'"),
        ({"signature_name": "other"}, "INVALID_ARGUMENT", 'Serving signature key "other" not found.'),
        ({"output_filter": ["w"]}, "INVALID_ARGUMENT", "unexpected output 'w'"),
        ({"inputs": {}}, "INVALID_ARGUMENT", "the inputs do not fit: the request has {}"),
        ({"inputs": {"y": ROWS}}, "INVALID_ARGUMENT", "missing {x}, unexpected {y}"),
        ({"inputs": {"x": ROWS.astype(np.float64)}}, "INVALID_ARGUMENT", "has datatype FP64"),
        ({"inputs": {"x": ROWS[:, :29]}}, "INVALID_ARGUMENT", "has shape [3, 29]"),
        ({"inputs": {"x": ROWS[0]}}, "INVALID_ARGUMENT", "has shape [30]"),
        ({"inputs": {"x": np.zeros((0, 30), np.float32)}}, "INVALID_ARGUMENT", "has shape [0, 30]"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(channel, tf, still_right, changes, code, message):
    found, details = fault(channel, "Predict", request(tf, **changes))
    assert found == code
    assert message in details


def test_a_small_message_cannot_ask_for_a_large_array(channel, tf, still_right):
    huge = tf.make_tensor_proto(1.0, tf.float32, shape=[1, 30])
    huge.tensor_shape.dim[0].size = 2**40
    code, details = fault(channel, "Predict", request(tf, {"x": huge}))
    assert (code, "may fill 4194304 bytes" in details) == ("INVALID_ARGUMENT", True)


@pytest.mark.parametrize(
    ("method", "payload", "service", "code", "message"),
    [
        ("Predict", b"", PREDICTION, "INVALID_ARGUMENT", "the request names no model: set model_spec.name"),
        ("Predict", b"\xff\xff", PREDICTION, "INVALID_ARGUMENT", "the message is no PredictRequest"),
        ("Classify", b"\xff\xff", PREDICTION, "INVALID_ARGUMENT", "the message is no ClassificationRequest"),
        ("Regress", b"", PREDICTION, "INVALID_ARGUMENT", "the request names no model: set model_spec.name"),
        ("Classify", b"\x0a\x06\x0a\x04tiny", PREDICTION, "INVALID_ARGUMENT", "the input holds no examples"),
        ("Regress", b"\x0a\x06\x0a\x04tiny", PREDICTION, "INVALID_ARGUMENT", "cannot regress"),
        ("GetModelMetadata", b"", PREDICTION, "INVALID_ARGUMENT", "the request names no model: set model_spec.name"),
        (
            "GetModelMetadata",
            b"\x0a\x06\x0a\x04tiny",
            PREDICTION,
            "INVALID_ARGUMENT",
            "metadata_field is empty",
        ),
        (
            "GetModelMetadata",
            b"\x0a\x06\x0a\x04tiny\x12\x05other",
            PREDICTION,
            "INVALID_ARGUMENT",
            "there is no metadata field 'other'",
        ),
        ("GetModelStatus", b"", MODEL, "INVALID_ARGUMENT", "the request names no model: set model_spec.name"),
        ("GetModelStatus", b"\x0a\x03\x0a\x01n", MODEL, "NOT_FOUND", "model 'n' has no version that is served"),
        ("MultiInference", b"", PREDICTION, "UNIMPLEMENTED", ""),
        ("HandleReloadConfigRequest", b"", MODEL, "UNIMPLEMENTED", ""),
    ],
)
def test_a_call_that_is_none_is_told(channel, still_right, method, payload, service, code, message):
    found, details = fault(channel, method, payload, service)
    assert found == code
    assert message in details


def test_an_example_that_does_not_fit_is_told(channel, tf, still_right):
    code, details = fault(channel, "Classify", examples(tf, messages.ClassificationRequest, [1.0]))
    assert (code, "feature 'x' has 1 values" in details) == ("INVALID_ARGUMENT", True)
    wrong = messages.ClassificationRequest.FromString(examples(tf, messages.ClassificationRequest, [1.0, 2.0]))
    wrong.model_spec.signature_name = "other"
    code, details = fault(channel, "Classify", wrong.SerializeToString())
    assert (code, details) == ("INVALID_ARGUMENT", "No signature was found with the name: other")
