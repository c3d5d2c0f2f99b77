"""Under which conditions something was measured, and how two of them differ."""

from collections.abc import Sequence

import msgspec

from mlserve.runs.run import Run

__all__ = ["LOAD_FIELDS", "SERVER_FIELDS", "Conditions", "conditions_of", "differences", "shown", "words"]

_PROTOCOLS = {"rest": "REST", "grpc": "gRPC"}


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What must be alike before two latencies may be compared: the load, the machine, the server's settings.

    The settings are None where the bench did not start the server.
    """

    protocol: str
    rate_per_s: float
    batch_rows: int
    arrivals: str
    payload: str
    cpu: str
    cores: int
    gpus: tuple[str, ...]
    workers: int | None
    threads: int | None
    max_batch_rows: int | None
    max_delay_ms: float | None
    device: str | None
    server_cores: int | None

    @property
    def load(self) -> str:
        """`60 requests/s over gRPC`; rows and arrivals only where they are unusual."""
        rows = f" of {self.batch_rows} rows" if self.batch_rows > 1 else ""
        spacing = f", {self.arrivals} arrivals" if self.arrivals != "poisson" else ""
        return f"{self.rate_per_s:,.10g} requests/s{rows} over {_PROTOCOLS.get(self.protocol, self.protocol)}{spacing}"


LOAD_FIELDS = ("protocol", "rate_per_s", "batch_rows", "arrivals")
SERVER_FIELDS = ("workers", "threads", "max_batch_rows", "max_delay_ms", "device", "server_cores")


def conditions_of(run: Run) -> Conditions:
    """What `run` was measured under."""
    plan, server = run.plan, run.server
    return Conditions(
        protocol=plan.protocol,
        rate_per_s=plan.rate_per_s,
        batch_rows=plan.batch_rows,
        arrivals=plan.arrivals,
        payload=plan.payload,
        cpu=run.machine.cpu,
        cores=run.machine.cores,
        gpus=tuple(gpu.name for gpu in run.machine.gpus),
        workers=server.workers if server else None,
        threads=server.threads if server else None,
        max_batch_rows=server.max_batch_rows if server else None,
        max_delay_ms=server.max_delay_ms if server else None,
        device=server.device if server else None,
        server_cores=len(server.cpus) if server else None,
    )


def differences(one: Conditions, other: Conditions, fields: Sequence[str] = Conditions.__struct_fields__) -> list[str]:
    """`["rate_per_s 60.0 against 80.0"]`: in which of `fields` two conditions differ."""
    pairs = [(words(field), getattr(one, field), getattr(other, field)) for field in fields]
    return [f"{name} {shown(ours)} against {shown(theirs)}" for name, ours, theirs in pairs if ours != theirs]


def words(field: str) -> str:
    """The name of a field as a reader reads it."""
    return field.replace("_", " ")


def shown(value: object) -> str:
    """The value of a field as a reader reads it."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
