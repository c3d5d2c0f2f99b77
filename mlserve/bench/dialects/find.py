"""Every dialect by its protocol's name."""

from mlserve.bench.dialects.dialect import Dialect
from mlserve.runs.load import Protocol

__all__ = ["find_dialect"]


def find_dialect(protocol: Protocol) -> Dialect:
    """The dialect of `protocol`. Only the one that is used is imported."""
    match protocol:
        case "grpc":
            from mlserve.bench.dialects.v2_grpc import V2Grpc

            return V2Grpc()
        case "rest":
            from mlserve.bench.dialects.v2_rest import V2Rest

            return V2Rest()
    raise NotImplementedError(protocol)
