"""`mlserve serve`: models over REST and gRPC."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlserve.cli.terminal import JsonFlag, StoreOption, ending_well, err, out, print_json
from mlserve.errors import UsageError
from mlserve.units import parse_duration_s

if TYPE_CHECKING:
    from mlserve.serve.settings import ModelSource
    from mlserve.serve.supervisor import Endpoints

__all__ = ["choose_models", "default_versions", "serve"]


@ending_well
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME[@VERSION|@ALIAS] | FILE.onnx]...", help="What to serve; everything in the store if omitted."
        ),
    ] = None,
    store: StoreOption = Path("store"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="REST port; 0 takes a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="gRPC port; 0 takes a free one.")] = 8001,
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
    from mlserve.serve.settings import BatchSettings, Limits, ServeSettings
    from mlserve.serve.supervisor import run_server

    sources = choose_models(models or [], store)
    settings = ServeSettings(
        models=tuple(sources),
        defaults=default_versions(sources, store),
        host=host,
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
        if host not in ("127.0.0.1", "localhost", "::1"):
            err.print(f"[yellow]warning:[/] {host} can be reached from other machines, and requests are not authorized")
        print_json(_ready(endpoints, sources)) if json else _print_ready(endpoints, sources)

    run_server(settings, on_ready)
    err.print("drained and stopped")


def choose_models(refs: list[str], root: Path) -> list["ModelSource"]:
    """What each argument means; everything in the store when there is none."""
    from mlserve.model.store import Store
    from mlserve.serve.settings import ModelSource

    store = Store(root)
    if refs:
        chosen = [_source(ref, store) for ref in refs]
    else:
        artifacts = [store.get(name, version) for name in store.names() for version in store.versions(name)]
        chosen = [ModelSource(a.manifest.name, str(a.manifest.version), str(a.directory.resolve())) for a in artifacts]
    if not chosen:
        raise UsageError(
            f"the store {root} holds no model; add one with: mlserve optimize SOURCE, or serve a file: "
            "mlserve serve FILE.onnx"
        )
    taken: dict[tuple[str, str], str] = {}
    for source in chosen:
        other = taken.setdefault((source.name, source.version), source.path)
        if other != source.path:
            raise UsageError(f"{other} and {source.path} would both be served as {source.name}; rename one")
    return list({(source.name, source.version): source for source in chosen}.values())


def default_versions(sources: list["ModelSource"], root: Path) -> dict[str, str]:
    """The version a request without one is for: the production alias if it is served, else the newest served."""
    from mlserve.model.store import PRODUCTION, Store

    defaults: dict[str, str] = {}
    for name in {source.name for source in sources}:
        served = [source for source in sources if source.name == name]
        production = None
        if any(Path(source.path).is_dir() for source in served):
            production = Store(root).aliases(name).get(PRODUCTION)
        versions = [source.version for source in served]
        defaults[name] = str(production) if str(production) in versions else max(versions, key=int)
    return defaults


def _source(ref: str, store: Any) -> "ModelSource":
    from mlserve.serve.settings import ModelSource

    path = Path(ref)
    try:
        is_file = path.is_file()
    except OSError:  # no path can be so long
        is_file = False
    if path.suffix == ".onnx" or is_file:
        if not is_file:
            raise UsageError(f"there is no file {ref}; give an .onnx file or the name of a model in the store")
        return ModelSource(re.sub(r"[^A-Za-z0-9._-]", "_", path.stem).lstrip(".-") or "model", "1", str(path.resolve()))
    artifact = store.resolve(ref)
    return ModelSource(artifact.manifest.name, str(artifact.manifest.version), str(artifact.directory.resolve()))


def _ready(endpoints: "Endpoints", sources: list["ModelSource"]) -> dict[str, Any]:
    return {
        "http": endpoints.http,
        "grpc": endpoints.grpc,
        "workers": endpoints.workers,
        "models": [{"name": source.name, "version": source.version} for source in sources],
    }


def _print_ready(endpoints: "Endpoints", sources: list["ModelSource"]) -> None:
    out.print(f"[bold green]serving[/] {len(sources)} model version{'s' if len(sources) > 1 else ''}")
    for source in sources:
        out.print(f"  {source.name}@{source.version}", highlight=False)
    out.print(f"  REST  {endpoints.http}/v2/models/{sources[0].name}/infer", highlight=False)
    out.print(f"  gRPC  {endpoints.grpc}", highlight=False)
    out.print("  /health  /ready  /metrics; Ctrl-C or SIGTERM drains and stops", highlight=False)
