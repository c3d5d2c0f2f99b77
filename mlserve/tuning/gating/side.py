"""One of the two that a gate compares: what it is, and how it is served."""

from pathlib import Path

import msgspec

from mlserve.errors import UsageError
from mlserve.model.artifact import sha256_of
from mlserve.model.digest import model_sha256
from mlserve.model.onnx_file import inspect_onnx
from mlserve.model.store import Store
from mlserve.runs.production import Production, ServeChoice
from mlserve.tuning.opening import Contender, settled
from mlserve.tuning.serving import ServerOptions

__all__ = ["Side", "production_side", "side_of"]

_CARRIED = frozenset(ServeChoice.__struct_fields__) & frozenset(ServerOptions.__struct_fields__)
# Where a server listens, how it ends, takes over a new version and is replaced changes nothing of what is measured.
_UNMEASURED = frozenset(
    (
        *("models", "store", "server_name", "host", "http_port", "grpc_port", "management_port", "overload_status"),
        *("trial_time", "drain", "lame_duck", "hang_after"),
    )
)


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured. `options` are None for a server that runs already; `store` is where a model's name means
    something. `content` is the digest of the model, the rows and what else requests are made of, `code` that of the
    mlserve that serves; "" where nobody has said (see `with_content`).
    """

    contender: Contender
    store: str
    options: ServerOptions | None = None
    content: str = ""
    code: str = ""

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.contender.name


def side_of(where: str, store: Path, options: ServerOptions) -> Side:
    """A URL, NAME[@VERSION|@ALIAS] or FILE.onnx; a name is settled to the version that it means now.

    Raises StoreError, or the error of a model file, for what there is not, before anything is measured.
    """
    contender = settled(Contender(where, where), store)
    if contender.is_file:
        inspect_onnx(Path(where))
    if contender.running:
        return Side(contender=contender, store=str(store))
    return Side(contender=contender, store=str(store), options=options)


def production_side(production: Production, path: Path, options: ServerOptions, store: Path | None = None) -> Side:
    """What `production`, read from `path`, says is served; of `options` stay the cores and the interpreter. `store`
    wins over the file's, where it is given.

    Raises UsageError for a file with several models, with keys that would change what is measured and that our own
    servers cannot be told, or of another model than was measured; StoreError, or the error of a model file, for what
    there is not.
    """
    chosen = production.serve
    if len(chosen.models) != 1:
        raise UsageError(f"{path} serves {len(chosen.models)} models; a gate compares one with one")
    _check_keys(chosen, path)
    told = msgspec.structs.replace(options, **{name: getattr(chosen, name) for name in _CARRIED})
    side = side_of(chosen.models[0], store or Path(chosen.store), told)
    _check_model(production, path, side)
    return side


def _check_keys(chosen: ServeChoice, path: Path) -> None:
    usual = {field.name: field.default for field in msgspec.structs.fields(ServeChoice)}
    told = _CARRIED | _UNMEASURED
    others = [name for name in usual if name not in told and getattr(chosen, name) != usual[name]]
    if others:
        said = ", ".join(f"serve.{name} = {msgspec.json.encode(getattr(chosen, name)).decode()}" for name in others)
        raise UsageError(
            f"{path}: {said} would change what is measured, and the servers that a gate starts are not told of it; "
            f"start both sides (mlserve serve --config {path}) and give their URLs, or leave it out"
        )


def _check_model(production: Production, path: Path, side: Side) -> None:
    """As `mlserve serve --config` does: the file is a promise about one model."""
    measured = production.evidence.model_sha256 if production.evidence else ""
    if not measured:
        return
    held = _sha256(side)
    if held != measured:
        raise UsageError(
            f"{path} was measured with the model of SHA-256 {measured[:12]}, and {side.name} has "
            f"{held[:12] or 'none'}: its figures are of another model. Measure this one (mlserve tune), name the one "
            "that was measured, or leave out [evidence]"
        )


def _sha256(side: Side) -> str:
    """Of the model's files, as runs have it; "" where nobody knows it."""
    if side.contender.running:
        return ""
    if side.contender.is_file:
        return sha256_of(Path(side.contender.where))
    return model_sha256(Store(Path(side.store)).resolve(side.contender.where).manifest.files)
