"""API keys on disk: made, kept as SHA-256 alone, read again when the file changes.

The file is JSON: `{"format_version": 1, "keys": [{"name", "sha256", "scopes", "expires_at", ...}, ...]}`, each with the
fields of `Key`. It is replaced whole, by renaming a finished file over it, which has the owner and the mode of the one
before: a server that could read that can read this. A new one only its owner may read.
"""

import fcntl
import math
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, get_args

import msgspec

from mlserve.errors import UsageError
from mlserve.serve.access import Key, Scope, digest
from mlserve.serve.allowance import Allowance
from mlserve.serve.followed_file import FollowedFile

__all__ = ["KeyFile", "NewKey", "add_key", "new_key", "read_keys", "remove_key"]

_FORMAT_VERSION = 1
_KEY_BYTES = 32  # 256 random bits

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SCOPES = get_args(Scope)
_MOST_PER_S, _MOST_PER_DAY = 1e6, 10**12


class NewKey(NamedTuple):
    """A key in the moment it is made: `secret` is shown once and kept nowhere."""

    secret: str
    key: Key


class _File(msgspec.Struct):
    format_version: int
    keys: list[dict[str, Any]]


def new_key(name: str, scopes: Iterable[str], expires_at: str = "", allowance: Allowance | None = None) -> NewKey:
    """A key of 256 random bits that allows `scopes` until `expires_at` (ISO 8601 with a time zone; empty for ever).

    Without an `allowance` it may be used as often as one likes; a rate without a burst gets one of a second. Raises
    UsageError for a name, a scope, a time or a number that is none.
    """
    secret = secrets.token_urlsafe(_KEY_BYTES)
    record = {"name": name, "sha256": digest(secret.encode()), "scopes": sorted(set(scopes)), "expires_at": expires_at}
    if allowance is not None:
        burst = allowance.burst or (max(1, math.ceil(allowance.rate_per_s)) if allowance.rate_per_s else 0)
        record |= allowance._replace(burst=burst)._asdict()
    return NewKey(secret, _key(record, f"key '{name[:64]}'"))


def read_keys(path: Path) -> list[Key]:
    """Every key of the file. Raises UsageError, naming the file and the key, for what cannot be read."""
    return KeyFile(path).read()


def add_key(path: Path, key: Key) -> None:
    """Adds `key`; the file is made where there is none.

    Raises UsageError for a name that is taken, and for a file that this user cannot replace by one of the same owner.
    """
    with _changing(path) as keys:
        if any(other.name == key.name for other in keys):
            raise UsageError(f"{path} has a key '{key.name}' already; revoke it first, or choose another name")
        keys.append(key)


def remove_key(path: Path, name: str) -> Key:
    """Takes the key `name` out of the file and returns it. Raises UsageError when there is none, and as `add_key`."""
    read_keys(path)  # what is not there is not made
    with _changing(path) as keys:
        found = next((key for key in keys if key.name == name), None)
        if found is None:
            known = ", ".join(key.name for key in keys) or "none"
            raise UsageError(f"{path} has no key '{name[:128]}'; it has: {known}")
        keys.remove(found)
    return found


class KeyFile(FollowedFile[list[Key]]):
    """The keys of one file, for a server that follows it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _parse, "keys")


def _parse(content: bytes, path: Path) -> list[Key]:
    try:
        document = msgspec.json.decode(content, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is no keys file: {error}; make one with: mlserve keys create") from error
    if document.format_version != _FORMAT_VERSION:
        raise UsageError(f"{path} has format version {document.format_version}, this mlserve reads {_FORMAT_VERSION}")
    keys: dict[str, Key] = {}
    for place, record in enumerate(document.keys, start=1):
        name = record.get("name")
        which = f"key '{name[:64]}'" if isinstance(name, str) and name else f"key number {place}"
        key = _key(record, f"{path}: {which}")
        if key.name in keys:
            raise UsageError(f"{path} has two keys named '{key.name}'; each needs a name of its own")
        keys[key.name] = key
    return list(keys.values())


def _key(record: dict[str, Any], which: str) -> Key:
    """One key, checked; no message repeats its hash."""
    scopes = record.get("scopes")
    unknown = [scope for scope in scopes if scope not in _SCOPES] if isinstance(scopes, list) else []
    if unknown or not scopes:
        what = f"has the scope {str(unknown[0])[:64]!r}" if unknown else "has no scope"
        raise UsageError(f"{which} {what}; use {', '.join(_SCOPES)}")
    try:
        key = msgspec.convert(record, Key)
    except msgspec.ValidationError as error:
        raise UsageError(f"{which} cannot be read: {error}") from error
    if unmeant := sorted(record.keys() - {*Key.__struct_fields__}):
        raise UsageError(f"{which} has a field {unmeant[0][:64]!r} that means nothing; mend its name, or remove it")
    if not _NAME.fullmatch(key.name):
        raise UsageError(f"{which}: a key's name has letters, digits and . _ @ -, at most 128, and no space")
    if not _SHA256.fullmatch(key.sha256):
        raise UsageError(f"{which} has no SHA-256 of 64 hexadecimal digits; make it anew with: mlserve keys create")
    if key.expires_at and not _is_time(key.expires_at):
        raise UsageError(
            f"{which} expires at {key.expires_at[:64]!r}, which is no time with a zone; "
            "write it like 2027-01-31T00:00:00+00:00"
        )
    _check_allowance(key, which)
    return key


def _check_allowance(key: Key, which: str) -> None:
    if not (0 <= key.rate_per_s <= _MOST_PER_S and 0 <= key.quota_per_day <= _MOST_PER_DAY):
        raise UsageError(
            f"{which} has a rate or quota that is none: give up to {_MOST_PER_S:g} a second, {_MOST_PER_DAY:g} a day"
        )
    if bool(key.burst) != bool(key.rate_per_s) or key.burst < 0 or key.burst > _MOST_PER_S:
        raise UsageError(f"{which}: 'burst' is how many requests of 'rate_per_s' may come at once, 1 or more")


def _is_time(text: str) -> bool:
    try:
        time = datetime.fromisoformat(text)
        return time.tzinfo is not None and time.astimezone(UTC).year > 0
    except (ValueError, OverflowError):  # outside the years 1 to 9999
        return False


@contextmanager
def _changing(path: Path) -> Iterator[list[Key]]:
    """The keys of `path`, to change; they are written back at the end. One process at a time, none of them lost."""
    path = path.resolve()  # so that a link to the file stays one
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise UsageError(f"the keys file {path} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        keys = read_keys(path) if path.exists() else []
        yield keys
        _write(path, keys)
        os.fsync(folder)
    except OSError as error:
        raise UsageError(f"the keys file {path} cannot be written: {error.strerror}") from error
    finally:
        os.close(folder)


def _write(path: Path, keys: Sequence[Key]) -> None:
    records = [{**msgspec.to_builtins(key), "scopes": sorted(key.scopes), "expires_at": key.expires_at} for key in keys]
    content = msgspec.json.format(msgspec.json.encode({"format_version": _FORMAT_VERSION, "keys": records}), indent=2)
    with tempfile.NamedTemporaryFile(prefix=".keys-", dir=path.parent, delete=False) as file:  # with mode 0600
        finished = Path(file.name)
        try:
            _keep_owner_and_mode(path, file.fileno())
            file.write(content + b"\n")
            file.flush()
            os.fsync(file.fileno())
            finished.replace(path)
        except BaseException:
            with suppress(OSError):
                finished.unlink()
            raise


def _keep_owner_and_mode(path: Path, descriptor: int) -> None:
    """Gives the file of `descriptor` those of `path`, if that is there; a server might not read the file otherwise."""
    try:
        before = path.stat()
    except FileNotFoundError:
        return
    made = os.fstat(descriptor)
    try:
        if (made.st_uid, made.st_gid) != (before.st_uid, before.st_gid):
            os.fchown(descriptor, before.st_uid, before.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
    except OSError as error:
        raise UsageError(
            f"the keys file {path} belongs to user {before.st_uid} and group {before.st_gid}; this user may make no "
            f"such file ({error.strerror}); nothing was changed: run the same command as that user, or as root"
        ) from error
