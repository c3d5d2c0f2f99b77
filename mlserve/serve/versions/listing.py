"""What a store holds, looked at again and again: a few `stat` calls where nothing changed.

A version without its manifest is still being written and is not seen; staging folders never are.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from mlserve.errors import StoreError
from mlserve.model.artifact import MANIFEST
from mlserve.model.store import Store, check_name
from mlserve.serve.versions.policy import Known, Published

__all__ = ["StoreListing", "fingerprint"]

# File systems round the time of a change, some to two seconds: so long after one, equal stamps do not prove that there
# was not another.
_UNSURE_S = 3.0

_log = logging.getLogger("mlserve.serve")

_Stamp = tuple[int, ...]


class _Seen(NamedTuple):
    stamps: tuple[_Stamp, ...]
    versions: list[int]
    known: Known
    sure_from_s: float


class StoreListing:
    """The models of one store as they were when last looked at. Not for several threads at once."""

    def __init__(self, root: Path, now_s: Callable[[], float] = time.monotonic) -> None:
        self._root, self._store, self._now_s = root, Store(root), now_s
        self._seen: dict[str, _Seen] = {}
        self._faults: dict[str, str] = {}

    def look(self, names: Iterable[str] | None = None) -> dict[str, Known]:
        """What the store knows of `names` (None for all it has); those it has no version of are left out.

        A name whose folder or aliases cannot be read stays as it was, and the log says why, once.
        """
        found = {}
        for name in self._all_names() if names is None else names:
            try:
                known = self._look_at(name)
                self._faults.pop(name, None)
            except (OSError, StoreError) as error:
                known = self._seen[name].known if name in self._seen else Known()
                if self._faults.get(name) != str(error):
                    self._faults[name] = str(error)
                    _log.warning("the store's model %s stays as it was: %s", name, error)
            if known.versions:
                found[name] = known
        return found

    def _all_names(self) -> list[str]:
        try:
            with os.scandir(self._root) as entries:
                return sorted(entry.name for entry in entries if _is_name(entry.name) and entry.is_dir())
        except OSError:
            return []

    def _look_at(self, name: str) -> Known:
        seen = self._seen.get(name)
        now_s = self._now_s()
        places = self._places(name)
        if (
            seen is not None
            and now_s >= seen.sure_from_s
            and (*places, *self._marks(name, seen.versions)) == seen.stamps
        ):
            return seen.known
        # Before the versions: whoever publishes one and then points an alias at it is never seen to have done only the
        # second.
        aliases = {alias: str(number) for alias, number in self._store.aliases(name).items()}
        versions = self._store.versions(name)
        marks = self._marks(name, versions)
        stamps = (*places, *marks)
        same = seen is not None and stamps == seen.stamps
        sure_from_s = seen.sure_from_s if seen is not None and same else now_s + _UNSURE_S
        published = {
            str(number): Published(str(self._root / name / str(number)), mark)
            for number, mark in zip(versions, marks, strict=True)
            if mark
        }
        self._seen[name] = _Seen(stamps, versions, Known(published, aliases), sure_from_s)
        return self._seen[name].known

    def _places(self, name: str) -> tuple[_Stamp, _Stamp]:
        return _stamp(self._root / name), _stamp(self._root / name / "aliases")

    def _marks(self, name: str, versions: list[int]) -> tuple[_Stamp, ...]:
        return tuple(_stamp(self._root / name / str(version) / MANIFEST) for version in versions)


def fingerprint(path: Path) -> tuple[tuple[str, _Stamp], ...]:
    """Changes when a file in the folder `path` does (or the file `path` itself). What goes meanwhile is left out."""
    files = [Path(at, name) for at, folders, names in os.walk(path) for name in (*folders, *names)]
    return tuple((str(each), _stamp(each)) for each in sorted(files) or [path])


def _is_name(text: str) -> bool:
    try:
        return bool(check_name(text))
    except StoreError:
        return False


def _stamp(path: Path) -> _Stamp:
    """Which file this is and when it was written; empty for none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size
