"""Who signs certificates in a test: a root of its own, and what it signs for servers and clients, good and bad."""

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["Authority", "Pair"]


class Pair(NamedTuple):
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path

    def copy_to(self, folder: Path) -> "Pair":
        """The same under `cert.pem` and `key.pem` of `folder`, each put there by rename."""
        placed = Pair(folder / "cert.pem", folder / "key.pem")
        for source, target in zip(self, placed, strict=True):
            passing = target.with_suffix(".new")
            passing.write_bytes(source.read_bytes())
            passing.rename(target)
        return placed


class Authority:
    """A root certificate, at `path`, in a `folder` of its own."""

    def __init__(self, folder: Path, name: str = "Test Root") -> None:
        self._folder, self._key, self._name = folder, _new_key(), _subject(name)
        folder.mkdir(parents=True, exist_ok=True)
        certificate = _builder(self._name, self._key, timedelta(days=1)).issuer_name(self._name)
        certificate = certificate.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.path = folder / "root.pem"
        self.path.write_bytes(_pem(certificate.sign(self._key, hashes.SHA256())))

    def issue(
        self, name: str, hosts: Iterable[str] = (), uris: Iterable[str] = (), valid: timedelta = timedelta(days=1)
    ) -> Pair:
        """A certificate for `name`. `valid` below zero: it has expired so long ago."""
        return self._write(name, hosts, uris, valid, self._name, self._key)

    def issue_self_signed(self, name: str, hosts: Iterable[str] = ()) -> Pair:
        """One that no authority has signed."""
        return self._write(name, hosts, (), timedelta(days=1), None, None)

    def _write(
        self,
        name: str,
        hosts: Iterable[str],
        uris: Iterable[str],
        valid: timedelta,
        issuer: x509.Name | None,
        signer: ec.EllipticCurvePrivateKey | None,
    ) -> Pair:
        key = _new_key()
        certificate = _builder(_subject(name), key, valid).issuer_name(issuer or _subject(name))
        names: list[x509.GeneralName] = [*map(_host, hosts), *map(x509.UniformResourceIdentifier, uris)]
        if names:
            certificate = certificate.add_extension(x509.SubjectAlternativeName(names), critical=False)
        number = len(list(self._folder.iterdir()))
        pair = Pair(self._folder / f"{number}-cert.pem", self._folder / f"{number}-key.pem")
        pair.certificate.write_bytes(_pem(certificate.sign(signer or key, hashes.SHA256())))
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pair


def _builder(subject: x509.Name, key: ec.EllipticCurvePrivateKey, valid: timedelta) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + min(valid, timedelta()) - timedelta(days=1))
        .not_valid_after(now + valid)
    )


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
