"""`mlserve serve`: models over REST and gRPC."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mlserve.cli.production_choice import Configured, configured, expectation
from mlserve.cli.serve_access import (
    AllowedHost,
    AllowedOrigin,
    AuditLog,
    Jwks,
    JwtAudience,
    JwtIssuer,
    access_of,
    is_open,
)
from mlserve.cli.serve_flags import (
    GrpcTransport,
    MaxConnections,
    MaxQueueRows,
    MaxRequest,
    MaxWait,
    OverloadStatus,
    ReceiveTimeout,
    overload_status_of,
)
from mlserve.cli.serve_life import (
    HangAfter,
    LameDuck,
    LogKeep,
    LogMaxBytes,
    MemoryGuard,
    life_settings,
    most_bytes,
)
from mlserve.cli.serve_signatures import RequireSignature, TrialTime, TrustedKey, compiled_in, signatures_of
from mlserve.cli.serve_tls import TlsCert, TlsClientCa, TlsClientRequired, TlsIdentities, TlsKey, tls_of
from mlserve.cli.served_models import Chosen, choose_models, follow_models
from mlserve.cli.terminal import JsonFlag, StoreOption, ending_well, err, out, print_json
from mlserve.errors import UsageError
from mlserve.runs.production import ServeChoice
from mlserve.units import parse_bytes, parse_duration_s

if TYPE_CHECKING:
    from mlserve.serve.protocols.vertex import VertexRoutes
    from mlserve.serve.settings import NamedRoute, ServeSettings
    from mlserve.serve.supervisor import Endpoints

__all__ = ["choose_models", "serve"]


@ending_well
def serve(
    context: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME[@VERSION|@ALIAS] | FILE.onnx]...", help="What to serve; everything in the store if omitted."
        ),
    ] = None,
    store: StoreOption = Path("store"),
    versions: Annotated[
        str | None,
        typer.Option(
            help="Of names without a version: default (production, else the newest), all, latest:N, or 3,candidate.",
            show_default="default; all of a whole store",
        ),
    ] = None,
    model_control: Annotated[
        Literal["store", "explicit"],
        typer.Option(help="Who changes what is served: the store as it changes, or clients that load and unload."),
    ] = "store",
    routes: Annotated[
        list[str] | None,
        typer.Option("--route", metavar="PATH=NAME[@VERSION|@ALIAS]", help="A path of your own for a model."),
    ] = None,
    server_name: Annotated[str, typer.Option(help="The name that the server's metadata tells.")] = "mlserve",
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1; on Vertex AI all")
    ] = None,
    http_port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="REST port; 0 takes a free one.", envvar=["SAGEMAKER_BIND_TO_PORT", "AIP_HTTP_PORT"]
        ),
    ] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="gRPC port; 0 takes a free one.")] = 8001,
    management_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port on 127.0.0.1 for TorchServe's management pages; 0 takes a free one."),
    ] = None,
    grpc_transport: GrpcTransport = None,
    max_connections: MaxConnections = 4096,
    max_request: MaxRequest = "64MiB",
    receive_timeout: ReceiveTimeout = "30s",
    keys: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="File of API keys; it is followed as it changes.")
    ] = None,
    jwks: Jwks = None,
    jwt_issuer: JwtIssuer = "",
    jwt_audience: JwtAudience = "",
    allowed_host: AllowedHost = None,
    allowed_origin: AllowedOrigin = None,
    audit_log: AuditLog = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
    tls_client_required: TlsClientRequired = False,
    tls_identities: TlsIdentities = None,
    allow_anonymous: Annotated[
        bool, typer.Option("--allow-anonymous", help="Let everybody who can reach --host ask without a key.")
    ] = False,
    require_signature: RequireSignature = "off",
    trusted_key: TrustedKey = None,
    trial_time: TrialTime = "9s",
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that share the ports.")] = 1,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Threads one model run uses; by default the cores over the workers."),
    ] = None,
    max_batch_rows: Annotated[int, typer.Option(min=1, max=4096, help="Most rows that run together.")] = 32,
    max_delay_ms: Annotated[
        float, typer.Option(min=0.0, max=60_000.0, help="How long a request may wait for others to share its batch.")
    ] = 0.0,
    max_queue_rows: MaxQueueRows = 4096,
    max_wait: MaxWait = "30s",
    overload_status: OverloadStatus = 503,
    device: Annotated[
        str, typer.Option(help="cpu, cuda[:N] (onnxruntime, torch), tensorrt[:N] (onnxruntime), gpu[:N] (openvino).")
    ] = "cpu",
    engine: Annotated[
        str,
        typer.Option(help="onnxruntime, openvino, torch or torch-compiled; by default the one a version was made for."),
    ] = "",
    compute_type: Annotated[
        str, typer.Option(help="Type to compute in where it is not that of the weights: bf16, fp16, tf32, fp32.")
    ] = "",
    cache: Annotated[
        bool, typer.Option(help="Keep compiled models in STORE/.cache, so that versions of the store load quicker.")
    ] = True,
    drain: Annotated[str, typer.Option(help="After SIGTERM, how long accepted requests may take to end.")] = "30s",
    lame_duck: LameDuck = "",
    hang_after: HangAfter = "10s",
    memory_guard: MemoryGuard = "95%",
    log_requests: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the requests that are logged, as JSON lines.")
    ] = 0.0,
    log_file: Annotated[
        Path | None, typer.Option(help="Where the lines of --log-requests go.", show_default="stderr")
    ] = None,
    log_max_bytes: LogMaxBytes = "",
    log_keep: LogKeep = 5,
    otlp: Annotated[
        str, typer.Option(metavar="URL", help="OpenTelemetry collector (OTLP over HTTP) that traces go to.")
    ] = "",
    trace: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the requests that are traced.")] = 1.0,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="production.toml", help="Serve what a file says, as mlserve tune writes it; flags win over it."
        ),
    ] = None,
    allow_changed: Annotated[
        bool,
        typer.Option(
            "--allow-changed", help="Serve it even where the model is not the one --config was measured with."
        ),
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Serve models over REST and gRPC (Open Inference Protocol V2), batched.

    [bold]Examples[/]

      mlserve serve

      mlserve serve minilm@production --http-port 8080 --workers 2

      mlserve serve model.onnx --max-delay-ms 2

      mlserve serve minilm --engine openvino --compute-type bf16

      mlserve serve --config production.toml
    """
    choice = ServeChoice(
        models=tuple(models or ()),
        store=str(store),
        engine=engine,
        compute_type=compute_type,
        device=device,
        workers=workers,
        threads=threads or 0,
        max_batch_rows=max_batch_rows,
        max_delay_ms=max_delay_ms,
        max_queue_rows=max_queue_rows,
        max_wait=max_wait,
        overload_status=overload_status_of(overload_status),
        versions=versions or "",
        model_control=model_control,
        route=tuple(routes or ()),
        server_name=server_name,
        host=host or "",
        http_port=http_port,
        grpc_port=grpc_port,
        management_port=-1 if management_port is None else management_port,
        grpc_transport=grpc_transport or "",
        max_connections=max_connections,
        max_request=max_request,
        receive_timeout=receive_timeout,
        keys=str(keys) if keys else "",
        jwks=str(jwks) if jwks else "",
        jwt_issuer=jwt_issuer,
        jwt_audience=jwt_audience,
        allowed_host=tuple(allowed_host or ()),
        allowed_origin=tuple(allowed_origin or ()),
        audit_log=str(audit_log) if audit_log else "",
        tls_cert=str(tls_cert or ""),
        tls_key=str(tls_key or ""),
        tls_client_ca=str(tls_client_ca or ""),
        tls_client_required=tls_client_required,
        tls_identities=str(tls_identities or ""),
        require_signature=require_signature,
        trusted_key=tuple(map(str, trusted_key or ())),
        trial_time=trial_time,
        cache=cache,
        drain=drain,
        lame_duck=lame_duck,
        hang_after=hang_after,
        memory_guard=memory_guard,
        log_requests=log_requests,
        log_file=str(log_file) if log_file else "",
        log_max_bytes=log_max_bytes,
        log_keep=log_keep,
        otlp=otlp,
        trace=trace,
    )
    _run(configured(choice, context, config, allow_changed=allow_changed), allow_anonymous=allow_anonymous, json=json)


def _run(asked: Configured, *, allow_anonymous: bool, json: bool) -> None:
    """Serves until it is told to end."""
    from mlserve.serve.supervisor import resolve_host, run_server

    choice = asked.choice
    chosen = follow_models(
        list(choice.models), Path(choice.store), choice.versions or None, explicit=choice.model_control == "explicit"
    )
    vertex = _vertex(chosen)
    name = choice.host or (vertex.host if vertex else "127.0.0.1")
    address = resolve_host(name)  # once: what is listened on is what was looked at
    keys = choice.keys or choice.jwks or choice.tls_client_ca
    reachable = is_open(name, address, keys, allow_anonymous=allow_anonymous)
    settings = _settings(choice, chosen, vertex, address)

    def on_ready(endpoints: "Endpoints") -> None:
        if reachable:
            err.print(f"[yellow]warning:[/] {name} can be reached from other machines, and everybody may ask")
        if json:
            print_json(_ready(endpoints) | asked.document)
        else:
            _print_ready(endpoints, expectation(asked))

    run_server(settings, on_ready)
    err.print("drained and stopped")


def _settings(choice: ServeChoice, chosen: Chosen, vertex: "VertexRoutes | None", address: str) -> "ServeSettings":
    from mlserve.engines.engine import EngineSettings
    from mlserve.runs.machine import usable_cores
    from mlserve.serve.settings import BatchSettings, Limits, ServeSettings, WatchSettings

    return ServeSettings(
        models=chosen.files,
        defaults={source.name: source.version for source in chosen.files},
        store=chosen.store,
        model_control="explicit" if choice.model_control == "explicit" else "store",
        routes=(*map(_route, choice.route), *(vertex.routes if vertex else ())),
        health_paths=(vertex.health_path,) if vertex and vertex.health_path else (),
        server_name=choice.server_name,
        keys_file=str(Path(choice.keys).absolute()) if choice.keys else "",  # a link may be turned to another file
        tls=tls_of(choice),
        access=access_of(choice),
        watch=WatchSettings(
            choice.log_requests,
            str(Path(choice.log_file).resolve()) if choice.log_file else "",
            choice.otlp,
            choice.trace if choice.otlp else 0.0,
            most_bytes(choice),
            choice.log_keep,
        ),
        management_port=None if choice.management_port < 0 else choice.management_port,
        host=address,
        http_port=choice.http_port,
        grpc_port=choice.grpc_port,
        workers=choice.workers,
        engine=EngineSettings(
            choice.device,
            choice.threads or max(1, usable_cores() // choice.workers),
            choice.engine,
            choice.compute_type,
            cache=compiled_in(choice),
        ),
        batch=BatchSettings(
            choice.max_batch_rows,
            choice.max_delay_ms / 1000,
            choice.max_queue_rows,
            max_wait_s=parse_duration_s(choice.max_wait),
            overload_status=choice.overload_status,
        ),
        life=life_settings(choice, address),
        signatures=signatures_of(choice),
        trial_s=parse_duration_s(choice.trial_time),
        limits=Limits(
            max_request_bytes=parse_bytes(choice.max_request),
            max_connections=choice.max_connections,
            head_s=min(Limits().head_s, parse_duration_s(choice.receive_timeout)),
            receive_s=parse_duration_s(choice.receive_timeout),
            drain_s=parse_duration_s(choice.drain),
        ),
        grpc_transport=choice.grpc_transport or "guarded",
    )


def _vertex(chosen: Chosen) -> "VertexRoutes | None":
    """Where Vertex AI wants its container to listen; None elsewhere."""
    if not {"AIP_PREDICT_ROUTE", "AIP_HEALTH_ROUTE"} & os.environ.keys():
        return None
    from mlserve.serve.protocols.vertex import vertex_routes
    from mlserve.serve.settings import EVERY_NAME

    followed = chosen.store.follow if chosen.store else ()
    names = [*(source.name for source in chosen.files), *(each.name for each in followed)]
    if len(names) != 1 or names[0] == EVERY_NAME:
        raise UsageError("Vertex AI asks one model (AIP_PREDICT_ROUTE); name the one to serve: mlserve serve NAME")
    return vertex_routes(os.environ, names[0])


def _route(text: str) -> "NamedRoute":
    """`PATH=NAME[@VERSION|@ALIAS]`."""
    from mlserve.serve.settings import NamedRoute

    path, _, ref = text.rpartition("=")
    name, _, version = ref.partition("@")
    if not path.startswith("/") or not name:
        raise UsageError(f"--route {text!r} is no PATH=NAME[@VERSION|@ALIAS], for example /spam/detect=spam@production")
    return NamedRoute(path, name, version)


def _ready(endpoints: "Endpoints") -> dict[str, Any]:
    return {
        "http": endpoints.http,
        "grpc": endpoints.grpc,
        "management": endpoints.management,
        "docs": f"{endpoints.http}/docs",
        "workers": endpoints.workers,
        "models": [{"name": name, "version": version} for name, version in endpoints.served],
    }


def _print_ready(endpoints: "Endpoints", expected: list[str]) -> None:
    count = len(endpoints.served)
    out.print(f"[bold green]serving[/] {count} model version{'' if count == 1 else 's'}")
    for name, version in endpoints.served:
        out.print(f"  {name}@{version}", highlight=False)
    example = f"/v2/models/{endpoints.served[0][0]}/infer" if endpoints.served else "/v2/repository/index"
    out.print(f"  REST  {endpoints.http}{example}", highlight=False)
    out.print(f"  gRPC  {endpoints.grpc}{' (TLS)' if endpoints.http.startswith('https') else ''}", highlight=False)
    out.print(f"  docs  {endpoints.http}/docs", highlight=False)
    if endpoints.management:
        out.print(f"  management  {endpoints.management}", highlight=False)
    for line in expected:
        out.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    out.print("  /health  /ready  /metrics; Ctrl-C or SIGTERM drains and stops", highlight=False)
