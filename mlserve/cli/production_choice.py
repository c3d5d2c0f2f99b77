"""`mlserve serve --config production.toml`: what the file says, what flags change of it, and whether its figures hold
for the model that is served.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from mlserve.cli.terminal import err, is_said
from mlserve.errors import MlserveError, UsageError
from mlserve.runs.production import MEASURED_KEYS, Production, ServeChoice, read_production
from mlserve.units import format_duration, format_rate

if TYPE_CHECKING:
    from mlserve.serve.settings import ModelSource

__all__ = ["Configured", "configured", "expectation"]

_PARAMETER = {"route": "routes"}


class Configured(msgspec.Struct, frozen=True, kw_only=True):
    """What is served. `production` is the file it comes from, None without one; `unlike` says in which way this is
    not what the file's figures were measured of.
    """

    choice: ServeChoice
    production: Production | None = None
    path: str = ""
    unlike: tuple[str, ...] = ()

    @property
    def document(self) -> dict[str, Any]:
        """What `--json` says of it; nothing without a file."""
        if self.production is None:
            return {}
        expected = None if self.unlike else msgspec.to_builtins(self.production.expected)
        return {"config": self.path, "expected": expected, "unlike": list(self.unlike)}


def configured(said: ServeChoice, context: typer.Context, path: Path | None, *, allow_changed: bool) -> Configured:
    """What `said` on the command line and in the environment, and else the file at `path`, make together.

    Raises UsageError where the model is not the one that the file's figures are of. That is refused, and no mere
    warning, because the file is a promise about one model: who starts it in production does not read its log.
    """
    if path is None:
        if allow_changed:
            raise UsageError("--allow-changed says something of --config; give that too, or leave it out")
        return Configured(choice=said)
    if path.suffix.lower() == ".onnx":
        raise UsageError(
            f"--config {path} is a model, and no production.toml as mlserve tune writes it; to serve the model, leave "
            f"--config out: mlserve serve {path}"
        )
    production = read_production(path)
    given = [name for name in ServeChoice.__struct_fields__ if is_said(context, _PARAMETER.get(name, name))]
    changes = {name: getattr(said, name) for name in given if getattr(said, name) != getattr(production.serve, name)}
    held_keys = msgspec.toml.decode(path.read_bytes())["serve"]
    for name, value in changes.items():
        if name not in held_keys:  # the file says nothing that could be overruled
            continue
        flag = "naming" if name == "models" else f"--{name.replace('_', '-')}"
        held = _shown(getattr(production.serve, name))
        note = f"{flag} {_shown(value)} wins over {name} = {held} of {path}"
        err.print(note, highlight=False, markup=False, soft_wrap=True)
    choice = msgspec.structs.replace(production.serve, **changes)
    for name, file in (("keys", choice.keys), ("jwks", choice.jwks)):
        if file and not Path(file).is_file():
            raise UsageError(f"{path}: serve.{name}: there is no file {file}; mend it, or say it with --{name}")
    unlike = [name for name in changes if name in MEASURED_KEYS]
    if production.is_edited:
        unlike.append("settings")
    if "models" not in changes:
        unlike += _changed_model(choice, production, path, allowed=allow_changed)
    return Configured(choice=choice, production=production, path=str(path), unlike=tuple(unlike))


def expectation(asked: Configured) -> list[str]:
    """What may be expected of it, as lines for people."""
    if asked.production is None or asked.production.expected is None:
        return []
    if asked.unlike:
        return [f"expected  unknown: {asked.path} was measured with other {', '.join(asked.unlike)}"]
    expected, evidence = asked.production.expected, asked.production.evidence
    p99 = format_duration(expected.p99_ms / 1000)
    if expected.p99_low_ms is not None and expected.p99_high_ms is not None:
        low, high = format_duration(expected.p99_low_ms / 1000), format_duration(expected.p99_high_ms / 1000)
        p99 += f" ({low} to {high})"
    p50 = format_duration(expected.p50_ms / 1000)
    lines = [f"expected  p50 {p50}, p99 {p99} at {format_rate(expected.rate_per_s)} over {expected.protocol}"]
    if expected.max_rate_per_s is not None and expected.slo:
        lines.append(f"          up to {format_rate(expected.max_rate_per_s)} within {expected.slo}")
    if evidence is not None:
        valid = "VALID" if evidence.valid else "INVALID: do not decide by it"
        lines.append(f"measured  {evidence.measured_at} on {evidence.cpu}, {evidence.cores} cores; {valid}")
    return lines


def _changed_model(choice: ServeChoice, production: Production, path: Path, *, allowed: bool) -> list[str]:
    """`["model"]` where none of the models is the one that was measured and that is allowed, else nothing."""
    evidence = production.evidence
    if evidence is None or not evidence.model_sha256 or not choice.models:
        return []
    from mlserve.cli.served_models import choose_models

    try:
        found = {ref: _sha256(choose_models([ref], Path(choice.store))[0]) for ref in choice.models}
    except MlserveError as error:
        raise UsageError(
            f"{path}: serve.models: {error}; mend the file, or say with --store where its models lie"
        ) from error
    if evidence.model_sha256 in found.values():
        return []
    if not allowed:
        held = ", ".join(f"{ref} has {sha256[:12]}" for ref, sha256 in found.items())
        raise UsageError(
            f"{path} was measured with the model of SHA-256 {evidence.model_sha256[:12]}, and {held}: its figures are "
            "of another model. Measure this one (mlserve tune), or mean it: --allow-changed"
        )
    return ["model"]


def _sha256(source: "ModelSource") -> str:
    """Of the model's files, as runs have it."""
    from mlserve.model.artifact import read_manifest, sha256_of
    from mlserve.model.digest import model_sha256

    path = Path(source.path)
    if path.is_file():
        return sha256_of(path)
    return model_sha256(read_manifest(path).files)


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else f"{value}" if value != "" else '""'
