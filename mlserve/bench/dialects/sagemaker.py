"""SageMaker's container contract: `POST /invocations`, or `/models/NAME/invoke` where one container has several models.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html

JSON rows, as the framework containers take them; `.npy` where the target has the header `content-type:
application/x-npy`. `accept` of the same type asks for `.npy` answers.
"""

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from mlserve.bench.clients.client import Request
from mlserve.bench.dialects.asking import reading
from mlserve.bench.dialects.rows import JSON, AsksByRows, parsed
from mlserve.bench.target import Target
from mlserve.errors import UsageError
from mlserve.model.tensors import Tensors, TensorSpec
from mlserve.wire.npy import read_npy, write_npy
from mlserve.wire.plain import to_rows, write_json
from mlserve.wire.plain_answers import read_answer
from mlserve.wire.signature import Field

__all__ = ["Sagemaker"]

_NPY = "application/x-npy"
_NPY_STARTS = b"\x93NUMPY"
# Which model is meant where the path does not say; containers of one model pass it over.
_TARGET_MODEL = "x-amzn-sagemaker-target-model"


class Sagemaker(AsksByRows):
    """A row is the plain value of a single input, or an object by the inputs' names."""

    def path(self, target: Target) -> str:
        return target.path

    def encode(self, target: Target, tensors: Tensors, specs: Sequence[TensorSpec]) -> Request:
        named = ((_TARGET_MODEL, quote(target.model)),) if target.model else ()
        headers = target.with_headers((*JSON, *named))
        rows = len(next(iter(tensors.values())))
        if target.header("content-type") != _NPY:
            return Request(write_json(to_rows(tensors, [spec.name for spec in specs])), headers, rows)
        if len(specs) != 1 or specs[0].dtype == "object":
            raise UsageError(f"content-type {_NPY} carries one array of numbers, '{target.title}' takes more; use JSON")
        return Request(write_npy(tensors[specs[0].name]), headers, rows)

    def decode(self, content: bytes, outputs: Mapping[str, TensorSpec]) -> Tensors:
        if content.startswith(_NPY_STARTS) and len(outputs) == 1:
            (spec,) = outputs.values()
            with reading():
                return {spec.name: read_npy(content, Field(spec), "")}
        document = parsed(content)
        if isinstance(document, dict) and document.keys() == {"predictions"} and "predictions" not in outputs:
            document = document["predictions"]  # as the TensorFlow container answers
        with reading():
            return read_answer(document, outputs)
