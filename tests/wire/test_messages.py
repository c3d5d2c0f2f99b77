"""Our messages are those of the public protocol: held against the ones that tritonclient brings along."""

import pytest
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from mlserve.wire import messages

THEIRS = descriptor_pb2.FileDescriptorProto(), descriptor_pb2.FileDescriptorProto()
service_pb2.DESCRIPTOR.CopyToProto(THEIRS[0])
model_config_pb2.DESCRIPTOR.CopyToProto(THEIRS[1])
OURS = descriptor_pb2.FileDescriptorProto()
messages.ModelInferRequest.DESCRIPTOR.file.CopyToProto(OURS)
# What this server tells of a model's configuration is a part of what Triton has to say of one.
PARTS = {"ModelConfig", "ModelInput", "ModelOutput", "ModelInstanceGroup", "ModelDynamicBatching"}


def flattened(kinds, prefix=""):
    """Every message, nested ones by their full name."""
    found = {}
    for kind in kinds:
        found[prefix + kind.name] = kind
        found |= flattened(kind.nested_type, f"{prefix}{kind.name}.")
    return found


def fields(kind):
    return {
        field.name: (field.number, field.type, field.type_name, field.label, field.HasField("oneof_index"))
        for field in kind.field
    }


THEIR_MESSAGES = flattened([*THEIRS[0].message_type, *THEIRS[1].message_type])
OUR_MESSAGES = flattened(OURS.message_type)


@pytest.mark.parametrize("name", sorted(OUR_MESSAGES))
def test_a_message_has_the_public_field_numbers(name):
    ours, theirs = fields(OUR_MESSAGES[name]), fields(THEIR_MESSAGES[name])
    if name in PARTS:
        assert ours.items() <= theirs.items()
    else:
        assert ours == theirs


def test_every_message_and_every_call_of_triton_s_service_is_there():
    assert {kind.name for kind in THEIRS[0].message_type} <= {kind.name for kind in OURS.message_type}
    ours, theirs = (
        {
            call.name: (call.input_type, call.output_type, call.client_streaming, call.server_streaming)
            for call in file.service[0].method
        }
        for file in (OURS, THEIRS[0])
    )
    assert ours == theirs
    assert f"{OURS.package}.{OURS.service[0].name}" == messages.SERVICE


def test_enumerations_have_the_public_numbers():
    theirs = {kind.name: {value.name: value.number for value in kind.value} for kind in THEIRS[1].enum_type}
    assert {kind.name: {value.name: value.number for value in kind.value} for kind in OURS.enum_type} == theirs
