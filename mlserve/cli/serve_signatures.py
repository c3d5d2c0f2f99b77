"""Flags of `mlserve serve` that say which versions are let in."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mlserve.errors import UsageError

if TYPE_CHECKING:
    from mlserve.runs.production import ServeChoice
    from mlserve.serve.settings import SignatureSettings

__all__ = ["RequireSignature", "TrialTime", "TrustedKey", "compiled_in", "signatures_of"]

RequireSignature = Annotated[
    Literal["off", "warn", "enforce"],
    typer.Option(help="What happens to a version that no --trusted-key signed: nothing, a warning, or it is refused."),
]
TrustedKey = Annotated[
    list[Path] | None,
    typer.Option(
        exists=True, dir_okay=False, metavar="KEY.pem", help="Public key of who signs versions (mlserve models sign)."
    ),
]

TrialTime = Annotated[
    str,
    typer.Option(
        help="How long a small version may take to load and run in a process of its own, before a running server "
        "takes it up; 0s: no trial."
    ),
]


def signatures_of(choice: "ServeChoice") -> "SignatureSettings":
    """What is asked of signatures. Raises UsageError where nothing could be checked, or model-signing is missing."""
    from mlserve.model.signing import need_signing
    from mlserve.serve.settings import SignatureSettings

    match choice.require_signature:
        case "off":
            if choice.trusted_key:
                raise UsageError("--trusted-key is of use with --require-signature warn or enforce")
            return SignatureSettings()
        case "warn" | "enforce" as required:
            if not choice.trusted_key:
                raise UsageError(f"--require-signature {required} needs the public key of who signs: --trusted-key")
            need_signing()
            return SignatureSettings(required, tuple(str(Path(key).absolute()) for key in choice.trusted_key))
        case unknown:
            raise UsageError(f"--require-signature {unknown!r} is none of off, warn and enforce")


def compiled_in(choice: "ServeChoice") -> str:
    """The folder of compiled models, "" for none: who writes to the store could put an unsigned one there."""
    if not choice.cache or choice.require_signature == "enforce":
        return ""
    return str(Path(choice.store).resolve() / ".cache")
