"""The flags of `mlserve serve` about TLS, and what they mean together."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlserve.errors import UsageError
from mlserve.runs.production import ServeChoice

if TYPE_CHECKING:
    from mlserve.serve.settings import TlsSettings

__all__ = ["TlsCert", "TlsClientCa", "TlsClientRequired", "TlsIdentities", "TlsKey", "tls_of"]

_FIELDS = ("tls_cert", "tls_key", "tls_client_ca", "tls_client_required", "tls_identities")

TlsCert = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, help="Certificate and chain (PEM) to speak TLS with; followed as it changes."
    ),
]
TlsKey = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="The key of --tls-cert (PEM).")]
TlsClientCa = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="Who signs the certificates of clients (PEM).")
]
TlsClientRequired = Annotated[
    bool, typer.Option("--tls-client-required", help="Let in only clients with a certificate of --tls-client-ca.")
]
TlsIdentities = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, help="What clients may do by the names in their certificates (TOML); followed."
    ),
]


def tls_of(choice: ServeChoice) -> "TlsSettings | None":
    """How TLS is spoken; None for plain text. Raises UsageError for flags that mean nothing without another."""
    from mlserve.serve.settings import TlsSettings

    given = [name for name in _FIELDS if getattr(choice, name)]
    missing = [f"--{name.replace('_', '-')}" for name in _FIELDS[:2] if name not in given]
    if missing:
        if given:
            raise UsageError(f"--{given[0].replace('_', '-')} needs {' and '.join(missing)}; give that, too")
        return None
    if not choice.tls_client_ca and (choice.tls_client_required or choice.tls_identities):
        flag = "--tls-client-required" if choice.tls_client_required else "--tls-identities"
        raise UsageError(f"{flag} needs --tls-client-ca: whose certificates of clients are to be believed")
    if choice.tls_client_ca and not (choice.tls_client_required or choice.tls_identities):
        raise UsageError(
            "--tls-client-ca alone changes nothing; add --tls-client-required to let in nobody else, or "
            "--tls-identities to say what who may do"
        )
    paths = (choice.tls_cert, choice.tls_key, choice.tls_client_ca, choice.tls_identities)
    # A link may be turned to another file.
    certificate, key, client_ca, identities = (str(Path(path).absolute()) if path else "" for path in paths)
    return TlsSettings(certificate, key, client_ca, choice.tls_client_required, identities)
