"""What a server is told: which models, where to listen, how to batch. Inert, and small enough to cross a process."""

import msgspec

from mlserve.engines.engine import EngineSettings

__all__ = ["BatchSettings", "Limits", "ModelSource", "ServeSettings", "WorkerReport"]


class BatchSettings(msgspec.Struct, frozen=True):
    """At most `max_rows` rows run together; a batch waits up to `max_delay_s` for more, counted from its oldest."""

    max_rows: int = 32
    max_delay_s: float = 0.0
    max_waiting_rows: int = 4096


class Limits(msgspec.Struct, frozen=True):
    """What one client may take: sizes in bytes, times in seconds."""

    max_request_bytes: int = 64 << 20
    max_header_bytes: int = 64 << 10
    receive_s: float = 30.0
    keep_alive_s: float = 75.0
    drain_s: float = 30.0


class ModelSource(msgspec.Struct, frozen=True):
    """One model version to serve: a version folder of the store, or a bare ONNX file (`version` is then "1")."""

    name: str
    version: str
    path: str


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one server needs to know, complete: no default is looked up later.

    `defaults` says which version a request that names none is for.
    """

    models: tuple[ModelSource, ...]
    defaults: dict[str, str]
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    workers: int = 1
    engine: EngineSettings = EngineSettings()
    batch: BatchSettings = BatchSettings()
    limits: Limits = Limits()
    grpc_transport: str = "native"

    def authority(self, port: int) -> str:
        """`host:port`, with an IPv6 address in brackets."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


class WorkerReport(msgspec.Struct, frozen=True):
    """The one line a worker tells its supervisor. `fault` is empty when it serves."""

    fault: str = ""
