"""The Open Inference Protocol (V2) over REST."""

import json
from collections.abc import Mapping, Sequence

from mlserve.bench.clients.client import Request
from mlserve.bench.dialects.asking import reading
from mlserve.bench.dialects.dialect import ModelDescription, Transport
from mlserve.bench.dialects.v2_metadata import described_by_rest, listed_by_rest
from mlserve.bench.target import Target
from mlserve.errors import BenchError
from mlserve.model.tensors import Tensors, TensorSpec
from mlserve.wire import rest

__all__ = ["V2Rest"]

_VERSION = b'"model_version":'
# Servers write the version before the outputs; beyond this, finding it would cost more than it tells.
_HEAD_BYTES = 256


class V2Rest:
    """Tensors as JSON, or with `binary` as raw bytes behind the JSON (the binary tensor data extension)."""

    transport: Transport = "http"
    needs_model = True

    def __init__(self, *, binary: bool = False) -> None:
        self._binary = binary

    def path(self, target: Target) -> str:
        return target.infer_path

    def encode(self, target: Target, tensors: Tensors, specs: Sequence[TensorSpec]) -> Request:
        body, headers = rest.encode_request(tensors, specs, binary=self._binary)
        return Request(body, target.with_headers(headers.items()), len(next(iter(tensors.values()))))

    def decode(self, content: bytes, outputs: Mapping[str, TensorSpec]) -> Tensors:
        """Whether the JSON or raw bytes come back is the server's to choose: what is there is read."""
        json_bytes = _json_bytes(content) if self._binary else None
        with reading():
            return rest.decode_response(content, outputs, json_bytes)

    def version(self, content: bytes) -> str:
        start = content.find(_VERSION, 0, _HEAD_BYTES) + len(_VERSION)
        if start < len(_VERSION):
            return ""
        start += content[start : start + 1] == b" "
        end = content.find(b'"', start + 1) if content[start : start + 1] == b'"' else -1
        return content[start + 1 : end].decode("utf-8", "replace") if end >= 0 else ""

    def describe(self, target: Target) -> ModelDescription:
        return described_by_rest(target)

    def models(self, target: Target) -> tuple[str, ...]:
        return listed_by_rest(target)


def _json_bytes(content: bytes) -> int | None:
    """Where the JSON of an answer ends and raw tensors begin; None when it is JSON throughout.

    The answer's header Inference-Header-Content-Length says the same; a client keeps bodies only. One byte is one
    character of latin-1, so that the parser's position is the number of bytes.
    """
    try:
        _, end = json.JSONDecoder().raw_decode(content.decode("latin-1"))
    except ValueError as error:
        raise BenchError(f"the answer cannot be read: it does not begin with JSON ({error})") from error
    return end if end < len(content) else None
