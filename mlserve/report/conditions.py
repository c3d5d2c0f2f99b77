"""Under which conditions something was measured, and how two of them differ."""

from collections.abc import Sequence

import msgspec

from mlserve.runs.load import Bursts, Plan, Ramp, Replay, Shape, Spikes, Steps
from mlserve.runs.run import Run
from mlserve.units import format_duration

__all__ = [
    "LOAD_FIELDS",
    "SERVER_FIELDS",
    "Conditions",
    "conditions_of",
    "differences",
    "protocol_words",
    "shown",
    "words",
]

_PROTOCOLS = {
    "rest": "REST",
    "rest-binary": "REST (binary)",
    "grpc": "gRPC",
    "tfserving": "TensorFlow Serving's REST",
    "tfserving-grpc": "TensorFlow Serving's gRPC",
    "torchserve": "TorchServe's REST",
    "sagemaker": "SageMaker's REST",
    "mlflow": "MLflow's REST",
    "json": "JSON",
}


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What must be alike before two latencies may be compared: the load, the machine, the server's settings.

    The settings are None where the bench did not start the server. `users` is above 0 for a closed loop, which has no
    rate. `shape` and `row_mix` are words, empty for a steady rate and for requests of one size.
    """

    protocol: str
    rate_per_s: float
    batch_rows: int
    arrivals: str
    users: int = 0
    shape: str = ""
    row_mix: str = ""
    scenario: str = ""
    generators: int = 1
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
    engine: str | None = None
    compute_type: str | None = None

    @property
    def load(self) -> str:
        """`60 requests/s over gRPC`, `closed loop of 16 users over REST`; the rest only where it is unusual."""
        rows = f" of {self.row_mix or self.batch_rows} rows" if self.batch_rows > 1 else ""
        over = f"over {protocol_words(self.protocol)}"
        if self.users:
            words = [f"closed loop of {self.users:,} user{'' if self.users == 1 else 's'}{rows} {over}"]
        else:
            words = [f"{self.rate_per_s:,.10g} requests/s{rows} {over}"]
            words += [self.shape] if self.shape else []
            words += [f"{self.arrivals} arrivals"] if self.arrivals not in ("poisson", "replay") else []
        return ", ".join(words + ([f"scenario {self.scenario}"] if self.scenario else []))


LOAD_FIELDS = ("protocol", "rate_per_s", "batch_rows", "arrivals", "users", "shape", "row_mix", "scenario")
SERVER_FIELDS = (
    "workers",
    "threads",
    "max_batch_rows",
    "max_delay_ms",
    "device",
    "server_cores",
    "engine",
    "compute_type",
)


def conditions_of(run: Run) -> Conditions:
    """What `run` was measured under."""
    plan, server = run.plan, run.server
    return Conditions(
        protocol=plan.protocol,
        rate_per_s=plan.rate_per_s,
        batch_rows=plan.batch_rows,
        arrivals=plan.arrivals,
        users=plan.users if plan.closed else 0,
        shape=_shape_words(plan.shape),
        row_mix=_mix_words(plan),
        scenario=plan.scenario,
        generators=plan.generators,
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
        engine=server.engine if server else None,
        compute_type=server.compute_type if server else None,
    )


def differences(one: Conditions, other: Conditions, fields: Sequence[str] = Conditions.__struct_fields__) -> list[str]:
    """`["rate_per_s 60.0 against 80.0"]`: in which of `fields` two conditions differ."""
    pairs = [(words(field), getattr(one, field), getattr(other, field)) for field in fields]
    return [f"{name} {shown(ours)} against {shown(theirs)}" for name, ours, theirs in pairs if ours != theirs]


def protocol_words(protocol: str) -> str:
    """`gRPC` for `grpc`."""
    return _PROTOCOLS.get(protocol, protocol)


def words(field: str) -> str:
    """The name of a field as a reader reads it."""
    return field.replace("_", " ")


def shown(value: object) -> str:
    """The value of a field as a reader reads it."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    if value == "":
        return "default"
    return "unknown" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _shape_words(shape: Shape) -> str:
    """How the rate moves; "" where it does not."""
    match shape:
        case Ramp():
            return f"ramp to {shape.to_per_s:g}/s"
        case Steps():
            return f"steps of {', '.join(f'{rate:g}' for rate in shape.rates_per_s)}/s"
        case Spikes():
            length, every = format_duration(shape.length_s), format_duration(shape.every_s)
            return f"spikes of {shape.factor:g}x for {length} every {every}"
        case Bursts():
            return f"bursts of {format_duration(shape.on_s)} with pauses of {format_duration(shape.off_s)}"
        case Replay():
            speed = f" at {shape.speed:g}x speed" if shape.speed != 1 else ""
            return f"replay of {shape.source} ({shape.sha256[:12]}){speed}"
    return ""


def _mix_words(plan: Plan) -> str:
    """`1 (80%), 32 (20%)`; "" where all requests carry as many rows."""
    if len(plan.row_mix) < 2:
        return ""
    return ", ".join(f"{one.rows} ({one.share:.0%})" for one in plan.row_mix)
