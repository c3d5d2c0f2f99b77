"""What came of a run: each ticket with its own rows of every output, or with why it has none."""

from collections.abc import Sequence

from mlserve.errors import EngineError, RequestError
from mlserve.model.tensors import Tensors
from mlserve.serve.batching.ticket import Ticket

__all__ = ["Results", "outcome_of", "split"]

Results = list[tuple[Ticket, Tensors | RequestError]]
"""Each ticket, and its outputs or its error."""


def outcome_of(results: Results) -> str:
    """What is counted of a run: only one that answers nobody failed."""
    first = results[0][1]
    if not isinstance(first, RequestError) or any(not isinstance(result, RequestError) for _, result in results):
        return "ok"
    return type(first).__name__


def split(tickets: Sequence[Ticket], outputs: Tensors) -> Results:
    """Each ticket with its own rows of every output. Raises EngineError where those are not as many as went in."""
    rows = sum([ticket.rows for ticket in tickets])
    for name, array in outputs.items():
        if len(array) != rows:
            raise EngineError(f"output '{name}' has {len(array)} rows for {rows} rows of input")
    results: Results = []
    start = 0
    for ticket in tickets:
        stop = start + ticket.rows
        results.append((ticket, {name: array[start:stop] for name, array in outputs.items()}))
        start = stop
    return results
