"""What each dialect writes and reads, held against the protocols' own texts and other people's readers."""

import json

import numpy as np
import pandas as pd
import pytest
import tritonclient.http as triton_http
from hypothesis import given
from hypothesis import strategies as st

from mlserve.bench.dialects.find import find_dialect
from mlserve.bench.probe import describe_model, find_model
from mlserve.bench.target import parse_target
from mlserve.errors import BenchError
from mlserve.model.tensors import TensorSpec
from mlserve.wire.tensorflow_messages import PredictRequest, PredictResponse

X = TensorSpec("x", "float32", ("batch", 2))
N = TensorSpec("n", "int64", ("batch",))
PAIR = {"x": np.array([[0.5, 1], [2, 3]], np.float32), "n": np.array([7, 8])}
SCORES = {"scores": TensorSpec("scores", "float32", ("batch", 2))}
BOTH = {**SCORES, "label": TensorSpec("label", "int64", ("batch",))}


def written(protocol, tensors, specs, url="http://h:1", **form):
    target = parse_target(url, "m", protocol, **form)
    return find_dialect(protocol).encode(target, tensors, specs)


def sent(protocol, tensors, specs, **form):
    return json.loads(written(protocol, tensors, specs, **form).body)


def read(protocol, document, outputs, answer=""):
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    found = find_dialect(protocol, answer).decode(content, outputs)
    return {name: array.tolist() for name, array in found.items()}


def test_binary_requests_are_what_the_binary_tensor_extension_says():
    request = written("rest-binary", PAIR, (X, N))
    headers = dict(request.headers)
    size = int(headers["inference-header-content-length"])
    head, raw = json.loads(request.body[:size]), request.body[size:]
    assert [tensor["parameters"]["binary_data_size"] for tensor in head["inputs"]] == [16, 16]
    assert head["parameters"] == {"binary_data_output": True}
    assert np.array_equal(np.frombuffer(raw[:16], "<f4").reshape(2, 2), PAIR["x"])
    assert np.array_equal(np.frombuffer(raw[16:], "<i8"), PAIR["n"])


def test_binary_answers_are_read_as_tritons_own_client_reads_them():
    head = json.dumps(
        {
            "model_name": "é",  # two bytes, one character
            "model_version": "4",
            "outputs": [
                {"name": "scores", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
                {"name": "label", "datatype": "INT64", "shape": [1], "data": [3]},
            ],
        },
        ensure_ascii=False,
    ).encode()
    content = head + np.array([0.25, 0.75], "<f4").tobytes()
    theirs = triton_http.InferResult.from_response_body(content, header_length=len(head))
    assert read("rest-binary", content, BOTH) == {"scores": theirs.as_numpy("scores").tolist(), "label": [3]}
    assert find_dialect("rest-binary").version(content) == "4"


def test_a_server_may_answer_a_binary_request_in_json():
    document = {"outputs": [{"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 1]}]}
    assert read("rest-binary", document, SCORES) == {"scores": [[0.5, 1.0]]}


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        (b'{"model_name":"m","model_version":"12","outputs":[]}', "12"),
        (b'{"model_name": "m", "model_version": "12", "outputs": []}', "12"),
        (b'{"model_name": "m", "model_version": null, "id": "x"}', ""),
        (b'{"model_name":"m","outputs":[]}', ""),
        (b'{"model_name":"m","model_version":"1', ""),
        (b'{"outputs":[' + b"1," * 300 + b'],"model_version":"1"}', ""),
        (b"", ""),
    ],
)
def test_the_version_of_a_rest_answer_is_read_from_its_beginning(answer, version):
    assert find_dialect("rest").version(answer) == version


@given(answer=st.binary(max_size=300))
@pytest.mark.parametrize("protocol", ["rest", "grpc", "tfserving-grpc"])
def test_the_version_of_any_bytes_is_text(protocol, answer):
    assert isinstance(find_dialect(protocol).version(answer), str)


def test_tensorflow_takes_instances_by_row_and_inputs_by_column():
    assert sent("tfserving", {"x": PAIR["x"]}, (X,)) == {"instances": [[0.5, 1.0], [2.0, 3.0]]}
    assert sent("tfserving", PAIR, (X, N)) == {"instances": [{"x": [0.5, 1.0], "n": 7}, {"x": [2.0, 3.0], "n": 8}]}
    fixed = TensorSpec("x", "float32", (2, 2))
    assert sent("tfserving", PAIR, (fixed, N)) == {"inputs": {"x": [[0.5, 1.0], [2.0, 3.0]], "n": [7, 8]}}
    nan = {"x": np.array([[np.nan, np.inf]], np.float32)}
    assert written("tfserving", nan, (X,)).body == b'{"instances":[[NaN,Infinity]]}'


def test_tensorflow_answers_by_row_or_by_column():
    assert read("tfserving", {"predictions": [[0.25, 0.75]]}, SCORES) == {"scores": [[0.25, 0.75]]}
    assert read("tfserving", {"predictions": [{"scores": [0, 1], "label": 1}]}, BOTH) == {
        "scores": [[0.0, 1.0]],
        "label": [1],
    }
    assert read("tfserving", {"outputs": [[0.25, 0.75]]}, SCORES) == {"scores": [[0.25, 0.75]]}
    assert read("tfserving", {"outputs": {"scores": [[0, 1]], "label": [1]}}, BOTH)["label"] == [1]
    assert np.isnan(read("tfserving", b'{"predictions": [[NaN, 1]]}', SCORES)["scores"][0][0])


def test_tensorflows_metadata_is_read_as_its_documentation_prints_it(pages):
    half = {
        "inputs": {
            "x": {
                "dtype": "DT_FLOAT",
                "tensor_shape": {
                    "dim": [{"size": "-1", "name": ""}, {"size": "1", "name": ""}],
                    "unknown_rank": False,
                },
                "name": "x:0",
            }
        },
        "outputs": {"y": {"dtype": "DT_INT32", "tensor_shape": {"dim": [{"size": "-1"}]}, "name": "y:0"}},
        "method_name": "tensorflow/serving/predict",
    }
    examples = {"inputs": {"inputs": {"dtype": "DT_STRING", "tensor_shape": {"dim": [], "unknown_rank": True}}}}

    def served(signatures):
        spec = {"name": "half", "signature_name": "", "version": "123"}
        document = {"model_spec": spec, "metadata": {"signature_def": {"signature_def": signatures}}}
        return parse_target(pages({"GET /v1/models/half/metadata": (200, document)}).url, "half", "tfserving")

    found = describe_model(served({"regress": examples, "serving_default": half}))
    assert found.inputs == (TensorSpec("x", "float32", ("batch", 1)),)
    assert found.outputs == (TensorSpec("y", "int32", ("batch",)),)
    assert (found.versions, found.provider) == (("123",), "")
    with pytest.raises(BenchError, match="no signature 'serving_default', only regress"):
        describe_model(served({"regress": examples}))
    with pytest.raises(BenchError, match="'inputs' of model 'half' has no shape; say what it takes with --inputs"):
        describe_model(served({"serving_default": examples}))


def test_tensorflow_over_grpc_sends_content_and_reads_lists():
    target = parse_target("grpc://h:1/m", protocol="tfserving-grpc")
    dialect = find_dialect("tfserving-grpc")
    request = PredictRequest.FromString(dialect.encode(target, PAIR, (X, N)).body)
    assert request.model_spec.name == "m"
    assert not request.model_spec.HasField("version")
    assert request.inputs["n"].tensor_content == PAIR["n"].tobytes()
    assert [dim.size for dim in request.inputs["x"].tensor_shape.dim] == [2, 2]
    response = PredictResponse(model_spec={"name": "m", "version": {"value": 1234567}, "signature_name": "s"})
    response.outputs["scores"].dtype = 1  # DT_FLOAT
    response.outputs["scores"].tensor_shape.dim.add(size=1)
    response.outputs["scores"].tensor_shape.dim.add(size=2)
    response.outputs["scores"].float_val.extend([0.25, 0.75])
    content = response.SerializeToString()
    assert dialect.version(content) == "1234567"
    assert dialect.version(PredictResponse(model_spec={"name": "m"}).SerializeToString()) == ""
    assert dialect.decode(content, SCORES)["scores"].tolist() == [[0.25, 0.75]]


def test_torchserve_gets_one_row_alone_and_several_as_a_list():
    one = {"x": PAIR["x"][:1]}
    assert sent("torchserve", one, (X,)) == [0.5, 1.0]
    assert sent("torchserve", {"x": PAIR["x"]}, (X,)) == [[0.5, 1.0], [2.0, 3.0]]
    assert sent("torchserve", {"x": PAIR["x"][:1], "n": PAIR["n"][:1]}, (X, N)) == {"x": [0.5, 1.0], "n": 7}
    assert read("torchserve", [0.25, 0.75], SCORES) == {"scores": [[0.25, 0.75]]}
    assert read("torchserve", [[0.25, 0.75]], SCORES) == {"scores": [[0.25, 0.75]]}
    assert read("torchserve", {"predictions": [[0.25, 0.75]]}, SCORES) == {"scores": [[0.25, 0.75]]}
    assert read("torchserve", {"scores": [0, 1], "label": 1}, BOTH) == {"scores": [[0.0, 1.0]], "label": [1]}


def test_mlflow_gets_tensors_by_name_and_a_table_as_a_data_frame():
    assert sent("mlflow", {"x": PAIR["x"]}, (X,)) == {"inputs": {"x": [[0.5, 1.0], [2.0, 3.0]]}}
    age = TensorSpec("age", "float32", ("batch", 1))
    document = sent("mlflow", {"age": np.array([[0.5], [2]], np.float32), "n": PAIR["n"]}, (age, N))
    frame = pd.DataFrame(**document["dataframe_split"])
    assert frame.to_dict("list") == {"age": [0.5, 2.0], "n": [7, 8]}
    assert read("mlflow", {"predictions": [[0.25, 0.75]]}, SCORES) == {"scores": [[0.25, 0.75]]}
    assert read("mlflow", {"predictions": {"scores": [[0, 1]], "label": [1]}}, BOTH)["label"] == [1]
    with pytest.raises(BenchError, match="no 'predictions'"):
        read("mlflow", [[0.25, 0.75]], SCORES)


@pytest.mark.parametrize(
    ("template", "body"),
    [
        ('{"inputs": {{columns}}}', {"inputs": {"x": [[0.5, 1.0], [2.0, 3.0]], "n": [7, 8]}}),
        ('{"a": {"rows": {{rows}}}}', {"a": {"rows": [{"x": [0.5, 1.0], "n": 7}, {"x": [2.0, 3.0], "n": 8}]}}),
        ('{"ids": {{ input:n }}, "k": 3}', {"ids": [7, 8], "k": 3}),
        ("{{columns}}", {"x": [[0.5, 1.0], [2.0, 3.0]], "n": [7, 8]}),
    ],
)
def test_a_template_says_how_any_server_is_asked(template, body):
    assert sent("json", PAIR, (X, N), url="http://h:1/predict", template=template) == body


@pytest.mark.parametrize(
    ("answer", "document"),
    [
        ("", {"scores": [[0, 1]], "label": [1], "took_ms": 3}),
        ("", [{"scores": [0, 1], "label": 1, "note": "x"}]),
        ("", {"scores": [0, 1], "label": 1}),
        ("outputs", {"outputs": {"scores": [[0, 1]], "label": [1]}}),
        ("0.result", [{"result": [{"scores": [0, 1], "label": 1}]}]),
    ],
)
def test_an_answers_path_says_where_the_outputs_lie(answer, document):
    assert read("json", document, BOTH, answer) == {"scores": [[0.0, 1.0]], "label": [1]}


@pytest.mark.parametrize(
    ("document", "outputs", "fault"),
    [
        ({"predictions": [[1, 2]]}, SCORES, "no output 'scores'; it has predictions"),
        ([[1, 2]], BOTH, "names no outputs"),
        ([[1, 2]], {}, "names no types"),
        ([[1, 2, 3]], SCORES, r"shape \[1, 3\], expected \[-1, 2\]"),
        ([[1], [2, 3]], SCORES, "cannot be read as FP32"),
        ({"scores": [[1, 2]], "label": [1.5]}, BOTH, "'label' cannot be read as INT64"),
        ({"scores": [[1, 2]], "label": [True]}, BOTH, "'label' cannot be read as INT64"),
    ],
)
def test_an_answer_that_does_not_fit_the_outputs_is_named(document, outputs, fault):
    with pytest.raises(BenchError, match=fault):
        read("json", document, outputs)


def test_a_path_that_leads_nowhere_is_told_with_what_there_is():
    with pytest.raises(BenchError, match=r"--answer outputs\.1; 'outputs' is not in result"):
        read("json", {"result": []}, SCORES, "outputs.1")


def test_null_is_a_float_that_json_cannot_say_and_an_empty_list_is_no_rows():
    assert np.isnan(read("json", [[None, 1]], SCORES)["scores"][0][0])
    boxes = {"boxes": TensorSpec("boxes", "float32", ("found", 4))}
    assert find_dialect("json").decode(b"[]", boxes)["boxes"].shape == (0, 4)


TRITON = {
    "name": "m",
    "versions": ["1"],
    "platform": "onnxruntime_onnx",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 2]}],
}
CONFIG = {
    "name": "m",
    "platform": "onnxruntime_onnx",
    "backend": "onnxruntime",
    "max_batch_size": 8,
    "instance_group": [{"name": "m_0", "kind": "KIND_GPU", "count": 1, "gpus": [0], "profile": []}],
    "parameters": {"x": {"string_value": "y"}},
    "optimization": {"priority": "PRIORITY_DEFAULT"},
}


def test_tritons_configuration_says_its_backend_and_kind_of_instance(pages):
    described = {"GET /v2/models/m": (200, TRITON)}
    with_config = pages({**described, "GET /v2/models/m/config": (200, CONFIG)})
    assert describe_model(parse_target(with_config.url, "m")).provider == "onnxruntime GPU"
    assert describe_model(parse_target(with_config.url, "m")).outputs[0].shape == ("batch", 2)
    without = pages(described)
    found = describe_model(parse_target(without.url, "m"))
    assert (found.provider, found.inputs) == ("", (X,))
    assert found.outputs[0].shape == ("some", 2)  # it need not be the rows


@pytest.mark.parametrize("protocol", ["torchserve", "sagemaker", "mlflow", "json"])
def test_a_server_that_describes_nothing_says_what_to_add(pages, protocol):
    server = pages({})
    form = {"template": "{{rows}}"} if protocol == "json" else {}
    target = parse_target(server.url, "m", protocol, **form)
    with pytest.raises(BenchError, match="does not say what 'm' takes; say it with --inputs"):
        describe_model(target)


@pytest.mark.parametrize("protocol", ["sagemaker", "mlflow", "json"])
def test_where_no_model_has_a_name_none_is_needed(pages, protocol):
    form = {"template": "{{rows}}"} if protocol == "json" else {}
    target = parse_target(pages({}).url + "/invocations", "", protocol, **form)
    assert find_model(target) == target
    assert target.title == "invocations"


@pytest.mark.parametrize("document", [{"error": "as asked"}, {"message": "as asked"}, {"detail": "as asked"}])
def test_a_refusal_is_told_in_the_servers_own_words(pages, document):
    server = pages({"GET /v2/models/m": (503, document)})
    with pytest.raises(BenchError, match=r"HTTP 503: as asked$"):
        describe_model(parse_target(server.url, "m"))
