"""What an HTTP dialect tells the transport: which path means which model, and how to read and write its bytes."""

from collections.abc import Callable

import msgspec

from mlserve.model.tensors import Tensors
from mlserve.serve.service import ServedModel
from mlserve.wire.signature import InferRequest, Signature

__all__ = ["JSON_BYTES", "InferRoute", "error_body"]

JSON_BYTES = b"inference-header-content-length"
"""The header that says how many bytes of a body are JSON; raw tensors follow them."""


class InferRoute(msgspec.Struct, frozen=True):
    """What one path means: a model, and the dialect's two halves.

    `decode(body, signature, json_bytes)` and `encode(signature, request, outputs) -> (body, json_bytes)`.
    """

    model: ServedModel
    protocol: str
    decode: Callable[[bytes, Signature, int | None], InferRequest]
    encode: Callable[[Signature, InferRequest, Tensors], tuple[bytes, int | None]]


def error_body(message: str) -> bytes:
    """`{"error": message}`, at most a kilobyte of it."""
    return msgspec.json.encode({"error": message[:900]})
