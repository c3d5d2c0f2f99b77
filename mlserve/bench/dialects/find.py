"""Every dialect by its protocol's name."""

from mlserve.bench.dialects.dialect import Dialect
from mlserve.runs.load import Protocol

__all__ = ["find_dialect"]


def find_dialect(protocol: Protocol, answer: str = "") -> Dialect:
    """The dialect of `protocol`. Only the one that is used is imported.

    `answer` is a target's: where in the answers of a server of no protocol the outputs lie.
    """
    found: Dialect
    match protocol:
        case "rest" | "rest-binary":
            from mlserve.bench.dialects.v2_rest import V2Rest

            found = V2Rest(binary=protocol == "rest-binary")
        case "grpc":
            from mlserve.bench.dialects.v2_grpc import V2Grpc

            found = V2Grpc()
        case "tfserving":
            from mlserve.bench.dialects.tensorflow_rest import TensorflowRest

            found = TensorflowRest()
        case "tfserving-grpc":
            from mlserve.bench.dialects.tensorflow_grpc import TensorflowGrpc

            found = TensorflowGrpc()
        case "torchserve":
            from mlserve.bench.dialects.torchserve import Torchserve

            found = Torchserve()
        case "sagemaker":
            from mlserve.bench.dialects.sagemaker import Sagemaker

            found = Sagemaker()
        case "mlflow":
            from mlserve.bench.dialects.mlflow import Mlflow

            found = Mlflow()
        case "json":
            from mlserve.bench.dialects.plain_json import PlainJson

            found = PlainJson(answer)
    return found
