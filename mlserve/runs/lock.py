"""What a run was made of beyond its plan: with the plan, enough to send the same requests at the same instants."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import msgspec

from mlserve.model.artifact import sha256_of

__all__ = ["Lock", "LockedFile", "Role", "digest_of", "locked_file"]

Role = Literal["model", "data", "expected", "inputs", "trace", "locustfile"]
"""What a file was to a run. `inputs` is the ONNX file that told what a server takes."""


class LockedFile(msgspec.Struct, frozen=True):
    """A file that a run read, its path as it was said, and its digest (see `digest_of`). A file of a version in the
    store has the path that it has in there.
    """

    role: Role
    path: str
    sha256: str


class Lock(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was made of.

    `where` is what was loaded: `name@version`, a file, or a URL; `name` is what tables call it. `store` is where names
    are looked up. `model`, `inputs`, `template`, `answer` and `metrics` are what was said of a running server;
    `headers` are the names of those that went with every request, whose values are kept nowhere.

    `lengths` (as its tagged struct) and `image_sizes` (height, width) are those of made-up rows; `timed` says which
    requests asked where their time went.

    `schedule_sha256` is that of the int64 nanoseconds at which requests were due, up to the longest that the run could
    have taken; `requests_sha256` that of the requests' bodies in the order they are sent. Both are "" where nobody
    knows them before: in a closed loop, and with a locustfile.
    """

    where: str
    name: str
    store: str = ""
    model: str = ""
    inputs: str = ""
    template: str = ""
    answer: str = ""
    metrics: str = ""
    headers: tuple[str, ...] = ()
    lengths: dict[str, Any] | None = None
    image_sizes: tuple[tuple[int, int], ...] = ()
    timed: Literal["none", "sampled", "all"] = "sampled"
    files: tuple[LockedFile, ...] = ()
    schedule_sha256: str = ""
    requests_sha256: str = ""

    def file(self, role: Role) -> LockedFile | None:
        """The one file of that role; None without one."""
        return next((file for file in self.files if file.role == role), None)


def locked_file(role: Role, path: Path) -> LockedFile:
    """The file, or the folder, at `path` as it is now."""
    return LockedFile(role, str(path), digest_of(path))


def digest_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal; of a folder that of all its files' names and digests, sorted."""
    if not path.is_dir():
        return sha256_of(path)
    lines = [
        f"{sha256_of(file)}  {file.relative_to(path).as_posix()}\n"
        for file in sorted(path.rglob("*"))
        if file.is_file()
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
