"""Server reflection, by grpcio's own reflection client: a client that knows no .proto file can call the server."""

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

V2 = "inference.GRPCInferenceService"


@pytest.fixture(scope="module", params=["native", "grpcio"])
def channel(request, serving_settings, tiny_onnx):
    with (
        serving_settings(tiny_onnx, grpc_transport=request.param) as server,
        grpc.insecure_channel(server.grpc) as made,
    ):
        yield made


def test_every_service_is_listed(channel):
    listed = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert {V2, "grpc.health.v1.Health", "tensorflow.serving.PredictionService"} <= listed


def test_a_client_without_a_proto_file_calls_the_server(channel):
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    for name in ProtoReflectionDescriptorDatabase(channel).get_services():
        assert pool.FindServiceByName(name).methods
    method = pool.FindServiceByName(V2).methods_by_name["ModelMetadata"]
    ask, told = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
    call = channel.unary_unary(f"/{V2}/ModelMetadata", ask.SerializeToString, told.FromString)
    assert call(ask(name="tiny"), timeout=20).inputs[0].name == "x"


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
@pytest.mark.parametrize(
    "asked",
    [
        {"file_containing_symbol": "no.such.Thing"},
        {"file_containing_symbol": "google.protobuf.FileDescriptorSet"},
        {"file_by_filename": "../../etc/passwd"},
        {"all_extension_numbers_of_type": V2},
        {},
    ],
)
def test_what_no_service_uses_is_not_found_and_the_stream_goes_on(channel, version, asked):
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = [
        reflection_pb2.ServerReflectionRequest(**asked),
        reflection_pb2.ServerReflectionRequest(file_by_filename="inference.proto"),
    ]
    missing, found = call(iter(requests), timeout=20)
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert len(found.file_descriptor_response.file_descriptor_proto) == 1
