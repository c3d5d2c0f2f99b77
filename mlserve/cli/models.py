"""`mlserve models`: what is in the store, and which version an alias means."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from mlserve.cli.terminal import JsonFlag, StoreOption, ending_well, out, print_json
from mlserve.errors import StoreError
from mlserve.units import format_bytes

if TYPE_CHECKING:
    from mlserve.model.artifact import Artifact
    from mlserve.model.store import Store

__all__ = ["app", "list_models", "promote", "rollback", "show", "sign", "verify"]

app = typer.Typer(
    help="List, show, promote, roll back, sign and verify the models in the store.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

NameArgument = Annotated[str, typer.Argument(help="A model's name.", show_default=False)]
RefArgument = Annotated[str, typer.Argument(metavar="NAME[@VERSION|@ALIAS]", show_default=False)]
AliasOption = Annotated[str, typer.Option(help="The alias to move.")]


@app.command("list")
@ending_well
def list_models(store: StoreOption = Path("store"), json: JsonFlag = False) -> None:
    """Every version of every model."""
    found = _open(store)
    artifacts, faults = _readable(found)
    if json:
        print_json([_facts(artifact, found) for artifact in artifacts])
    elif artifacts:
        _print_list(artifacts, found)
    elif not faults:
        out.print(f"the store {store} is empty; add a model with: mlserve optimize SOURCE", markup=False)
    if faults:
        raise StoreError("; ".join(faults.values()))


def _print_list(artifacts: list["Artifact"], found: "Store") -> None:
    table = Table("version", "variant", "aliases", "size", "accuracy", "made")
    for artifact in artifacts:
        manifest, accuracy = artifact.manifest, artifact.manifest.metrics.accuracy
        table.add_row(
            artifact.ref,
            manifest.variant,
            ", ".join(_aliases(artifact, found)),
            format_bytes(artifact.size_bytes),
            f"{accuracy.metric} {accuracy.value:.4f}" if accuracy else "-",
            manifest.created_at,
        )
    out.print(table)


@app.command()
@ending_well
def show(ref: RefArgument, store: StoreOption = Path("store"), json: JsonFlag = False) -> None:
    """One version: its files, inputs, outputs, lineage and measurements."""
    found = _open(store)
    artifact = found.resolve(ref)
    if json:
        print_json(_facts(artifact, found))
        return
    manifest = artifact.manifest
    aliases = ", ".join(_aliases(artifact, found)) or "none"
    out.print(f"[bold]{artifact.ref}[/]  {manifest.variant}  {format_bytes(artifact.size_bytes)}", highlight=False)
    out.print(f"aliases  {aliases}\nmade     {manifest.created_at}\nfolder   {artifact.directory}", highlight=False)
    for kind, specs in (("takes", manifest.inputs), ("gives", manifest.outputs)):
        for spec in specs:
            out.print(f"{kind}    {spec}", highlight=False, markup=False)
    for step in manifest.lineage:
        parameters = ", ".join(f"{name}={value}" for name, value in step.parameters.items())
        out.print(f"step     {step.step}({parameters}): {'; '.join(step.notes)}", highlight=False, markup=False)
    for assumed in manifest.assumed:
        out.print(f"assumed  {assumed}", highlight=False, markup=False)
    _print_metrics(artifact)
    for name, record in manifest.files.items():
        out.print(f"file     {name}  {format_bytes(record.size_bytes)}  sha256 {record.sha256}", highlight=False)


@app.command()
@ending_well
def promote(
    ref: RefArgument, alias: AliasOption = "production", store: StoreOption = Path("store"), json: JsonFlag = False
) -> None:
    """Point an alias at a version."""
    found = _open(store)
    artifact = found.resolve(ref)
    name, version = artifact.manifest.name, artifact.manifest.version
    previous = found.promote(name, version, alias)
    if json:
        print_json({"name": name, "alias": alias, "version": version, "previous": previous})
    else:
        out.print(f"{name}@{alias} is version {version}" + (f", was {previous}" if previous else ""), highlight=False)


@app.command()
@ending_well
def rollback(
    name: NameArgument, alias: AliasOption = "production", store: StoreOption = Path("store"), json: JsonFlag = False
) -> None:
    """Point an alias back at the version it meant before."""
    left, now = _open(store).rollback(name, alias)
    if json:
        print_json({"name": name, "alias": alias, "version": now, "previous": left})
    else:
        out.print(f"{name}@{alias} is version {now} again, was {left}", highlight=False)


@app.command()
@ending_well
def sign(
    ref: RefArgument,
    private_key: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, metavar="KEY.pem", help="Elliptic key (P-256, P-384, P-521).")
    ],
    store: StoreOption = Path("store"),
    json: JsonFlag = False,
) -> None:
    """Vouch for a version with a key, in the format of OpenSSF's model-signing.

    Its files must be those of its manifest. The signature lies beside it, in NAME/signatures/VERSION.sig.
    """
    from mlserve.model.signing import check_meant, sign_version
    from mlserve.model.store import verify as verify_files

    artifact = _open(store).resolve(ref)
    verify_files(artifact)
    check_meant(artifact.manifest, artifact.directory.parent.name, artifact.directory.name)
    signature = sign_version(artifact.directory, private_key)
    if json:
        print_json({"ref": artifact.ref, "signature": str(signature)})
    else:
        out.print(f"{artifact.ref} is signed: {signature}", highlight=False, soft_wrap=True)


@app.command()
@ending_well
def verify(
    refs: Annotated[list[str] | None, typer.Argument(metavar="[NAME[@VERSION|@ALIAS]]...")] = None,
    public_key: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, metavar="KEY.pem", help="Check signatures, too: by one of these."),
    ] = None,
    store: StoreOption = Path("store"),
    json: JsonFlag = False,
) -> None:
    """Check that every file is the one the manifest was written for; the whole store when no version is named."""
    from mlserve.model.signing import check_meant, signature_path, verify_signature
    from mlserve.model.store import verify as verify_files

    found = _open(store)
    artifacts, faults = ([found.resolve(ref) for ref in refs], {}) if refs else _readable(found)
    states = dict.fromkeys(faults, "damaged")
    for artifact in artifacts:
        # By where it lies: the manifest of a copy names another.
        name, version = artifact.directory.parent.name, artifact.directory.name
        place = f"{name}@{version}"
        try:
            state = "damaged"
            verify_files(artifact)
            state = "not vouched for"
            if public_key:
                verify_signature(artifact.directory, signature_path(artifact.directory), public_key)
                check_meant(artifact.manifest, name, version)
            state = "ok"
        except StoreError as error:
            text = str(error)
            faults[place] = text if state == "damaged" else f"{place}: {text}"
        states[place] = state
    if json:
        print_json({ref: faults.get(ref, state) for ref, state in states.items()})
    else:
        for ref, state in states.items():
            out.print(f"{ref}  [{'green' if state == 'ok' else 'red'}]{state}[/]", highlight=False)
    if faults:
        raise StoreError("; ".join(faults.values()))


def _open(root: Path) -> "Store":
    from mlserve.model.store import Store

    if root.exists() and not root.is_dir():
        raise StoreError(f"{root} is a file, not a store; name the folder with --store")
    return Store(root)


def _readable(store: "Store") -> tuple[list["Artifact"], dict[str, str]]:
    """Every version that can be read, and what is wrong with each that cannot, by `name@version`."""
    artifacts, faults = [], {}
    for name in store.names():
        for version in store.versions(name):
            try:
                artifacts.append(store.get(name, version))
            except StoreError as error:
                faults[f"{name}@{version}"] = str(error)
    return artifacts, faults


def _aliases(artifact: "Artifact", store: "Store") -> list[str]:
    aliases = store.aliases(artifact.manifest.name)
    return [alias for alias, version in aliases.items() if version == artifact.manifest.version]


def _facts(artifact: "Artifact", store: "Store") -> dict[str, object]:
    return {
        "ref": artifact.ref,
        "aliases": _aliases(artifact, store),
        "directory": str(artifact.directory),
        "size_bytes": artifact.size_bytes,
        "manifest": artifact.manifest,
    }


def _print_metrics(artifact: "Artifact") -> None:
    from mlserve.units import format_duration, format_rate

    metrics = artifact.manifest.metrics
    if metrics.accuracy:
        accuracy = metrics.accuracy
        details = ", ".join(f"{name} {value:.4g}" for name, value in accuracy.details.items())
        out.print(
            f"accuracy {accuracy.metric} {accuracy.value:.4f}, {accuracy.loss:.4f} lost ({details})", highlight=False
        )
        out.print(f"         on {accuracy.rows} rows of {accuracy.data}", highlight=False, markup=False)
    for latency in metrics.latency:
        out.print(
            f"latency  {latency.batch_rows} rows: {format_duration(latency.p50_s)} in process, "
            f"{format_rate(latency.rows_per_s)} rows ({metrics.machine})",
            highlight=False,
        )
