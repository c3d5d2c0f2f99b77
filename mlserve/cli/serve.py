"""`mlserve serve`: models over REST and gRPC."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mlserve.cli.served_models import Chosen, choose_models, follow_models
from mlserve.cli.terminal import JsonFlag, StoreOption, ending_well, err, out, print_json
from mlserve.errors import UsageError
from mlserve.units import parse_duration_s

if TYPE_CHECKING:
    from mlserve.serve.protocols.vertex import VertexRoutes
    from mlserve.serve.settings import NamedRoute
    from mlserve.serve.supervisor import Endpoints

__all__ = ["choose_models", "serve"]


@ending_well
def serve(
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
    keys: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="File of API keys; it is followed as it changes.")
    ] = None,
    allow_anonymous: Annotated[
        bool, typer.Option("--allow-anonymous", help="Let everybody who can reach --host ask without a key.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that share the ports.")] = 1,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Threads one model run uses; by default the cores over the workers."),
    ] = None,
    max_batch_rows: Annotated[int, typer.Option(min=1, max=4096, help="Most rows that run together.")] = 32,
    max_delay_ms: Annotated[
        float, typer.Option(min=0.0, max=60_000.0, help="How long a request may wait for others to share its batch.")
    ] = 0.0,
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
    log_requests: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the requests that are logged, as JSON lines.")
    ] = 0.0,
    log_file: Annotated[
        Path | None, typer.Option(help="Where the lines of --log-requests go.", show_default="stderr")
    ] = None,
    otlp: Annotated[
        str, typer.Option(metavar="URL", help="OpenTelemetry collector (OTLP over HTTP) that traces go to.")
    ] = "",
    trace: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the requests that are traced.")] = 1.0,
    json: JsonFlag = False,
) -> None:
    """Serve models over REST and gRPC (Open Inference Protocol V2), batched.

    [bold]Examples[/]

      mlserve serve

      mlserve serve minilm@production --http-port 8080 --workers 2

      mlserve serve model.onnx --max-delay-ms 2

      mlserve serve minilm --engine openvino --compute-type bf16
    """
    from mlserve.engines.engine import EngineSettings
    from mlserve.runs.machine import usable_cores
    from mlserve.serve.settings import BatchSettings, Limits, ServeSettings, WatchSettings
    from mlserve.serve.supervisor import run_server

    chosen = follow_models(models or [], store, versions, explicit=model_control == "explicit")
    vertex = _vertex(chosen)
    address = host or (vertex.host if vertex else "127.0.0.1")
    is_open = _is_open(address, keys, allow_anonymous=allow_anonymous)
    settings = ServeSettings(
        models=chosen.files,
        defaults={source.name: source.version for source in chosen.files},
        store=chosen.store,
        model_control=model_control,
        routes=(*map(_route, routes or []), *(vertex.routes if vertex else ())),
        health_paths=(vertex.health_path,) if vertex and vertex.health_path else (),
        server_name=server_name,
        keys_file=str(keys.absolute()) if keys else "",  # a link may be turned to another file
        watch=WatchSettings(log_requests, str(log_file.resolve()) if log_file else "", otlp, trace if otlp else 0.0),
        management_port=management_port,
        host=address,
        http_port=http_port,
        grpc_port=grpc_port,
        workers=workers,
        engine=EngineSettings(
            device,
            threads or max(1, usable_cores() // workers),
            engine,
            compute_type,
            cache=str(store.resolve() / ".cache") if cache else "",
        ),
        batch=BatchSettings(max_batch_rows, max_delay_ms / 1000),
        limits=Limits(drain_s=parse_duration_s(drain)),
    )

    def on_ready(endpoints: "Endpoints") -> None:
        if is_open:
            err.print(f"[yellow]warning:[/] {address} can be reached from other machines, and everybody may ask")
        print_json(_ready(endpoints)) if json else _print_ready(endpoints)

    run_server(settings, on_ready)
    err.print("drained and stopped")


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


def _is_open(host: str, keys: Path | None, *, allow_anonymous: bool) -> bool:
    """Whether people beyond this machine may ask without a key. Raises UsageError unless that is what was meant."""
    import ipaddress

    from mlserve.serve.supervisor import resolve_host

    address = resolve_host(host).partition("%")[0]
    if keys is not None or ipaddress.ip_address(address).is_loopback:
        return False
    if not allow_anonymous:
        raise UsageError(
            f"--host {host} can be reached from other machines, and without keys everybody there may ask; "
            "name a file of keys with --keys, or mean it: --allow-anonymous"
        )
    return True


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


def _print_ready(endpoints: "Endpoints") -> None:
    count = len(endpoints.served)
    out.print(f"[bold green]serving[/] {count} model version{'' if count == 1 else 's'}")
    for name, version in endpoints.served:
        out.print(f"  {name}@{version}", highlight=False)
    example = f"/v2/models/{endpoints.served[0][0]}/infer" if endpoints.served else "/v2/repository/index"
    out.print(f"  REST  {endpoints.http}{example}", highlight=False)
    out.print(f"  gRPC  {endpoints.grpc}", highlight=False)
    out.print(f"  docs  {endpoints.http}/docs", highlight=False)
    if endpoints.management:
        out.print(f"  management  {endpoints.management}", highlight=False)
    out.print("  /health  /ready  /metrics; Ctrl-C or SIGTERM drains and stops", highlight=False)
