"""Flags of `mlserve serve` that go together, by what they are about."""

from typing import Annotated, Literal

import typer

from mlserve.errors import UsageError

__all__ = [
    "GrpcTransport",
    "MaxConnections",
    "MaxQueueRows",
    "MaxRequest",
    "MaxWait",
    "OverloadStatus",
    "ReceiveTimeout",
    "overload_status_of",
]

# Admission

MaxQueueRows = Annotated[
    int, typer.Option(min=1, max=1_000_000, help="Most rows of one model that wait; more are refused.")
]
MaxWait = Annotated[
    str,
    typer.Option(help="How much work of one model may wait, in the time that takes; never more than --drain allows."),
]
OverloadStatus = Annotated[
    int, typer.Option(metavar="503|429", help="What HTTP clients are answered that a full queue refuses.")
]


def overload_status_of(value: int) -> Literal[503, 429]:
    """`value`, if it is one of those. Raises UsageError."""
    if value == 503:
        return 503
    if value == 429:
        return 429
    raise UsageError(f"--overload-status {value}: a full queue is told by 503 or by 429")


# Input

GrpcTransport = Annotated[
    Literal["guarded", "native", "grpcio"] | None,
    typer.Option(
        help="guarded: fast, held to the limits; native: keeps messages of any size; grpcio: slowest.",
        show_default="guarded",
    ),
]


MaxConnections = Annotated[
    int, typer.Option(min=1, max=1_000_000, help="Connections of each worker over HTTP, and as many over gRPC.")
]
MaxRequest = Annotated[str, typer.Option(help="Largest request, as it comes and unpacked: 64MiB, 1GiB.")]
ReceiveTimeout = Annotated[str, typer.Option(help="How long a request may take to come; its headers at most 10s.")]
