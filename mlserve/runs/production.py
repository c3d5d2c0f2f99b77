"""`production.toml`: a configuration that was chosen, what it is expected to do, and what that rests on."""

import msgspec

from mlserve.runs.load import Protocol

__all__ = ["Evidence", "Expected", "Production", "ServeChoice"]

# 1: first format
FORMAT_VERSION = 1


class ServeChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `mlserve serve` is told, each called as its flag is. `models` are `name@version` or files."""

    models: tuple[str, ...]
    store: str = "store"
    engine: str = ""
    compute_type: str = ""
    device: str = "cpu"
    workers: int = 1
    threads: int = 1
    max_batch_rows: int = 32
    max_delay_ms: float = 0.0


class Expected(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was measured of it: at `rate_per_s` of `batch_rows` rows over `protocol`, latency from the scheduled
    instant; p99 with its 95% interval. `max_rate_per_s` is the highest rate that met `slo`, None if nobody sought it.
    """

    protocol: Protocol
    rate_per_s: float
    batch_rows: int
    p50_ms: float
    p99_ms: float
    p99_low_ms: float | None = None
    p99_high_ms: float | None = None
    slo: str = ""
    max_rate_per_s: float | None = None
    memory_bytes: int | None = None
    accuracy_loss: float | None = None


class Evidence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `Expected` rests on: the folders of its runs, whether all their certificates are VALID, the machine, the
    SHA-256 of the model's file, and the version of mlserve.
    """

    runs: tuple[str, ...]
    valid: bool
    cpu: str
    cores: int
    gpus: tuple[str, ...] = ()
    model_sha256: str = ""
    mlserve: str
    measured_at: str


class Production(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    format_version: int = FORMAT_VERSION
    serve: ServeChoice
    expected: Expected | None = None
    evidence: Evidence | None = None
