"""The store: `root/<name>/<version>/` holds immutable versions, `root/<name>/aliases/<alias>` one line naming one.

**Law:** a version directory appears whole, by renaming a finished one, and never changes; an alias moves by renaming
a finished file over it. So a reader never needs a lock, and a crash at any moment leaves nothing half done.
"""

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from mlserve.errors import StoreError
from mlserve.model.artifact import (
    MANIFEST,
    Artifact,
    Manifest,
    read_manifest,
    record_files,
    write_manifest,
)
from mlserve.model.plain_files import differences, read_plain_file

__all__ = ["PRODUCTION", "Store", "check_name", "verify"]

PRODUCTION = "production"

# Rule R4 of the security reference: a name is also a folder and a part of a URL.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_ALIAS = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_STAGING = ".staging-"
_MOST_ALIAS_BYTES, _MOST_HISTORY_BYTES = 4096, 1 << 20


class Store:
    """Versions of models under one folder. Constructing it touches nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """The models with at least one version, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(
            path.name for path in self.root.iterdir() if _NAME.fullmatch(path.name) and self.versions(path.name)
        )

    def versions(self, name: str) -> list[int]:
        """The published versions of `name`, oldest first; empty when there are none."""
        folder = self.root / check_name(name)
        if not folder.is_dir():
            return []
        return sorted(int(path.name) for path in folder.iterdir() if _VERSION.fullmatch(path.name) and path.is_dir())

    def aliases(self, name: str) -> dict[str, int]:
        """What each alias of `name` points at."""
        folder = self.root / check_name(name) / "aliases"
        if not folder.is_dir():
            return {}
        return {path.name: _read_alias(path) for path in sorted(folder.iterdir()) if _ALIAS.fullmatch(path.name)}

    def get(self, name: str, version: int) -> Artifact:
        """One version. Raises StoreError when it does not exist or its manifest cannot be read."""
        if version not in self.versions(name):
            raise StoreError(self._unknown(name, str(version)))
        directory = self.root / name / str(version)
        return Artifact(directory, read_manifest(directory))

    def resolve(self, ref: str) -> Artifact:
        """The version that `name`, `name@version` or `name@alias` means.

        A bare name means the alias `production`, or the newest version while there is no such alias.
        """
        name, _, version = ref.partition("@")
        if not self.versions(name):
            raise StoreError(self._unknown(name, ""))
        if _VERSION.fullmatch(version):
            return self.get(name, int(version))
        aliases = self.aliases(name)
        if not version:
            return self.get(name, aliases.get(PRODUCTION, self.versions(name)[-1]))
        if version not in aliases:
            raise StoreError(self._unknown(name, version))
        return self.get(name, aliases[version])

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A fresh folder on the store's own disk; removed at the end, whatever happens.

        Raises StoreError when the store cannot be written.
        """
        try:
            folder, lock = _open_staging(self.root)
        except OSError as error:
            raise _unwritable(self.root, error) from error
        try:
            _remove_abandoned(self.root)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

    def add(self, artifact: Artifact, name: str, parent: str = "") -> Artifact:
        """Publishes a finished artifact as the next version of `name`.

        `artifact.directory` must lie in a folder from `staging`; it is moved, not copied. A version with the same
        files, measured on the same data, is returned instead of being published twice.
        """
        files = record_files(artifact.directory)
        manifest = msgspec.structs.replace(
            artifact.manifest,
            name=check_name(name),
            parent=parent,
            files=files,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        same = self._same_content(manifest)
        if same is not None:
            return same
        try:
            return self._publish(artifact.directory, manifest)
        except OSError as error:
            raise _unwritable(self.root / name, error) from error

    def _publish(self, directory: Path, manifest: Manifest) -> Artifact:
        (self.root / manifest.name).mkdir(exist_ok=True)
        while True:
            manifest = msgspec.structs.replace(manifest, version=max(self.versions(manifest.name), default=0) + 1)
            write_manifest(directory, manifest)
            _flush_to_disk(directory)
            published = self.root / manifest.name / str(manifest.version)
            try:
                directory.rename(published)
            except OSError:
                if published.exists():  # another process took this number meanwhile
                    continue
                raise
            return Artifact(published, manifest)

    def promote(self, name: str, version: int, alias: str = PRODUCTION) -> int | None:
        """Points `alias` at `version` and returns what it pointed at before (None if it is new)."""
        self.get(name, version)
        if not _ALIAS.fullmatch(alias):
            raise StoreError(f"{alias!r} is no alias; use letters, digits, '.', '_' and '-', and start with a letter")
        previous = self.aliases(name).get(alias)
        if previous != version:
            self._write_alias(name, alias, [version, *self._history(name, alias)])
        return previous

    def rollback(self, name: str, alias: str = PRODUCTION) -> tuple[int, int]:
        """Points `alias` at what it pointed at before; returns (version left, version now).

        Raises StoreError when there is nothing to go back to.
        """
        if not self.versions(name):
            raise StoreError(self._unknown(name, ""))
        history = self._history(name, alias)
        if len(history) < 2:
            raise StoreError(
                f"{name}@{alias} has no earlier version to go back to; "
                f"promote one with: mlserve models promote {name}@VERSION --alias {alias}"
            )
        self._write_alias(name, alias, history[1:])
        return history[0], history[1]

    def _history(self, name: str, alias: str) -> list[int]:
        """Every version `alias` has pointed at, newest first; only those that still exist."""
        if alias not in self.aliases(name):
            return []
        current = self.aliases(name)[alias]
        lines = _read_history(self.root / name / "aliases" / f".{alias}.history", f"{name}@{current}")
        existing = {*self.versions(name)}
        versions = [int(line) for line in lines if int(line) in existing]
        # What stands before the alias's own version was about to be promoted when the process was killed.
        return versions[versions.index(current) :] if current in versions else [current, *versions]

    def _write_alias(self, name: str, alias: str, history: list[int]) -> None:
        folder = self.root / name / "aliases"
        # History first: if the second rename never happens, a rollback still lands on a version that was promoted.
        try:
            _replace_file(folder / f".{alias}.history", "".join(f"{version}\n" for version in history))
            _replace_file(folder / alias, f"{history[0]}\n")
        except OSError as error:
            raise _unwritable(folder, error) from error

    def _same_content(self, manifest: Manifest) -> Artifact | None:
        for version in reversed(self.versions(manifest.name)):
            try:
                published = self.get(manifest.name, version)
            except StoreError:  # damaged: not the same, and no reason to lose what was just made
                continue
            if _content(published.manifest) == _content(manifest):
                return published
        return None

    def _unknown(self, name: str, version: str) -> str:
        versions = self.versions(name)
        if not versions:
            known = ", ".join(self.names()) or "nothing yet; add a model with: mlserve optimize SOURCE"
            return f"the store {self.root} has no model {name!r}; it has {known}"
        known = ", ".join([*map(str, versions), *self.aliases(name)])
        return f"model {name!r} has no version or alias {version!r}; it has {known}"


def check_name(name: str) -> str:
    """`name` itself; raises StoreError when it cannot be a model's name."""
    if not _NAME.fullmatch(name):
        raise StoreError(
            f"{name!r} cannot be a model's name; use up to 128 letters, digits, '.', '_' and '-', "
            "and start with a letter, a digit or '_'"
        )
    return name


def verify(artifact: Artifact) -> None:
    """Raises StoreError unless the version holds exactly the files of its manifest, each with its SHA-256."""
    try:
        faults = differences(artifact.directory, artifact.manifest.files, but=MANIFEST)
    except OSError as error:
        raise StoreError(f"{artifact.directory} cannot be read: {error.strerror}") from error
    if faults:
        raise StoreError(
            f"{artifact.ref} does not match its manifest: {'; '.join(faults)}; restore it or optimize the model again"
        )


def _content(manifest: Manifest) -> tuple[object, ...]:
    """What makes two versions the same: their files, what they are said to be, and where they were judged on what."""
    accuracy = manifest.metrics.accuracy
    made_for = manifest.variant, manifest.engine, manifest.compute_type, manifest.split_batches, manifest.task
    judged = accuracy and (accuracy.metric, accuracy.data, accuracy.split)
    return manifest.files, made_for, manifest.labels, manifest.processing, judged, manifest.metrics.machine


def _read_alias(path: Path) -> int:
    try:
        text = _read_text(path, _MOST_ALIAS_BYTES).strip()
    except OSError as error:
        raise StoreError(
            f"alias file {path} cannot be read: {error.strerror}; remove it, then promote a version"
        ) from error
    if not _VERSION.fullmatch(text):
        raise StoreError(f"alias file {path} holds {text[:64]!r}, not a version; remove it, then promote a version")
    return int(text)


def _read_history(path: Path, current: str) -> list[str]:
    """The versions in it, none where there is no such file; `current` is what its alias means now."""
    try:
        lines = _read_text(path, _MOST_HISTORY_BYTES).split()
        fault = "" if all(map(_VERSION.fullmatch, lines)) else "it holds something else than versions"
    except FileNotFoundError:
        return []
    except OSError as error:
        fault = str(error.strerror)
    if fault:
        raise StoreError(f"{path} is damaged ({fault}); remove it, then promote {current} again")
    return lines


def _read_text(path: Path, most_bytes: int) -> str:
    """Whoever may write to the store could make it a pipe, or a link to a file without an end."""
    # It need not be alone: one that is replaced while we look has no name at all.
    return read_plain_file(path.parent, path.name, most_bytes, alone=False).decode(errors="replace")


def _replace_file(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.rename(path)


def _flush_to_disk(directory: Path) -> None:
    """So that a power cut after the rename cannot leave a version whose files are empty."""
    for path in [*directory.rglob("*"), directory]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(f"the store {path} cannot be written: {error.strerror}; choose another with --store")


def _open_staging(root: Path) -> tuple[Path, int]:
    """A new staging folder, and the descriptor that keeps it locked for as long as this process lives.

    A lock, not the process's number: processes of two containers that share a store may have the same one.
    """
    while True:
        folder = root / f"{_STAGING}{uuid.uuid4().hex}"
        folder.mkdir(parents=True, mode=0o755)
        with suppress(FileNotFoundError):  # another process took it for abandoned before it was locked
            lock = os.open(folder, os.O_RDONLY)
            with suppress(OSError):  # a file system without locks: then nobody can lock it to remove it either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.is_dir():
                return folder, lock
            os.close(lock)


def _remove_abandoned(root: Path) -> None:
    """Removes the staging folders of processes that were killed: those that nobody has locked."""
    for folder in root.glob(f"{_STAGING}*"):
        with suppress(OSError):  # it is in use, or somebody else has just removed it
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)
