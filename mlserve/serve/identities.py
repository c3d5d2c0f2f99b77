"""Who a client is by the certificate of its connection, and what that allows.

The file is TOML, written by people and followed as it changes:

    format_version = 1

    [[identity]]
    certificate = "CN:ci-runner"      # or DNS:, URI:, email: and IP: of its subjectAltName
    scopes = ["infer", "metadata"]
"""

import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mlserve.errors import Unauthenticated, UsageError
from mlserve.serve.access import CERTIFICATE, Grant, Scope
from mlserve.serve.followed_file import FollowedFile

__all__ = ["Identities", "IdentityFile", "certificate_credential"]

_FORMAT_VERSION = 1

# The kinds of names in a certificate, as the file calls them, by what Python's ssl module calls them.
_KINDS = {"DNS": "DNS", "URI": "URI", "email": "email", "IP Address": "IP"}
_FORMS = "write it like CN:ci-runner, DNS:client.example or URI:spiffe://example/ci"


class _Identity(msgspec.Struct, forbid_unknown_fields=True):
    certificate: str
    scopes: list[Scope]


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format_version: int
    identity: list[_Identity]


class Identities:
    """What the names of certificates allow: name (`CN:ci-runner`) -> scopes."""

    def __init__(self, scopes: Mapping[str, frozenset[Scope]]) -> None:
        self._scopes = scopes

    def __len__(self) -> int:
        return len(self._scopes)

    @classmethod
    def parse(cls, content: bytes, path: Path) -> "Identities":
        """Those of a file. Raises UsageError, naming the file and the place, for one that cannot be understood."""
        try:
            document = msgspec.toml.decode(content, type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is no file of identities: {error}; docs/operations.md shows one") from error
        if document.format_version != _FORMAT_VERSION:
            raise UsageError(
                f"{path} has format version {document.format_version}, this mlserve reads {_FORMAT_VERSION}"
            )
        return cls(_scopes(document.identity, path))

    def verify(self, credential: bytes) -> Grant:
        """All that the names of a certificate allow together, until it expires. Raises Unauthenticated for none."""
        until_s, *names = credential.removeprefix(CERTIFICATE).decode().split("\0")
        known = [name for name in names if name in self._scopes]
        if not known:
            raise Unauthenticated("the client's certificate has no name that is known to this server")
        return Grant(known[0], frozenset[Scope]().union(*(self._scopes[name] for name in known)), float(until_s))


class IdentityFile(FollowedFile[Identities]):
    """The identities of one file, for a server that follows it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, Identities.parse, "identities")


def certificate_credential(transport: Any) -> bytes | None:
    """What stands for the verified certificate of a TLS connection where a key would stand; None without one."""
    certificate = transport.get_extra_info("peercert")
    if not certificate:
        return None
    until_s = ssl.cert_time_to_seconds(certificate["notAfter"])
    return CERTIFICATE + "\0".join((str(until_s), *_names(certificate))).encode()


def _names(certificate: Mapping[str, Any]) -> Iterator[str]:
    """`CN:` of its subject and every name of its subjectAltName, but for those that hold a NUL."""
    found = [("CN", value) for part in certificate.get("subject", ()) for kind, value in part if kind == "commonName"]
    found += [(_KINDS[kind], value) for kind, value in certificate.get("subjectAltName", ()) if kind in _KINDS]
    return (f"{kind}:{value}" for kind, value in found if "\0" not in value)


def _scopes(identities: Sequence[_Identity], path: Path) -> dict[str, frozenset[Scope]]:
    scopes: dict[str, frozenset[Scope]] = {}
    for identity in identities:
        name = identity.certificate
        kind, _, value = name.partition(":")
        if kind not in ("CN", *_KINDS.values()) or not value:
            raise UsageError(f"{path}: certificate = {name[:64]!r} names none; {_FORMS}")
        if name in scopes:
            raise UsageError(f"{path} has two identities with certificate = {name[:64]!r}; leave one of them out")
        if not identity.scopes:
            raise UsageError(f"{path}: the identity {name[:64]!r} has no scope; use infer, metadata, admin, metrics")
        scopes[name] = frozenset(identity.scopes)
    return scopes
