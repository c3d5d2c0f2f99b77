"""TensorFlow Serving over REST (https://www.tensorflow.org/tfx/serving/api_rest)."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from mlserve.bench.clients.client import Request
from mlserve.bench.dialects.asking import ask, parse, reading
from mlserve.bench.dialects.dialect import ModelDescription, Transport
from mlserve.bench.dialects.tensorflow_metadata import SIGNATURES, Metadata, described_by_signature
from mlserve.bench.dialects.v2_metadata import described_besides
from mlserve.bench.target import Target
from mlserve.errors import BenchError, InvalidRequest
from mlserve.model.tensors import Tensors, TensorSpec, batchable
from mlserve.wire.plain import parse_json, to_columns, to_rows, write_json
from mlserve.wire.plain_answers import read_answer

__all__ = ["TensorflowRest"]

_JSON = (("content-type", "application/json"),)
_BY_ROW, _BY_COLUMN = "predictions", "outputs"


class TensorflowRest:
    """`instances` by row; `inputs` by column for a model whose inputs are not all made of rows."""

    transport: Transport = "http"
    needs_model = True

    def path(self, target: Target) -> str:
        return f"{_model_path(target)}:predict"

    def encode(self, target: Target, tensors: Tensors, specs: Sequence[TensorSpec]) -> Request:
        names = [spec.name for spec in specs]
        document: dict[str, Any] = (
            {"instances": to_rows(tensors, names)} if batchable(specs) else {"inputs": to_columns(tensors, names)}
        )
        body = write_json(document, non_finite=True)
        return Request(body, target.with_headers(_JSON), len(next(iter(tensors.values()))))

    def decode(self, content: bytes, outputs: Mapping[str, TensorSpec]) -> Tensors:
        with reading():
            document = parse_json(content, non_finite=True)
            for form in (_BY_ROW, _BY_COLUMN):
                if isinstance(document, dict) and form in document:
                    return read_answer(document[form], outputs)
            raise InvalidRequest(f"it has neither '{_BY_ROW}' nor '{_BY_COLUMN}'")

    def version(self, content: bytes) -> str:  # the seam's; no answer names it
        return ""

    def describe(self, target: Target) -> ModelDescription:
        path = f"{_model_path(target)}/metadata"
        said: Any = parse(target, ask(target, "GET", path), Metadata, path, "TensorFlow Serving's REST")
        if SIGNATURES not in said.metadata:
            raise BenchError(f"{target.url} describes no signatures of model '{target.model}'")
        found = described_by_signature(target, said.model_spec.version, said.metadata[SIGNATURES].signature_def)
        besides = described_besides(target)
        if besides is None:
            return found
        return msgspec.structs.replace(found, provider=besides.provider, precision=besides.precision)

    def models(self, target: Target) -> tuple[str, ...] | None:
        """TensorFlow Serving does not list them; a server that speaks V2 too does."""
        besides = described_besides(target)
        return None if besides is None else (besides.name,)


def _model_path(target: Target) -> str:
    version = f"/versions/{quote(target.version, safe='')}" if target.version else ""
    return f"/v1/models/{quote(target.model, safe='')}{version}"
