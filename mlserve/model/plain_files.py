"""Files of a folder that others may write: read through descriptors, so that what was looked at is what is read.

Only plain files with one name are read. No link is followed, neither to a file nor to a folder on the way to it, not
even one that is put there while we look (openat with O_NOFOLLOW, then fstat of what was opened).
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import msgspec

__all__ = ["FileRecord", "copy_plain_file", "differences", "read_plain_file"]

_CHUNK_BYTES = 1 << 20
_FOLDER = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY
# A pipe that nobody writes to is opened at once, and then refused.
_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class FileRecord(msgspec.Struct, frozen=True):
    """What binds one file to its manifest."""

    sha256: str
    size_bytes: int


def read_plain_file(folder: Path, name: str, most_bytes: int, *, alone: bool = True) -> bytes:
    """The content of `name`, a path relative to `folder`.

    Raises OSError for what is no plain file, with one name where it shall be `alone`, and for more than `most_bytes`.
    """
    with _opened(folder) as root, _plain(root, name, alone=alone) as handle, os.fdopen(os.dup(handle), "rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"{name} has more than {most_bytes} bytes")
    return content


def copy_plain_file(folder: Path, name: str, to: Path, *, alone: bool = True) -> None:
    """Copies `name`, a path relative to `folder`, to the new file `to`.

    Raises OSError as `read_plain_file`; other names of the file matter only where it shall be `alone`.
    """
    with _opened(folder) as root, _plain(root, name, alone=alone) as handle:
        _copy(handle, to, os.fstat(handle).st_size)


def differences(
    folder: Path, recorded: Mapping[str, FileRecord], *, but: str, copy_to: Path | None = None
) -> list[str]:
    """How the files of `folder`, all `but` one, differ from what was `recorded` of them; empty for not at all.

    Each is copied to the folder `copy_to` while it is read. Raises OSError when the folder cannot be read, or the
    copies not written.
    """
    with _opened(folder) as root:
        present = {name for name in _names(root) if name != but}
        faults = [f"{name} is missing" for name in recorded if name not in present]
        faults += [f"{name} is not in the manifest" for name in sorted(present - recorded.keys())]
        for name, record in recorded.items():
            fault = _difference(root, name, record, copy_to / name if copy_to else None) if name in present else ""
            faults += [f"{name} {fault}"] if fault else []
    return faults


def _difference(root: int, name: str, record: FileRecord, copy: Path | None) -> str:
    try:
        with _plain(root, name) as handle:
            same = os.fstat(handle).st_size == record.size_bytes and _copy(handle, copy, record.size_bytes) == record
            return "" if same else "was changed"
    except _NotPlainError as error:
        return str(error)


class _NotPlainError(OSError):
    """A link, a file with several names, a pipe, a device, or a socket."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EINVAL, what)

    def __str__(self) -> str:
        return str(self.strerror)


def _copy(handle: int, to: Path | None, most_bytes: int) -> FileRecord:
    """What `handle` holds, written to the new file `to`; what grows beyond `most_bytes` meanwhile is not read on."""
    digest, size_bytes, out = hashlib.sha256(), 0, None
    if to is not None:
        to.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        out = to.open("xb")
    try:
        while size_bytes <= most_bytes and (chunk := os.read(handle, _CHUNK_BYTES)):
            digest.update(chunk)
            size_bytes += len(chunk)
            if out is not None:
                out.write(chunk)
    finally:
        if out is not None:
            out.close()
    return FileRecord(digest.hexdigest(), size_bytes)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    root = os.open(folder, _FOLDER)
    try:
        yield root
    finally:
        os.close(root)


@contextmanager
def _plain(root: int, name: str, *, alone: bool = True) -> Iterator[int]:
    """A descriptor of the plain file `name` beneath the folder `root`."""
    *folders, last = PurePosixPath(name).parts or ("",)
    opened = [os.dup(root)]
    try:
        for part in folders:
            opened.append(_open(part, _FOLDER | os.O_NOFOLLOW, opened[-1]))
        handle = _open(last, _FILE, opened[-1])
        opened.append(handle)
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise _NotPlainError("is no plain file")
        if alone and status.st_nlink != 1:
            raise _NotPlainError("has a second name (a hard link)")
        yield handle
    finally:
        for each in reversed(opened):
            os.close(each)


def _open(name: str, flags: int, folder: int) -> int:
    if name in ("", "/", ".."):
        raise _NotPlainError("lies outside its folder")
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise _NotPlainError("is a link" if error.errno == errno.ELOOP else "is reached through a link") from error
        if error.errno in (errno.ENXIO, errno.ENODEV):  # a socket, or a device that is not there
            raise _NotPlainError("is no plain file") from error
        raise


def _names(root: int, prefix: str = "") -> Iterator[str]:
    """Every entry beneath the folder `root` that is no folder, by its path relative to the first one."""
    with os.scandir(root) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                yield f"{prefix}{entry.name}"
                continue
            inner = os.open(entry.name, _FOLDER | os.O_NOFOLLOW, dir_fd=root)
            try:
                yield from _names(inner, f"{prefix}{entry.name}/")
            finally:
                os.close(inner)
