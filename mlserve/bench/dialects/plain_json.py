"""A server of no protocol: the target's template says how it is asked, and where in its answers the outputs are."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlserve.bench.clients.client import Request
from mlserve.bench.dialects.asking import reading
from mlserve.bench.dialects.json_template import fill_template
from mlserve.bench.dialects.rows import JSON, AsksByRows, parsed
from mlserve.bench.target import Target
from mlserve.errors import BenchError
from mlserve.model.tensors import Tensors, TensorSpec
from mlserve.wire.plain_answers import read_answer

__all__ = ["PlainJson"]


class PlainJson(AsksByRows):
    """`answer` is a path of names and numbers with dots between them: `outputs.scores`, `0.prediction`; "" is all."""

    def __init__(self, answer: str = "") -> None:
        self._answer = answer

    def path(self, target: Target) -> str:
        return target.path

    def encode(self, target: Target, tensors: Tensors, specs: Sequence[TensorSpec]) -> Request:
        body = fill_template(target.template, tensors, specs)
        return Request(body, target.with_headers(JSON), len(next(iter(tensors.values()))))

    def decode(self, content: bytes, outputs: Mapping[str, TensorSpec]) -> Tensors:
        value = _at(parsed(content), self._answer)
        with reading("" if self._answer else "; say with --answer where its outputs lie, such as --answer outputs"):
            return read_answer(value, outputs)


def _at(value: Any, path: str) -> Any:
    """What lies at `path` of a parsed answer. Raises BenchError where nothing does."""
    for part in path.split(".") if path else ():
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            has = ", ".join(list(value)[:16]) if isinstance(value, dict) else f"a {type(value).__name__}"
            raise BenchError(f"the answer cannot be read: nothing lies at --answer {path}; '{part}' is not in {has}")
    return value
