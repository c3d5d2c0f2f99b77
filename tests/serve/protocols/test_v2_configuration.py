"""A model's configuration, as Triton's own clients and messages read it."""

import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException


@pytest.fixture(scope="module")
def http(tiny_server):
    with triton_http.InferenceServerClient(tiny_server.http) as client:
        yield client


@pytest.fixture(scope="module")
def grpc(tiny_server):
    with triton_grpc.InferenceServerClient(tiny_server.grpc) as client:
        yield client


def test_both_wires_tell_the_same(http, grpc):
    for name in ("tiny", "echo"):
        told = http.get_model_config(name)
        same = grpc.get_model_config(name, as_json=True)["config"]
        assert told["name"] == same["name"] == name
        assert http.get_model_config(name, "1") == told
        for side in ("input", "output"):
            assert [tensor["data_type"] for tensor in told[side]] == [tensor["data_type"] for tensor in same[side]]


def test_shapes_leave_the_rows_out_for_a_model_whose_requests_are_batched(http, grpc):
    told = http.get_model_config("tiny")
    assert told["platform"] == "onnxruntime_onnx"
    assert told["max_batch_size"] == 32
    assert told["input"] == [
        {"name": "x", "data_type": "TYPE_FP32", "dims": [30], "format": "FORMAT_NONE", "optional": False}
    ]
    assert told["output"] == [{"name": "scores", "data_type": "TYPE_FP32", "dims": [2]}]
    assert told["version_policy"] == {"specific": {"versions": [1]}}
    config = grpc.get_model_config("tiny").config
    assert config.max_batch_size == 32
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.default_queue_policy.allow_timeout_override
    assert list(config.input[0].dims) == [30]
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    assert not config.model_transaction_policy.decoupled


def test_every_type_has_triton_s_name(grpc):
    types = {
        tensor.name: model_config_pb2.DataType.Name(tensor.data_type)
        for tensor in grpc.get_model_config("echo").config.input
    }
    assert types.pop("in_BYTES") == "TYPE_STRING"
    assert types == {name: name.replace("in_", "TYPE_") for name in types}


def test_a_model_that_is_not_there_has_none(http, grpc):
    for client in (http, grpc):
        with pytest.raises(InferenceServerException, match="Request for unknown model: 'nobody' is not found"):
            client.get_model_config("nobody")
        with pytest.raises(InferenceServerException, match="version 99 is not found"):
            client.get_model_config("tiny", "99")


def test_it_tells_what_the_model_really_runs_on(http, grpc):
    told = http.get_model_config("tiny")["parameters"]
    assert told["provider"] == {"string_value": "CPUExecutionProvider"}
    assert told["precision"] == {"string_value": ""}  # that of the weights
    assert grpc.get_model_config("tiny").config.parameters["provider"].string_value == "CPUExecutionProvider"
