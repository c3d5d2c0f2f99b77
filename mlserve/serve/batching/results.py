"""What came of a run: each ticket with its own rows of every output, or with why it has none."""

import logging
from collections.abc import Sequence

from mlserve.errors import EngineError, InvalidRequest, ModelFailed, RequestError
from mlserve.model.tensors import Tensors
from mlserve.serve.batching.ticket import Ticket
from mlserve.serve.discretion import discreet

__all__ = ["Results", "check_rows", "failure", "outcome_of", "split"]

_log = logging.getLogger("mlserve.serve")

Results = list[tuple[Ticket, Tensors | RequestError]]
"""Each ticket, and its outputs or its error."""


def failure(error: Exception, model: str) -> RequestError:
    """What a request is told whose run raised `error`; where the model is to blame, that is logged.

    It keeps nothing of the run alive: a traceback holds the tensors of all that ran together.
    """
    if isinstance(error, InvalidRequest):
        return InvalidRequest(discreet(str(error)))
    if isinstance(error, RequestError):
        error.__traceback__ = error.__cause__ = error.__context__ = None
        return error
    if isinstance(error, EngineError):
        reason = discreet(str(error))
        _log.warning("model %s failed: %s", model, reason)
        return ModelFailed(f"model '{model}' failed: {reason}")
    _log.error("model %s failed", model, exc_info=error)
    return ModelFailed(f"model '{model}' failed")


def outcome_of(results: Results) -> str:
    """What is counted of a run: only one that answers nobody failed."""
    first = results[0][1]
    if not isinstance(first, RequestError) or any(not isinstance(result, RequestError) for _, result in results):
        return "ok"
    return type(first).__name__


def check_rows(outputs: Tensors, rows: int) -> None:
    """Raises EngineError where an output has other than `rows` rows: nobody could tell whose they are."""
    for name, array in outputs.items():
        if len(array) != rows:
            raise EngineError(f"output '{name}' has {len(array)} rows for {rows} rows of input")


def split(tickets: Sequence[Ticket], outputs: Tensors) -> Results:
    """Each ticket with its own rows of every output. Raises EngineError where those are not as many as went in."""
    check_rows(outputs, sum([ticket.rows for ticket in tickets]))
    results: Results = []
    start = 0
    for ticket in tickets:
        stop = start + ticket.rows
        results.append((ticket, {name: array[start:stop] for name, array in outputs.items()}))
        start = stop
    return results
