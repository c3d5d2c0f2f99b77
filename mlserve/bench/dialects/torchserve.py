"""TorchServe's inference API (https://pytorch.org/serve/inference_api.html).

What a body holds is each handler's own business. One row is sent alone, as handlers take it that leave batches to
TorchServe; several as a list.
"""

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from mlserve.bench.clients.client import Request
from mlserve.bench.dialects.asking import reading
from mlserve.bench.dialects.rows import JSON, AsksByRows, parsed
from mlserve.bench.target import Target
from mlserve.model.tensors import Tensors, TensorSpec
from mlserve.wire.plain import to_rows, write_json
from mlserve.wire.plain_answers import read_answer

__all__ = ["Torchserve"]


class Torchserve(AsksByRows):
    """A row is the plain value of a single input, or an object by the inputs' names."""

    needs_model = True

    def path(self, target: Target) -> str:
        version = f"/{quote(target.version, safe='')}" if target.version else ""
        return f"/predictions/{quote(target.model, safe='')}{version}"

    def encode(self, target: Target, tensors: Tensors, specs: Sequence[TensorSpec]) -> Request:
        rows = to_rows(tensors, [spec.name for spec in specs])
        return Request(write_json(rows[0] if len(rows) == 1 else rows), target.with_headers(JSON), len(rows))

    def decode(self, content: bytes, outputs: Mapping[str, TensorSpec]) -> Tensors:
        document = parsed(content)
        if isinstance(document, dict) and document.keys() == {"predictions"} and "predictions" not in outputs:
            document = document["predictions"]  # TorchServe's JSON envelope
        with reading():
            return read_answer(document, outputs)
