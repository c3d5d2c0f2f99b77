"""What the protocols share that ask by rows of plain JSON: TorchServe, SageMaker, MLflow.

None of them says what a model takes; a server that speaks V2 besides does.
"""

from typing import Any

from mlserve.bench.dialects.asking import reading
from mlserve.bench.dialects.dialect import ModelDescription, Transport
from mlserve.bench.dialects.v2_metadata import described_besides
from mlserve.bench.target import Target
from mlserve.wire.plain import parse_json

__all__ = ["JSON", "AsksByRows", "parsed"]

JSON = (("content-type", "application/json"),)
"""The header of a request."""


class AsksByRows:
    """The parts of a dialect that are the same in all of them."""

    transport: Transport = "http"
    needs_model = False

    def version(self, content: bytes) -> str:  # the seam's; no answer names it
        return ""

    def describe(self, target: Target) -> ModelDescription | None:
        return described_besides(target)

    def models(self, target: Target) -> tuple[str, ...] | None:
        besides = described_besides(target)
        return None if besides is None else (besides.name,)


def parsed(content: bytes) -> Any:
    """The JSON of an answer. Raises BenchError."""
    with reading():
        return parse_json(content)
