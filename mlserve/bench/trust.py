"""How a server's certificate is judged, and what the client shows of itself."""

import ssl
from pathlib import Path

import msgspec

from mlserve.errors import UsageError

__all__ = ["Trust", "read_trust"]

# Debian's and its children's, in one file; others name theirs to OpenSSL.
_BUNDLE = "ca-certificates.crt"


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """Files in PEM: `ca_file` holds the authorities whose certificates are trusted ("" for the system's), or a server's
    own certificate; `certificate_file` is the client's, "" for none, and `key_file` its key, "" where that is in the
    same file. Only their paths are kept: a generator on another machine reads them there.
    """

    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""

    def context(self, *protocols: str) -> ssl.SSLContext:
        """What a client needs who speaks `protocols` (ALPN's names).

        Raises OSError where a file cannot be read, and UsageError for a key with a passphrase.
        """
        context = ssl.create_default_context(cafile=self.ca_file or None)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a certificate that is named is trusted by itself
        if self.certificate_file:
            context.load_cert_chain(self.certificate_file, self.key_file or None, self._no_passphrase)
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context

    @property
    def authorities(self) -> bytes | None:
        """The certificates that are trusted, as PEM; None where nobody knows in which file the system has its own."""
        known = ssl.get_default_verify_paths()
        files = [self.ca_file] if self.ca_file else [known.cafile, f"{known.capath}/{_BUNDLE}"]
        return next((Path(file).read_bytes() for file in files if file and Path(file).is_file()), None)

    @property
    def own(self) -> tuple[bytes | None, bytes | None]:
        """The client's key and certificate, as PEM; None without."""
        files = (self.key_file or self.certificate_file, self.certificate_file)
        key, certificate = (Path(file).read_bytes() if file else None for file in files)
        return key, certificate

    def _no_passphrase(self) -> str:
        path = self.key_file or self.certificate_file
        raise UsageError(
            f"the key in {path} has a passphrase, and nobody can be asked for it while a load runs; "
            "write it without one, for this user's eyes only"
        )


def read_trust(ca_file: Path | None, certificate_file: Path | None, key_file: Path | None) -> Trust | None:
    """What the flags say; None where they say nothing. Raises UsageError for a file that is none of that kind."""
    if certificate_file is None and key_file is not None:
        raise UsageError("--client-key belongs to a certificate; name that with --client-cert")
    if ca_file is None and certificate_file is None:
        return None
    given = {"ca_file": ca_file, "certificate_file": certificate_file, "key_file": key_file}
    trust = Trust(**{name: str(path.absolute()) for name, path in given.items() if path is not None})
    for flag, part in (
        ("--ca-file", msgspec.structs.replace(trust, certificate_file="", key_file="")),
        ("--client-cert", msgspec.structs.replace(trust, ca_file="")),
    ):
        try:
            part.context()
        except OSError as error:  # ssl.SSLError is one
            path = ca_file if flag == "--ca-file" else certificate_file
            raise UsageError(f"{flag} {path} cannot be used: {error.strerror or error}; it has to be in PEM") from error
    return trust
