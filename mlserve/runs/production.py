"""`production.toml`: a configuration that was chosen, what it is expected to do, and what that rests on."""

import hashlib
import math
import re
import shlex
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import msgspec

from mlserve.errors import UsageError
from mlserve.runs.load import Protocol

__all__ = [
    "MEASURED_KEYS",
    "Evidence",
    "Expected",
    "Production",
    "ServeChoice",
    "is_production",
    "read_production",
    "serve_digest",
    "write_production",
]

# 1: first format
FORMAT_VERSION = 1

_HEADER = """\
# A configuration that was chosen for production. mlserve wrote it; people may edit it.
#
#   mlserve serve --config {name}        serves just this
#   mlserve bench --like {name}          sends the same requests at the same instants again
#
# A flag on the command line wins over [serve]. Paths are meant from where the command runs, as those of flags are."""
_ABOUT = {
    "serve": "What mlserve serve is told; every key is called as its flag is.",
    "expected": "What was measured of it. Latency counts from the instant a request was due.",
    "evidence": "What these figures rest on.",
}
_EXPECTED = "give a production.toml, as mlserve tune writes it"
_UNKNOWN = re.compile("Object contains unknown field `(.*)`")
# What a choice always says, even where it is what mlserve would do by itself: that may change, and the choice not.
_PINNED = ("models", "store", "device", "workers", "threads", "max_batch_rows", "max_delay_ms")

MEASURED_KEYS = (
    "models",
    "engine",
    "compute_type",
    "device",
    "workers",
    "threads",
    "max_batch_rows",
    "max_delay_ms",
)
"""What of [serve] the figures depend on: where a server listens, and whom it tells what, changes none of them."""

Workers = Annotated[int, msgspec.Meta(ge=1, le=256)]
Threads = Annotated[int, msgspec.Meta(ge=0, le=1024)]
Rows = Annotated[int, msgspec.Meta(ge=1, le=4096)]
QueueRows = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Connections = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Delay = Annotated[float, msgspec.Meta(ge=0, le=60_000)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class ServeChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `mlserve serve` is told, each called as its flag is. `models` are `name@version` or files.

    `threads` 0 are as many as the cores over the workers. What is "" is as where the flag is left out; `route` are the
    texts of `--route`, and `management_port` -1 is none. Whether strangers may ask (`--allow-anonymous`) is for who
    starts the server to say, and no file does.
    """

    models: tuple[str, ...]
    store: str = "store"
    engine: str = ""
    compute_type: str = ""
    device: str = "cpu"
    workers: Workers = 1
    threads: Threads = 0
    max_batch_rows: Rows = 32
    max_delay_ms: Delay = 0.0
    max_queue_rows: QueueRows = 4096
    max_wait: str = "30s"
    overload_status: Literal[503, 429] = 503
    versions: str = ""
    model_control: str = "store"
    route: tuple[str, ...] = ()
    server_name: str = "mlserve"
    host: str = ""
    http_port: Port = 8000
    grpc_port: Port = 8001
    management_port: Annotated[int, msgspec.Meta(ge=-1, le=65_535)] = -1
    grpc_transport: Literal["", "native", "guarded", "grpcio"] = ""
    max_connections: Connections = 4096
    max_request: str = "64MiB"
    receive_timeout: str = "30s"
    keys: str = ""
    jwks: str = ""
    jwt_issuer: str = ""
    jwt_audience: str = ""
    allowed_host: tuple[str, ...] = ()
    allowed_origin: tuple[str, ...] = ()
    audit_log: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    tls_client_required: bool = False
    tls_identities: str = ""
    require_signature: str = "off"
    trusted_key: tuple[str, ...] = ()
    trial_time: str = "9s"
    cache: bool = True
    drain: str = "30s"
    lame_duck: str = ""
    hang_after: str = "10s"
    memory_guard: str = "95%"
    log_requests: Share = 0.0
    log_file: str = ""
    log_max_bytes: str = ""
    log_keep: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    otlp: str = ""
    trace: Share = 1.0


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
    SHA-256 of the model's files (`model_sha256`), and the version of mlserve. `serve_sha256` is the `serve_digest` of
    what was measured; "" in a file of an older mlserve, of which nobody can tell whether it was edited since.
    """

    runs: tuple[str, ...]
    valid: bool
    cpu: str
    cores: int
    gpus: tuple[str, ...] = ()
    model_sha256: str = ""
    serve_sha256: str = ""
    mlserve: str
    measured_at: str


class Production(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    format_version: int = FORMAT_VERSION
    serve: ServeChoice
    expected: Expected | None = None
    evidence: Evidence | None = None

    @property
    def is_edited(self) -> bool:
        """Whether somebody changed in [serve] what the figures depend on since they were measured."""
        measured = self.evidence.serve_sha256 if self.evidence is not None else ""
        return measured not in ("", serve_digest(self.serve))


_TABLES: dict[str, type[msgspec.Struct]] = {"serve": ServeChoice, "expected": Expected, "evidence": Evidence}


def is_production(path: Path) -> bool:
    """Whether `path` is meant as such a file, by its name."""
    return path.suffix.lower() == ".toml"


def read_production(path: Path) -> Production:
    """The file at `path`.

    Raises UsageError, naming the place in it, for what cannot be read, a key that means nothing, and a value that
    cannot be.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); {_EXPECTED}") from error
    try:
        document = msgspec.toml.decode(content)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text; {_EXPECTED}") from error
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is no TOML: {error}; {_EXPECTED}") from error
    version = document.get("format_version")
    if version is None:
        raise UsageError(f"{path} has no format_version, as another kind of file; {_EXPECTED}")
    if version != FORMAT_VERSION:
        raise UsageError(
            f"{path} has format_version {version!r}, this mlserve reads {FORMAT_VERSION}; use the mlserve that wrote it"
        )
    try:
        production = msgspec.convert(document, Production)
    except msgspec.ValidationError as error:
        _refuse(path, str(error), document)
    _check(production, path)
    return production


def serve_digest(serve: ServeChoice) -> str:
    """The SHA-256 of what the figures depend on: it differs once one of `MEASURED_KEYS` does."""
    measured = {key: getattr(serve, key) for key in MEASURED_KEYS}
    return hashlib.sha256(msgspec.json.encode(measured)).hexdigest()


def write_production(path: Path, production: Production) -> None:
    """Writes `path` by rename, with comments that say what its parts are. Raises UsageError where it cannot."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text("\n".join(_lines(production, path.name)) + "\n", encoding="utf-8")
        partial.rename(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}; choose another place") from error


def _check(production: Production, path: Path) -> None:
    """Raises UsageError for values that types alone do not refuse."""
    if not production.serve.models and production.serve.model_control != "explicit":
        _refuse(path, "`models` is empty; name what is served - at `$.serve.models`")
    if production.serve.model_control not in ("store", "explicit"):
        _refuse(path, f"{production.serve.model_control!r} is neither store nor explicit - at `$.serve.model_control`")
    for table in ("serve", "expected"):
        values: dict[str, Any] = msgspec.to_builtins(getattr(production, table)) or {}
        for key, value in values.items():
            if isinstance(value, float) and not (math.isfinite(value) and (value >= 0 or key == "accuracy_loss")):
                _refuse(path, f"{value} is no figure - at `$.{table}.{key}`")


def _refuse(path: Path, why: str, document: Any = None) -> NoReturn:
    """`Expected `int` >= 1 - at `$.serve.workers`` -> a sentence that begins with the place, and with what stands there
    in the `document`.
    """
    what, _, place = why.partition(" - at ")
    keys = place.strip("`").removeprefix("$").strip(".")
    where = keys or "the whole file"
    unknown = _UNKNOWN.fullmatch(what)
    if unknown is not None:
        near = get_close_matches(unknown[1], _TABLES.get(keys, Production).__struct_fields__, 1)
        what = f"there is no key {unknown[1]}" + (f"; was {near[0]} meant?" if near else "")
    else:
        for key in keys.split(".") if keys else ():
            document = document.get(key) if isinstance(document, dict) else None
        where += f" = {_written(document)}" if isinstance(document, str | int | float) else ""
    raise UsageError(f"{path}: {where}: {what}; mend it, or let mlserve tune write the file anew") from None


def _lines(production: Production, name: str) -> Iterator[str]:
    shown = "".join(letter if letter.isprintable() else "_" for letter in name)
    yield _HEADER.format(name=shlex.quote(shown))
    yield f"\nformat_version = {production.format_version}"
    for table, about in _ABOUT.items():
        value = getattr(production, table)
        if value is None:
            continue
        yield f"\n# {about}\n[{table}]"
        usual = dict(zip(reversed(value.__struct_fields__), reversed(value.__struct_defaults__), strict=False))
        for key in value.__struct_fields__:
            held = getattr(value, key)
            if held is not None and (key in _PINNED or usual.get(key, msgspec.NODEFAULT) != held):
                yield f"{key} = {_written(held)}"


def _written(value: Any) -> str:
    """One value as TOML 1.0 writes it. No library that is at hand writes comments, and three flat tables need none."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case tuple():
            return f"[{', '.join(map(_written, value))}]"
    # A basic string is escaped as JSON's is, but for DEL, which JSON leaves as it is.
    return msgspec.json.encode(str(value)).decode().replace("\x7f", "\\u007f")
