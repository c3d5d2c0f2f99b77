"""Compiled forms of published models, kept so that they load quicker the next time.

    cache/<model>/<circumstances>/...     and beside the files their SHA-256, in files.json

`<model>` is a digest of the files the model consists of, `<circumstances>` one of everything else that went into the
compiled form: engine, version, settings, CPU. So an entry can only be found for the very model it came from, and the
entries of a model that is gone are one folder. **Law:** an entry appears whole, by renaming a finished folder, and is
used only while its files have the digests they were written with. (TensorRT alone is given the folder of an entry to
keep and check its own files in.) The cache may be deleted at any time.
"""

import hashlib
import logging
import os
import platform
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from mlserve.model.artifact import FileRecord, is_model_file, record_files

__all__ = ["CacheEntry", "cache_entry", "model_digest"]

_log = logging.getLogger("mlserve.engines")

_RECORD = "files.json"
_STAGING = ".staging-"
_DIGEST_LETTERS = 32


class CacheEntry(msgspec.Struct, frozen=True):
    """One compiled form of one model, there or not."""

    folder: Path

    def intact(self) -> bool:
        """Whether the entry is there with the files it was published with; a damaged one is removed."""
        if not self.folder.is_dir():
            return False
        try:
            recorded = msgspec.json.decode((self.folder / _RECORD).read_bytes(), type=dict[str, FileRecord])
            damaged = recorded != _files(self.folder)
        except (OSError, msgspec.DecodeError):
            damaged = True
        if damaged:
            self.discard("it is damaged")
        return not damaged

    def discard(self, why: str) -> None:
        """Removes the entry: the model is compiled again."""
        _log.warning("discarded the compiled model %s: %s", self.folder, why)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def making(self) -> Iterator[Path]:
        """A folder to put the compiled form into; published at the end, unless the body raised or left it empty.

        Raises OSError when the cache cannot be written. Of several processes that make the same entry the first one
        publishes.
        """
        staging = self.folder.parent / f"{_STAGING}{uuid.uuid4().hex}"
        staging.mkdir(parents=True)
        try:
            yield staging
            files = _files(staging)
            if files:
                (staging / _RECORD).write_bytes(msgspec.json.encode(files))
                _publish(staging, self.folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def cache_entry(cache: str, model: str, circumstances: dict[str, Any]) -> CacheEntry | None:
    """The entry for the model with digest `model`, compiled under `circumstances` on a CPU like this one.

    None without a cache, and for a model that has no digest: one that was not published.
    """
    if not (cache and model):
        return None
    known = msgspec.json.encode([sorted(circumstances.items()), _cpu()])
    return CacheEntry(Path(cache) / model / hashlib.sha256(known).hexdigest()[:_DIGEST_LETTERS])


def model_digest(files: dict[str, FileRecord]) -> str:
    """What names a model in the cache: a digest of its graph's and weights' digests; "" while it has none."""
    model = sorted((name, record.sha256) for name, record in files.items() if is_model_file(name))
    return hashlib.sha256(msgspec.json.encode(model)).hexdigest()[:_DIGEST_LETTERS] if model else ""


def _files(folder: Path) -> dict[str, FileRecord]:
    return {name: record for name, record in record_files(folder).items() if name != _RECORD}


def _publish(staging: Path, folder: Path) -> None:
    try:
        staging.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was quicker, with the same content
            raise


def _cpu() -> list[str]:
    """What compiled code depends on: the CPU's model and its instruction sets, as far as the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        lines = [platform.processor()]
    told = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU", "Features")
    return [platform.machine(), str(os.cpu_count()), *(line for line in lines if line.startswith(told))]
