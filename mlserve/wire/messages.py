"""The protocol's message classes, made from `inference.binpb` in a descriptor pool of our own.

A pool of our own, because tritonclient and kserve register the same message names in protobuf's global one, and two
definitions of one name in one process are an error. And no generated code, which would tie us to one protobuf version.
"""

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = [
    "SERVICE",
    "ModelInferRequest",
    "ModelInferResponse",
    "ModelMetadataRequest",
    "ModelMetadataResponse",
    "ModelReadyRequest",
    "ModelReadyResponse",
    "ServerLiveResponse",
    "ServerMetadataResponse",
    "ServerReadyResponse",
]

SERVICE = "inference.GRPCInferenceService"

_files = descriptor_pb2.FileDescriptorSet.FromString(
    resources.files(__package__).joinpath("inference.binpb").read_bytes()
)
_pool = descriptor_pool.DescriptorPool()
_pool.Add(_files.file[0])


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"inference.{name}"))


ModelInferRequest = _message("ModelInferRequest")
ModelInferResponse = _message("ModelInferResponse")
ModelMetadataRequest = _message("ModelMetadataRequest")
ModelMetadataResponse = _message("ModelMetadataResponse")
ModelReadyRequest = _message("ModelReadyRequest")
ModelReadyResponse = _message("ModelReadyResponse")
ServerLiveResponse = _message("ServerLiveResponse")
ServerMetadataResponse = _message("ServerMetadataResponse")
ServerReadyResponse = _message("ServerReadyResponse")
