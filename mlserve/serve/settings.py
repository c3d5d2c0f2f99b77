"""What a server is told: which models, where to listen, how to batch. Inert, and small enough to cross a process."""

from typing import Literal

import msgspec

from mlserve.engines.engine import EngineSettings

__all__ = [
    "EVERY_NAME",
    "AccessSettings",
    "BatchSettings",
    "Follow",
    "GrpcTransport",
    "LifeSettings",
    "Limits",
    "ModelSource",
    "NamedRoute",
    "ServeSettings",
    "SignatureSettings",
    "StoreChoice",
    "TlsSettings",
    "WatchSettings",
    "WorkerReport",
]

GrpcTransport = Literal["guarded", "native", "grpcio"]
"""A guard that holds what comes to the limits, and answers most of it, before pygrpc-native; that alone, which keeps
messages of any size; or grpcio.
"""

EVERY_NAME = "*"
"""Stands for every name of a store that is not named itself."""


class BatchSettings(msgspec.Struct, frozen=True):
    """At most `max_rows` rows run together; a batch waits up to `max_delay_s` for more, counted from its oldest.

    At most `max_waiting_rows` rows wait, and no more than are expected to take nine tenths of `max_wait_s`; who comes
    beyond that is answered `overload_status`, 503 or 429. `by_length`: rows of tokens share a batch with those of about
    their own length; else with any, in order of arrival.
    """

    max_rows: int = 32
    max_delay_s: float = 0.0
    max_waiting_rows: int = 4096
    by_length: bool = True
    max_wait_s: float = 30.0
    overload_status: Literal[503, 429] = 503


class Limits(msgspec.Struct, frozen=True):
    """What one client may take: sizes in bytes, times in seconds. docs/operations.md says what is answered beyond each.

    `max_receiving_bytes` are those of unfinished requests of all connections of one worker together, as far as they
    came in more than one piece. `max_connections` are a worker's over HTTP, and as many over gRPC; fewer where the
    process may not open so many files. `head_s` is the time for a request's headers, `receive_s` that for all of it.
    """

    max_request_bytes: int = 64 << 20
    max_header_bytes: int = 64 << 10
    max_headers: int = 100
    max_receiving_bytes: int = 1 << 30
    max_connections: int = 4096
    head_s: float = 10.0
    receive_s: float = 30.0
    keep_alive_s: float = 75.0
    drain_s: float = 30.0


class LifeSettings(msgspec.Struct, frozen=True):
    """How a server lives and ends. Told to stop, it goes on for `lame_duck_s` as one that is not ready, so that who
    chooses among servers turns to others.

    A worker whose event loop stands still for `hang_after_s` is killed, 0 for never. At `memory_share` of the memory it
    may use, from 0 to 1, the server refuses new requests; 0 never. A model that `deaths_to_hold` workers died of within
    five minutes is held back for a while; 0 never.
    """

    lame_duck_s: float = 0.0
    hang_after_s: float = 10.0
    memory_share: float = 0.95
    deaths_to_hold: int = 3


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
    """What is told of single requests: the share that is logged as JSON lines, where to, and where traces go.

    A `log_file` of `log_max_bytes` makes room for a new one (0: it grows), and `log_keep` older ones are kept.
    """

    log_share: float = 0.0
    log_file: str = ""
    otlp_endpoint: str = ""
    trace_share: float = 0.0
    log_max_bytes: int = 0
    log_keep: int = 5


class TlsSettings(msgspec.Struct, frozen=True):
    """The server's `certificate`, with its chain, and its `key`; `client_ca` are the certificates of who signs those of
    the clients: PEM files, followed as they change.

    `client_required`: who shows no such certificate is not let in. `identities` is the file that says what the names in
    one allow; "" for none.
    """

    certificate: str
    key: str
    client_ca: str = ""
    client_required: bool = False
    identities: str = ""


class AccessSettings(msgspec.Struct, frozen=True):
    """Who may ask, beside those who have an API key. `jwks_file` names the public keys of signed tokens, which must be
    from `jwt_issuer` and for `jwt_audience`; empty for none.

    `hosts` are names that browsers may know a port of this machine by, `origins` the sites whose pages may send
    requests; see `BrowserGuard`. Admin calls are told in `audit_file`, or on stderr when that is empty.
    """

    jwks_file: str = ""
    jwt_issuer: str = ""
    jwt_audience: str = ""
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    audit_file: str = ""


class SignatureSettings(msgspec.Struct, frozen=True):
    """What is asked of a version's signature: nothing; that the log tells where none of the `trusted_keys` (files of
    public keys) made it; or that the version is not served then.
    """

    require: Literal["off", "warn", "enforce"] = "off"
    trusted_keys: tuple[str, ...] = ()


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one server needs to know, complete: no default is looked up later.

    `models` are served as they are; `store` says what of a store is served beside them, and is followed as it changes.
    `defaults` says which of `models` a request that names no version is for. `model_control` is `explicit` where
    clients may load and unload. `management_port` is on the loopback address, None for none. `keys_file` names the API
    keys; without one, and without tokens (`access`) and identities (`tls`), everybody may do everything. `health_paths`
    are further paths that tell whether the server is ready, of a platform's own choice. `run_directory` is the workers'
    common folder, made by the supervisor, and `slate` the descriptor of the memory that a worker shares with it, -1 for
    none; `doors` are those of the sockets where workers let HTTP clients in, if they share them, and `door` is the
    place of the worker's own among them. `resumes`: the worker takes the place of one that died. `tls` None: the ports
    speak plain text; the management port always does. `trial_s`: how long a small model may take to load and to run
    once, in a process of its own, before a server that serves takes it up; 0 for no such trial.
    """

    models: tuple[ModelSource, ...] = ()
    defaults: dict[str, str] = {}
    store: StoreChoice | None = None
    model_control: Literal["store", "explicit"] = "store"
    routes: tuple[NamedRoute, ...] = ()
    health_paths: tuple[str, ...] = ()
    server_name: str = "mlserve"
    keys_file: str = ""
    access: AccessSettings = AccessSettings()
    tls: TlsSettings | None = None
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
    life: LifeSettings = LifeSettings()
    signatures: SignatureSettings = SignatureSettings()
    trial_s: float = 9.0
    slate: int = -1
    doors: tuple[int, ...] = ()
    door: int = 0
    grpc_transport: GrpcTransport = "guarded"

    @property
    def batch_wait_s(self) -> float:
        """How much work may wait, in seconds: what is accepted can be answered within a drain, where there is one."""
        return min(self.batch.max_wait_s, self.limits.drain_s or self.batch.max_wait_s)

    def authority(self, port: int) -> str:
        """`host:port`, with an IPv6 address in brackets."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


class WorkerReport(msgspec.Struct, frozen=True):
    """The one line a worker tells its supervisor: what it serves, by name and version, or why it does not."""

    fault: str = ""
    served: tuple[tuple[str, str], ...] = ()
