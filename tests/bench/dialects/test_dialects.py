"""Every dialect against a real server that speaks them all: found, described, asked, read, counted."""

import numpy as np
import pytest

from mlserve.bench.counters import read_count
from mlserve.bench.dialects.find import find_dialect
from mlserve.bench.probe import ask_once, describe_model, find_model
from mlserve.bench.target import parse_header, parse_target
from mlserve.errors import BenchError, UsageError

ALL = ("rest", "rest-binary", "grpc", "tfserving", "tfserving-grpc", "torchserve", "sagemaker", "mlflow", "json")
# What the path of a URL adds, where a protocol has no path of its own.
PATHS = {"json": "/v1/predict"}
TEMPLATE, ANSWER = '{"inputs": {{columns}}}', "outputs"


def target_of(server, protocol, model="", path=None):
    url = server.grpc if "grpc" in protocol else server.http + (PATHS.get(protocol, "") if path is None else path)
    form = {"template": TEMPLATE, "answer": ANSWER} if protocol == "json" else {}
    return parse_target(url, model, protocol, headers=server.headers, **form)


def asked(target, tensors):
    """(answer's tensors, answer's bytes) of one request, its inputs as the server describes them."""
    found = describe_model(target)
    dialect = find_dialect(target.protocol, target.answer)
    request = dialect.encode(target, tensors, found.inputs)
    assert request.rows == len(tensors["visits"])
    content = ask_once(target, request)
    return dialect.decode(content, {spec.name: spec for spec in found.outputs}), content


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("protocol", ALL)
def test_a_model_is_described_asked_and_its_answer_read(lone, mixed_rows, protocol, rows):
    tensors = mixed_rows(rows)
    outputs, content = asked(target_of(lone, protocol, "mixed"), tensors)
    assert outputs.keys() == {f"same_{name}" for name in tensors}
    for name, array in tensors.items():
        found = outputs[f"same_{name}"]
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert np.array_equal(found, array)
    told = {"rest", "rest-binary", "grpc", "tfserving-grpc"}
    assert find_dialect(protocol).version(content) == ("1" if protocol in told else "")


@pytest.mark.parametrize("protocol", ALL)
def test_a_server_says_what_it_runs_a_model_on(lone, protocol):
    found = describe_model(target_of(lone, protocol, "mixed"))
    assert found.provider == "CPUExecutionProvider"
    shapes = {spec.name: (spec.dtype, spec.shape) for spec in found.inputs}
    assert shapes == {
        "age": ("float32", ("batch", 1)),
        "city": ("object", ("batch", 1)),
        "point": ("float32", ("batch", 2)),
        "visits": ("int64", ("batch",)),
    }
    assert {spec.name for spec in found.outputs} == {f"same_{name}" for name in shapes}


@pytest.mark.parametrize("protocol", ALL)
def test_the_server_counts_what_was_asked(lone, mixed_rows, protocol):
    target = target_of(lone, protocol, "mixed")
    before = read_count(lone.http, target)
    for _ in range(2):
        asked(target, mixed_rows(1))
    assert read_count(lone.http, target) == before + 2


@pytest.mark.parametrize("protocol", ALL)
def test_without_its_key_nothing_is_answered(lone, mixed_rows, protocol):
    form = {"template": TEMPLATE} if protocol == "json" else {}
    url = lone.grpc if "grpc" in protocol else lone.http + PATHS.get(protocol, "")
    keyless = parse_target(url, "mixed", protocol, **form)
    described = describe_model(target_of(lone, protocol, "mixed"))
    request = find_dialect(protocol).encode(keyless, mixed_rows(1), described.inputs)
    with pytest.raises(BenchError, match=r"401|UNAUTHENTICATED"):
        ask_once(keyless, request)
    assert read_count(lone.http, keyless) is None


@pytest.mark.parametrize("protocol", [each for each in ALL if "grpc" not in each])
def test_the_only_model_is_found(lone, protocol):
    assert find_model(target_of(lone, protocol)).model == "mixed"


@pytest.mark.parametrize("protocol", ["grpc", "tfserving-grpc"])
def test_grpc_lists_no_models(lone, protocol):
    with pytest.raises(BenchError, match="--model NAME"):
        find_model(target_of(lone, protocol))


@pytest.mark.parametrize("protocol", ["tfserving", "torchserve"])
def test_one_of_several_models_must_be_named(both, protocol):
    with pytest.raises(BenchError, match="--model NAME"):
        find_model(target_of(both, protocol))


@pytest.mark.parametrize("protocol", ["rest", "rest-binary", "grpc", "tfserving", "tfserving-grpc"])
def test_an_unknown_model_is_one_clear_line(both, protocol):
    with pytest.raises(BenchError, match=r"(?s)other|Not_Found|NOT_FOUND|404"):
        describe_model(target_of(both, protocol, "other"))


@pytest.mark.parametrize("path", [None, "/models/mixed/invoke"])
def test_sagemaker_reaches_one_model_of_several(both, mixed_rows, path):
    target = target_of(both, "sagemaker", "mixed", path)
    before = read_count(both.http, target)
    outputs, _ = asked(target, mixed_rows(3))
    assert np.array_equal(outputs["same_visits"], mixed_rows(3)["visits"])
    assert read_count(both.http, target) == before + 1


@pytest.mark.parametrize("accept", ["application/json", "application/x-npy"])
def test_sagemaker_speaks_npy_where_the_headers_say_so(both, tiny_onnx, accept):
    import onnxruntime

    headers = [parse_header("Content-Type: application/x-npy"), parse_header(f"accept: {accept}")]
    target = parse_target(both.http, "tiny", "sagemaker", headers=headers)
    found = describe_model(target)
    rows = np.random.default_rng(0).random((4, 30), np.float32)
    request = find_dialect("sagemaker").encode(target, {"x": rows}, found.inputs)
    assert request.body.startswith(b"\x93NUMPY")
    content = ask_once(target, request)
    assert content.startswith(b"\x93NUMPY") == (accept == "application/x-npy")
    (expected,) = onnxruntime.InferenceSession(tiny_onnx, providers=["CPUExecutionProvider"]).run(None, {"x": rows})
    answer = find_dialect("sagemaker").decode(content, {spec.name: spec for spec in found.outputs})
    assert np.allclose(answer["scores"], expected, rtol=1e-5)


def test_npy_is_refused_for_several_inputs(lone, mixed_rows):
    headers = [parse_header("content-type: application/x-npy"), *lone.headers]
    target = parse_target(lone.http, "mixed", "sagemaker", headers=headers)
    with pytest.raises(UsageError, match="one array of numbers"):
        find_dialect("sagemaker").encode(target, mixed_rows(1), describe_model(target).inputs)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("protocol", [each for each in ALL if each not in ("mlflow", "json")])
def test_a_model_of_one_input_is_asked_by_its_plain_values(both, tiny_onnx, protocol, rows):
    import onnxruntime

    target = target_of(both, protocol, "tiny")
    found = describe_model(target)
    x = np.random.default_rng(rows).random((rows, 30), np.float32)
    dialect = find_dialect(protocol)
    content = ask_once(target, dialect.encode(target, {"x": x}, found.inputs))
    answer = dialect.decode(content, {spec.name: spec for spec in found.outputs})
    (expected,) = onnxruntime.InferenceSession(tiny_onnx, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    assert np.allclose(answer["scores"], expected, rtol=1e-5)


@pytest.mark.parametrize("protocol", ALL)
def test_an_answer_that_is_none_is_a_bench_error(both, protocol):
    outputs = {spec.name: spec for spec in describe_model(target_of(both, "rest", "tiny")).outputs}
    broken = [b"\xff\xfe", b"["]
    if "grpc" not in protocol:  # to which no bytes are a message of nothing
        broken += [b"", b"{}", b'{"predictions": [["a", "b"]]}', b'{"outputs": [1]}']
    for content in broken:
        with pytest.raises(BenchError, match="cannot be read"):
            find_dialect(protocol).decode(content, outputs)
