"""Where workers count: numbers in files that are mapped into memory, read by whichever worker is asked.

    DIRECTORY/lock                     held while files are read, or taken over
    DIRECTORY/<worker>.alive           locked for as long as the worker lives, however it ends
    DIRECTORY/<worker>.<n>.counts      records: how long its key is, how many numbers, the key, the numbers

prometheus-client's own files take a microsecond for every number that changes, keep what is unloaded for ever, and are
only promised by the file system (a full disk then kills the worker). Here a number is one item of a memoryview, a
histogram is one record, what a version counted goes when it is long gone, and what a dead worker counted is taken over
by the next one.
"""

import fcntl
import logging
import mmap
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import isnan, nan
from pathlib import Path
from struct import Struct
from typing import NamedTuple

import msgspec

__all__ = ["CountDirectory", "Counts", "Record"]

# Room for some twenty histograms; a version that needs more gets another file.
_FILE_BYTES = 16 << 10
_USED = Struct("=Q")
_HEAD = Struct("=II")
_ABSENT = nan

_log = logging.getLogger("mlserve.serve")


class Record(NamedTuple):
    """Numbers under one name and one list of label values. A `level` says how things stand, the others only grow."""

    level: bool
    name: str
    labels: tuple[str, ...]
    numbers: Sequence[float]


class Counts:
    """The numbers of one version in one worker. Hold `lock` while changing any."""

    def __init__(self, new_file: "Callable[[], _CountFile]") -> None:
        self.lock = threading.Lock()
        self.users = 0
        self._new_file = new_file
        self._files = [new_file()]
        self._found: dict[tuple[str, tuple[str, ...]], memoryview[float]] = {}
        self._levels: list[memoryview[float]] = []

    def numbers(self, name: str, labels: tuple[str, ...], size: int, *, level: bool = False) -> "memoryview[float]":
        """`size` numbers, 0.0 at first, that readers find under `name` and `labels`; the same ones when asked again."""
        with self.lock:
            found = self._found.get((name, labels))
            if found is None:
                key = msgspec.json.encode((level, name, labels))
                made = self._files[-1].append(key, size)
                if made is None:
                    self._files.append(self._new_file())
                    made = self._files[-1].append(key, size)
                assert made is not None
                found = self._found[name, labels] = made
                if level:
                    self._levels.append(found)
            return found

    def clear_levels(self) -> None:
        """Nobody serves the version any more: its levels are not zero, they are absent."""
        for level in self._levels:
            level[0] = _ABSENT

    def records(self) -> list[Record]:
        """What was counted so far."""
        return [record for file in self._files for record in _records(file.content())]

    def remove(self) -> None:
        """Deletes the files; the numbers may still be changed, but nobody will read them."""
        for file in self._files:
            file.remove()


class CountDirectory:
    """The files of all workers of one server, and this process's own among them. `path` None: memory alone.

    What was counted for a version that is no longer served is kept for the `most_retired` versions served last.
    """

    def __init__(self, path: Path | None, *, most_retired: int = 64) -> None:
        self._path, self._most_retired = path, most_retired
        self._lock = threading.RLock()
        self._of: dict[tuple[str, str], Counts] = {}
        self._retired: dict[tuple[str, str], None] = {}
        self._files = 0
        self._worker = f"{os.getpid()}-{secrets.token_hex(4)}"
        if path is not None:
            with _locked(path / "lock", fcntl.LOCK_EX):
                # Open to the process's end, which is when the lock goes.
                alive = os.open(path / f"{self._worker}.alive", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
                fcntl.flock(alive, fcntl.LOCK_EX)
                self._take_over(path)

    def open(self, model: str, version: str) -> Counts:
        """The numbers of a version that this worker begins to serve; those from before if it has been served."""
        with self._lock:
            counts = self._of.get((model, version))
            if counts is None:
                counts = self._of[model, version] = Counts(self._new_file)
            self._retired.pop((model, version), None)
            counts.users += 1
            return counts

    def close(self, model: str, version: str) -> None:
        """One that had opened the numbers of the version needs them no more."""
        with self._lock:
            counts = self._of[model, version]
            counts.users -= 1
            if not counts.users:
                counts.clear_levels()
                self._retire(model, version)

    def read(self) -> Iterator[tuple[int, list[Record]]]:
        """`(process id, records)` of every worker's files; levels of the living only."""
        if self._path is None:
            yield os.getpid(), [record for counts in list(self._of.values()) for record in counts.records()]
            return
        with _locked(self._path / "lock", fcntl.LOCK_SH):
            alive = {worker: _is_alive(self._path, worker) for worker in _workers(self._path)}
            for worker, lives in alive.items():
                records = _read_worker(self._path, worker)
                yield _process_id(worker), [record for record in records if lives or not record.level]

    def living(self) -> list[int]:
        """The process ids of the workers that live."""
        if self._path is None:
            return [os.getpid()]
        return sorted(_process_id(worker) for worker in _workers(self._path) if _is_alive(self._path, worker))

    def _take_over(self, path: Path) -> None:
        """Adds what dead workers counted to what this one will, and deletes their files."""
        for worker in _workers(path):
            if worker == self._worker or _is_alive(path, worker):
                continue
            for file in _files(path, worker):
                for record in _records(file.read_bytes()):
                    if not record.level:
                        self._add(record)
                file.unlink()
            (path / f"{worker}.alive").unlink()

    def _add(self, record: Record) -> None:
        model, version = record.labels[:2]
        counts = self._of.get((model, version))
        if counts is None:
            counts = self._of[model, version] = Counts(self._new_file)
            self._retire(model, version)
        numbers = counts.numbers(record.name, record.labels, len(record.numbers))
        for position, number in enumerate(record.numbers):
            numbers[position] += number

    def _retire(self, model: str, version: str) -> None:
        self._retired[model, version] = None
        if len(self._retired) > self._most_retired:
            oldest = next(iter(self._retired))
            del self._retired[oldest]
            self._of.pop(oldest).remove()

    def _new_file(self) -> "_CountFile":
        self._files += 1
        if self._path is not None:
            path = self._path / f"{self._worker}.{self._files}.counts"
            try:
                return _CountFile.on_disk(path)
            except OSError as error:
                path.unlink(missing_ok=True)
                _log.warning("metrics of this worker will be missing: %s", error.strerror)
        return _CountFile(mmap.mmap(-1, _FILE_BYTES), None)


class _CountFile:
    """One file of records, mapped into memory."""

    def __init__(self, content: mmap.mmap, path: Path | None) -> None:
        self._content, self._path = content, path
        self._numbers = memoryview(content).cast("d")
        self._used_bytes = _USED.size
        _USED.pack_into(content, 0, self._used_bytes)

    @classmethod
    def on_disk(cls, path: Path) -> "_CountFile":
        """A new file, written out at once: to change a page that the disk has no room for would kill the process."""
        with path.open("x+b") as file:
            file.write(_USED.pack(_USED.size) + bytes(_FILE_BYTES - _USED.size))
            file.flush()
            return cls(mmap.mmap(file.fileno(), _FILE_BYTES), path)

    def append(self, key: bytes, size: int) -> "memoryview[float] | None":
        """Room for `size` numbers under `key`; None when the file is full."""
        key += b" " * (-len(key) % 8)
        start = self._used_bytes + _HEAD.size + len(key)
        end = start + 8 * size
        if end > _FILE_BYTES:
            return None
        self._content[self._used_bytes : start] = _HEAD.pack(len(key), size) + key
        self._used_bytes = end
        _USED.pack_into(self._content, 0, end)  # last: a reader never sees half a record
        return self._numbers[start // 8 : end // 8]

    def content(self) -> bytes:
        return self._content[:]

    def remove(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _records(content: bytes) -> Iterator[Record]:
    if len(content) < _USED.size:  # made just now, or by a worker that was killed before it wrote anything
        return
    end, start = _USED.unpack_from(content)[0], _USED.size
    while start < end:
        key_bytes, size = _HEAD.unpack_from(content, start)
        start += _HEAD.size
        level, name, labels = msgspec.json.decode(content[start : start + key_bytes], type=_Key)
        start += key_bytes
        numbers = memoryview(content)[start : start + 8 * size].cast("d").tolist()
        start += 8 * size
        if not (level and isnan(numbers[0])):
            yield Record(level, name, labels, numbers)


_Key = tuple[bool, str, tuple[str, ...]]


def _read_worker(path: Path, worker: str) -> Iterator[Record]:
    for file in _files(path, worker):
        with suppress(FileNotFoundError):  # its version has been gone for long, just now
            yield from _records(file.read_bytes())


def _workers(path: Path) -> list[str]:
    return sorted(found.stem for found in path.glob("*.alive"))


def _files(path: Path, worker: str) -> list[Path]:
    return sorted(path.glob(f"{worker}.*.counts"))


def _process_id(worker: str) -> int:
    return int(worker.partition("-")[0])


def _is_alive(path: Path, worker: str) -> bool:
    try:
        with (path / f"{worker}.alive").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, how)
        yield
