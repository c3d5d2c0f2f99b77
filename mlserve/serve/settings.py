"""What a server is told: which models, where to listen, how to batch. Inert, and small enough to cross a process."""

from typing import Literal

import msgspec

from mlserve.engines.engine import EngineSettings

__all__ = [
    "EVERY_NAME",
    "BatchSettings",
    "Follow",
    "Limits",
    "ModelSource",
    "NamedRoute",
    "ServeSettings",
    "StoreChoice",
    "WatchSettings",
    "WorkerReport",
]

EVERY_NAME = "*"
"""Stands for every name of a store that is not named itself."""


class BatchSettings(msgspec.Struct, frozen=True):
    """At most `max_rows` rows run together; a batch waits up to `max_delay_s` for more, counted from its oldest.

    `by_length`: rows of tokens share a batch with those of about their own length; else with any, in order of arrival.
    """

    max_rows: int = 32
    max_delay_s: float = 0.0
    max_waiting_rows: int = 4096
    by_length: bool = True


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


class Follow(msgspec.Struct, frozen=True):
    """Which versions of one name are served, as the store changes; `EVERY_NAME` means all of the store.

    `versions` is `default` (what a bare name means: the alias `production`, else the newest), `all`, `latest:N`, a
    version or an alias, or several of these (`3,production`). With `all` and `latest:N`, versions that an alias means
    are served, too.
    """

    name: str
    versions: str = "default"


class StoreChoice(msgspec.Struct, frozen=True):
    """The store that is followed, and what of it is served. Looked at every `every_s` seconds."""

    root: str
    follow: tuple[Follow, ...]
    every_s: float = 0.2


class NamedRoute(msgspec.Struct, frozen=True):
    """A path of the user's own choice (`/spam/detect`) and the model, version or alias it means.

    `dialect` says how it is spoken with: `predict`, `vertex`, `sagemaker`, `azure`.
    """

    path: str
    model: str
    version: str = ""
    dialect: str = "predict"


class WatchSettings(msgspec.Struct, frozen=True):
    """What is told of single requests: the share that is logged as JSON lines, where to, and where traces go."""

    log_share: float = 0.0
    log_file: str = ""
    otlp_endpoint: str = ""
    trace_share: float = 0.0


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one server needs to know, complete: no default is looked up later.

    `models` are served as they are; `store` says what of a store is served beside them, and is followed as it changes.
    `defaults` says which of `models` a request that names no version is for. `model_control` is `explicit` where
    clients may load and unload. `management_port` is on the loopback address, None for none. `keys_file` names the
    API keys; without one everybody may do everything. `health_paths` are further paths that tell whether the server is
    ready, of a platform's own choice. `run_directory` is the workers' common folder, made by the
    supervisor. `resumes`: the worker takes the place of one that died.
    """

    models: tuple[ModelSource, ...] = ()
    defaults: dict[str, str] = {}
    store: StoreChoice | None = None
    model_control: Literal["store", "explicit"] = "store"
    routes: tuple[NamedRoute, ...] = ()
    health_paths: tuple[str, ...] = ()
    server_name: str = "mlserve"
    keys_file: str = ""
    watch: WatchSettings = WatchSettings()
    run_directory: str = ""
    resumes: bool = False
    management_port: int | None = None
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
    """The one line a worker tells its supervisor: what it serves, by name and version, or why it does not."""

    fault: str = ""
    served: tuple[tuple[str, str], ...] = ()
