"""Signatures of versions, in the format of OpenSSF's model-signing: who vouches for a version, and for which bytes.

    store/NAME/signatures/VERSION.sig     a sigstore bundle: an in-toto statement with the SHA-256 of every file

The manifest binds files to what is said of them; whoever can write to the store can write both. A signature binds them
to a key. It lies beside the version, which never changes, and `model_signing verify key` reads it as it is.
"""

import contextlib
import io
import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from mlserve.errors import StoreError, UsageError
from mlserve.model.artifact import Manifest

__all__ = ["check_meant", "need_signing", "sign_version", "signature_path", "verify_signature"]

_MOST_BYTES = 16 << 20


def signature_path(version: Path) -> Path:
    """Where the signature of the version in the folder `version` lies."""
    return version.parent / "signatures" / f"{version.name}.sig"


def need_signing() -> None:
    """Raises UsageError where the package model-signing is not installed."""
    if find_spec("model_signing") is None:
        raise UsageError("signatures need model-signing: pip install 'mlserve[signing]'")


def sign_version(version: Path, private_key: Path) -> Path:
    """Signs every file in the folder `version` with the elliptic key (PEM) in `private_key`; where the signature lies.

    Raises UsageError for a key that cannot be used, and StoreError where the signature cannot be written.
    """
    need_signing()
    from model_signing import hashing, signing

    target = signature_path(version)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        signer = signing.Config().use_elliptic_key_signer(private_key=private_key)
    except Exception as error:  # what the parser of keys raises has no common base
        raise UsageError(
            f"{private_key} is no private key that can sign ({_first_line(error)}); make one with: "
            "openssl ecparam -genkey -name prime256v1 -noout -out key.pem"
        ) from error
    try:
        target.parent.mkdir(exist_ok=True)
        with contextlib.redirect_stdout(io.StringIO()):
            signer.set_hashing_config(hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False))
            signer.sign(version, partial)
        partial.rename(target)
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def verify_signature(files: Path, signature: Path, trusted_keys: Sequence[Path]) -> None:
    """Raises StoreError unless `signature` is of just the files in the folder `files`, by one of the `trusted_keys`
    (files of public keys), and UsageError for what is no key.
    """
    need_signing()
    if not signature.is_file():
        raise StoreError("it is not signed; sign it with: mlserve models sign NAME@VERSION --private-key KEY")
    if signature.stat().st_size > _MOST_BYTES:
        raise StoreError(f"its signature has more than {_MOST_BYTES} bytes")
    faults = [_fault(files, signature, key) for key in trusted_keys]
    if all(faults):
        raise StoreError(f"its signature does not hold: {'; '.join(dict.fromkeys(map(str, faults)))}")


def check_meant(manifest: Manifest, name: str, version: str) -> None:
    """Raises StoreError unless `manifest` is of `version` of the model `name`: a copy in another place keeps its
    signature, which vouches for what it was.
    """
    if (manifest.name, str(manifest.version)) != (name, version):
        said = f"{manifest.name}@{manifest.version}" if manifest.name else "no version of a store"
        raise StoreError(
            f"its manifest is of {said}, not of {name}@{version}; put it back, or optimize it as {name} and sign that"
        )


def _fault(files: Path, signature: Path, key: Path) -> str:
    """Why `signature` is not one of `files` by `key`; empty where it is."""
    from cryptography.exceptions import InvalidSignature
    from model_signing import hashing, verifying

    # Files of git are left out only where the signature itself says so.
    every_file = hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except Exception as error:  # as in sign_version
        raise UsageError(f"{key} is no public key that can be trusted ({_first_line(error)})") from error
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its advice
            verifier.set_hashing_config(every_file).verify(files, signature)
    except InvalidSignature:
        return f"it was not made with the key {key.name}"
    except Exception as error:  # a damaged bundle raises anything
        text = _first_line(error)
        if text.startswith("Key mismatch"):
            return f"it was not made with the key {key.name}"
        return _in_words(str(error)) or text
    return ""


def _in_words(text: str) -> str:
    """What differs from what was signed, of the list that model-signing makes of it; empty for another error."""
    text = text.replace("\\'", "'")
    found = [f"{name} was changed" for name in re.findall(r"Hash mismatch for '([^']+)'", text)]
    found += [
        f"{names} was not signed" for names in re.findall(r"Extra files found in model '[^']*': ([^'\"\]]+)", text)
    ]
    found += [f"{names} is missing" for names in re.findall(r"Missing files in model '[^']*': ([^'\"\]]+)", text)]
    return ", ".join(found)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
