"""What an HTTP dialect tells the transport: which path means which model, and how to read and write its bytes."""

from collections.abc import Callable

import msgspec

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import Tensors
from mlserve.serve.service import ServedModel
from mlserve.wire.signature import InferRequest, Signature

__all__ = ["ENCODING", "JSON_BYTES", "InferRoute", "error_body", "json_part"]

JSON_BYTES = b"inference-header-content-length"
"""The header that says how many bytes of a body are JSON; raw tensors follow them."""

ENCODING = b"content-encoding"

# More digits than any body has bytes; int() itself refuses thousands of them with an error of its own.
_MOST_DIGITS = 18


class InferRoute(msgspec.Struct, frozen=True):
    """What one path means: a model, and the dialect's two halves.

    `decode(body, signature, json_bytes)` and `encode(signature, request, outputs) -> (body, json_bytes)`.
    """

    model: ServedModel
    protocol: str
    decode: Callable[[bytes, Signature, int | None], InferRequest]
    encode: Callable[[Signature, InferRequest, Tensors], tuple[bytes, int | None]]


def json_part(length: bytes | None, encoding: bytes | None) -> int | None:
    """How many bytes of a body are JSON, by the two headers' values; None when all are.

    Raises InvalidRequest for a length that is no number and for an encoding: a small gzip can hold a huge body.
    """
    if encoding is not None and encoding.lower() != b"identity":
        raise InvalidRequest("content-encoding is not supported; send the body as it is")
    if length is None:
        return None
    if not length.isdigit() or len(length) > _MOST_DIGITS:
        raise InvalidRequest("Inference-Header-Content-Length is no number of bytes")
    return int(length)


def error_body(message: str) -> bytes:
    """`{"error": message}`, at most a kilobyte of it."""
    return msgspec.json.encode({"error": message[:900]})
