"""Whether a server answers as many rows as it is asked, seen before any load: under load answers are not read.

Which output has a row for each that was asked, its model's interface says: its first dimension is open, and is called
as that of the inputs is. Other outputs may hold as many as they like: boxes that were found, one value for all.
"""

from collections.abc import Sequence

from mlserve.bench.clients.client import Request
from mlserve.bench.dialects.find import find_dialect
from mlserve.bench.probe import ask_once
from mlserve.bench.target import Target
from mlserve.errors import BenchError
from mlserve.model.tensors import Tensors, TensorSpec

__all__ = ["check_answered_rows"]


def check_answered_rows(
    target: Target,
    requests: Sequence[Request],
    answer: bytes,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> None:
    """Reads the `answer` to the first of `requests`; where others have more rows, one of the largest is asked too.

    Raises BenchError for an answer that cannot be read, that is empty, or that has not a row for each that was asked.
    """
    dialect, specs = find_dialect(target.protocol, target.answer), {spec.name: spec for spec in outputs}
    by_row = _by_row(inputs, outputs)
    first, largest = requests[0], max(requests, key=lambda request: request.rows)
    _check(target, first.rows, dialect.decode(answer, specs), by_row)
    if largest.rows > first.rows:
        _check(target, largest.rows, dialect.decode(ask_once(target, largest), specs), by_row)


def _by_row(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> list[str]:
    """The outputs whose first dimension is that of all inputs."""
    (rows, *others) = {spec.shape[0] if spec.shape else 0 for spec in inputs} or {0}
    if others or isinstance(rows, int):
        return []
    return [spec.name for spec in outputs if spec.shape and spec.shape[0] == rows]


def _check(target: Target, asked: int, answer: Tensors, by_row: Sequence[str]) -> None:
    if not answer:
        raise BenchError(f"{target.url}: model '{target.title}' answers without any output; look into its server's log")
    for name in by_row:
        if name not in answer:  # some servers leave out what nobody asked for by its name
            continue
        shape = answer[name].shape
        found = shape[0] if shape else 0
        if found != asked:
            raise BenchError(
                f"{target.url}: model '{target.title}' was asked for {_rows(asked)}, and its output '{name}' has "
                f"{_rows(found)} (shape {list(shape)}); its interface says one for each, so mend the model or its "
                "server: what it does not compute cannot be measured"
            )


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"
