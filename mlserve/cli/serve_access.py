"""The flags of `mlserve serve` about who may ask, and what they mean together."""

import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlserve.errors import UsageError
from mlserve.runs.production import ServeChoice

if TYPE_CHECKING:
    from mlserve.serve.settings import AccessSettings

__all__ = [
    "AllowedHost",
    "AllowedOrigin",
    "AuditLog",
    "Jwks",
    "JwtAudience",
    "JwtIssuer",
    "access_of",
    "is_loopback",
    "is_open",
]

Jwks = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, help="JWKS file: who has a token signed by its keys may ask; followed, too."
    ),
]
JwtIssuer = Annotated[str, typer.Option(help="Who must have made a token: its claim iss.", show_default=False)]
JwtAudience = Annotated[str, typer.Option(help="Whom a token must be for: its claim aud.", show_default=False)]
AllowedHost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="A name that a server of this machine alone, without keys, answers to; * for any. Repeatable.",
        show_default="localhost, 127.0.0.1, [::1]",
    ),
]
AllowedOrigin = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ORIGIN",
        help="A site whose pages may send requests, as https://shop.example; * for any. Repeatable.",
        show_default="the server's own",
    ),
]
AuditLog = Annotated[
    Path | None,
    typer.Option(dir_okay=False, help="Where admin calls are told, as JSON lines.", show_default="stderr"),
]


def access_of(choice: ServeChoice) -> "AccessSettings":
    """What the flags say. Raises UsageError for tokens of just anybody, and for a site or audit log that is none."""
    from mlserve.serve.settings import AccessSettings

    said = {"--jwks": choice.jwks, "--jwt-issuer": choice.jwt_issuer, "--jwt-audience": choice.jwt_audience}
    if any(said.values()) and not all(said.values()):
        missing = ", ".join(flag for flag, value in said.items() if not value)
        raise UsageError(f"tokens are checked for who made them and for whom: give {missing}, too")
    for origin in choice.allowed_origin:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
            raise UsageError(f"--allowed-origin {origin!r} is no site; write it like https://shop.example:8443, or *")
    audit = Path(choice.audit_log).absolute() if choice.audit_log else None
    if audit is not None and not audit.parent.is_dir():
        raise UsageError(f"--audit-log {choice.audit_log}: there is no folder {audit.parent}; make it first")
    return AccessSettings(
        str(Path(choice.jwks).absolute()) if choice.jwks else "",
        choice.jwt_issuer,
        choice.jwt_audience,
        choice.allowed_host,
        choice.allowed_origin,
        str(audit or ""),
    )


def is_open(host: str, address: str, keys: str, *, allow_anonymous: bool) -> bool:
    """Whether people beyond this machine may ask without a key at `address`, which `host` means.

    Raises UsageError unless that is what was meant.
    """
    if keys or is_loopback(address):
        return False
    if not allow_anonymous:
        raise UsageError(
            f"--host {host} can be reached from other machines, and without keys everybody there may ask; "
            "name a file of keys with --keys, or mean it: --allow-anonymous"
        )
    return True


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches `address`, an IP address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
