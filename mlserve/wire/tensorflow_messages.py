"""TensorFlow Serving's message classes, made from `tensorflow.binpb` in a descriptor pool of their own.

A pool of their own, because TensorFlow registers the same names in protobuf's global one, and a process may import
both.
"""

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = [
    "MODEL_SERVICE",
    "PREDICTION_SERVICE",
    "ClassificationRequest",
    "ClassificationResponse",
    "DataType",
    "GetModelMetadataRequest",
    "GetModelMetadataResponse",
    "GetModelStatusRequest",
    "GetModelStatusResponse",
    "PredictRequest",
    "PredictResponse",
    "RegressionRequest",
    "RegressionResponse",
    "SignatureDefMap",
    "TensorProto",
]

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"

_files = descriptor_pb2.FileDescriptorSet.FromString(
    resources.files(__package__).joinpath("tensorflow.binpb").read_bytes()
)
_pool = descriptor_pool.DescriptorPool()
for _file in _files.file:
    _pool.Add(_file)


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))


DataType: dict[str, int] = {
    value.name: value.number for value in _pool.FindEnumTypeByName("tensorflow.serving.DataType").values
}
"""`DT_FLOAT` -> 1, and so on."""

ClassificationRequest = _message("ClassificationRequest")
ClassificationResponse = _message("ClassificationResponse")
GetModelMetadataRequest = _message("GetModelMetadataRequest")
GetModelMetadataResponse = _message("GetModelMetadataResponse")
GetModelStatusRequest = _message("GetModelStatusRequest")
GetModelStatusResponse = _message("GetModelStatusResponse")
PredictRequest = _message("PredictRequest")
PredictResponse = _message("PredictResponse")
RegressionRequest = _message("RegressionRequest")
RegressionResponse = _message("RegressionResponse")
SignatureDefMap = _message("SignatureDefMap")
TensorProto = _message("TensorProto")
