"""What a stopped `optimize` had finished, kept so that the same command goes on from there."""

import fcntl
import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from mlserve import __version__
from mlserve.errors import ModelFileError, Refused, StoreError
from mlserve.model.artifact import Artifact, read_manifest, sha256_of, write_manifest

__all__ = ["Unfinished", "content_key", "unfinished_work"]

_log = logging.getLogger("mlserve.optimize")
_FOLDER = ".unfinished"
_OLDEST_S = 14 * 24 * 3600


class Unfinished:
    """The finished variants and the training checkpoints of one piece of work, in a folder on the store's own disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.checkpoints = folder / "checkpoints"

    def kept(self, key: str) -> Artifact | None:
        """The variant that an earlier attempt finished; None when there is none."""
        folder = self._folder / key
        try:
            return Artifact(folder, read_manifest(folder)) if folder.is_dir() else None
        except StoreError:  # of another version of mlserve, or damaged: it is made again
            return None

    def keep(self, key: str, artifact: Artifact) -> Artifact:
        """Takes a finished variant over from its staging folder; it appears here whole or not at all."""
        folder = self._folder / key
        write_manifest(artifact.directory, artifact.manifest)
        shutil.rmtree(folder, ignore_errors=True)
        artifact.directory.rename(folder)
        return Artifact(folder, artifact.manifest)


@contextmanager
def unfinished_work(root: Path, key: str) -> Iterator[Unfinished]:
    """The folder of the work that `key` names; the same source, data and wishes give the same key.

    It is removed when the work ends, well or with a model that it cannot be done to, and stays when it is stopped
    (Ctrl-C, a crash) or meets an error that can be mended (a full disk). While another process does the same work, this
    one has a folder of its own. Raises StoreError when the folder cannot be used.
    """
    _remove_old(root / _FOLDER)
    folder, lock = _claim(root / _FOLDER, key)
    try:
        yield Unfinished(folder)
        shutil.rmtree(folder, ignore_errors=True)
    except (ModelFileError, Refused):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        for empty in (folder / "checkpoints", folder, root / _FOLDER):
            with suppress(OSError):  # not empty: there is work to go on with
                empty.rmdir()
        os.close(lock)


def content_key(*parts: Path | msgspec.Struct | str | None) -> str:
    """A short name for this content: files and folders by their bytes, values by theirs, mlserve by its version."""
    digest = hashlib.sha256(__version__.encode())
    for part in parts:
        if isinstance(part, Path):
            files = sorted(part.rglob("*")) if part.is_dir() else [part]
            for file in filter(Path.is_file, files):
                digest.update(f"{file.relative_to(part)} {_digest(file)}".encode())
        else:
            digest.update(msgspec.json.encode(part, enc_hook=str))
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _digest(file: Path) -> str:
    try:
        return sha256_of(file)
    except OSError as error:
        raise ModelFileError(f"{file} cannot be read: {error.strerror}; check its permissions") from error


def _claim(parent: Path, key: str) -> tuple[Path, int]:
    for name in (key, f"{key}-{uuid.uuid4().hex[:8]}"):
        folder = parent / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise StoreError(f"{folder} cannot be used: {error.strerror}; check who owns it") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        except OSError as error:  # a disk without locks: as far as can be told, nobody else is here
            _log.debug("%s cannot be locked: %s", folder, error)
        return folder, lock
    raise StoreError(f"{parent} is in use by other processes; try again")


def _remove_old(parent: Path) -> None:
    """Forgets work that nobody went on with for two weeks."""
    for folder in parent.glob("*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _OLDEST_S:
                shutil.rmtree(folder)
