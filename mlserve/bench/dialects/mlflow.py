"""MLflow's scoring protocol (https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/).

A model of tensors is sent `inputs`, by name; one whose inputs are a table's columns a data frame (`dataframe_split`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mlserve.bench.clients.client import Request
from mlserve.bench.dialects.asking import reading
from mlserve.bench.dialects.rows import JSON, AsksByRows, parsed
from mlserve.bench.target import Target
from mlserve.errors import InvalidRequest
from mlserve.model.tensors import Tensors, TensorSpec
from mlserve.wire.plain import to_columns, write_json
from mlserve.wire.plain_answers import read_answer

__all__ = ["Mlflow"]


class Mlflow(AsksByRows):
    """Answers stand under `predictions`, by row or by column."""

    def path(self, target: Target) -> str:
        return target.path

    def encode(self, target: Target, tensors: Tensors, specs: Sequence[TensorSpec]) -> Request:
        names = [spec.name for spec in specs]
        document: dict[str, Any]
        if len(specs) > 1 and all(array.ndim == 1 or array.shape[1:] == (1,) for array in tensors.values()):
            columns = to_columns({name: tensors[name].reshape(-1) for name in names}, names)
            rows = [list(row) for row in zip(*columns.values(), strict=True)]
            document = {"dataframe_split": {"columns": names, "data": rows}}
        else:
            document = {"inputs": to_columns(tensors, names)}
        return Request(write_json(document), target.with_headers(JSON), len(next(iter(tensors.values()))))

    def decode(self, content: bytes, outputs: Mapping[str, TensorSpec]) -> Tensors:
        document = parsed(content)
        with reading():
            if not isinstance(document, dict) or "predictions" not in document:
                raise InvalidRequest("it has no 'predictions'")
            return read_answer(document["predictions"], outputs)
