"""The recording that goes on, if any, as small files in the folder that all workers share.

    recording/now.json                 what is recorded, since when; there while it goes on
    recording/NUMBER/started_at        when it began, ISO 8601
    recording/NUMBER/PID.arrow         what one worker has recorded, an Arrow stream
    recording/NUMBER/PID.json          how much that is, and whether it has ended

Every file but the streams is replaced by rename, so a reader needs no lock.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from mlserve.errors import InvalidRequest, NoSpace

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Bodies", "Part", "Recording", "RecordingFolder", "Wish"]

Bodies = Literal["none", "hash", "keep"]

_LONGEST_S = 86_400.0
_MOST_ROWS, _MOST_BYTES = 20_000_000, 4 << 30


class Wish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What shall be recorded. `model` "" is every model; `bodies` are not looked at, told apart by their SHA-256
    (`hash`), or kept of the share `keep_share` of the requests (`keep`).

    It ends by itself after `for_s`; a worker takes no more when it has `most_requests`, or `most_bytes` of bodies.
    """

    for_s: float = 60.0
    model: str = ""
    bodies: Bodies = "none"
    keep_share: float = 1.0
    most_requests: int = 1_000_000
    most_bytes: int = 256 << 20

    def check(self) -> None:
        """Raises InvalidRequest, naming the field, for what cannot be granted."""
        limits = {
            "for_s": (self.for_s, 1e-3, _LONGEST_S),
            "keep_share": (self.keep_share, 1e-6, 1.0),
            "most_requests": (self.most_requests, 1, _MOST_ROWS),
            "most_bytes": (self.most_bytes, 0, _MOST_BYTES),
        }
        for name, (value, least, most) in limits.items():
            if not least <= value <= most:
                raise InvalidRequest(f"'{name}' {value:g} is out of range; give {least:g} to {most:g}")


class Recording(msgspec.Struct, frozen=True):
    """One recording. `began_s` is of `time.perf_counter`, which all processes of a machine share."""

    number: int
    started_at: str
    began_s: float
    wish: Wish

    @property
    def over(self) -> bool:
        """Whether its time is up."""
        return time.perf_counter() > self.began_s + self.wish.for_s


class Part(msgspec.Struct, frozen=True):
    """What one worker has of a recording: requests; whether it takes no more, and whether all it took is written."""

    requests: int
    full: bool = False
    ended: bool = False


class RecordingFolder:
    """The files of one server's recordings; there is at most one that goes on."""

    def __init__(self, run_directory: Path) -> None:
        self._path = run_directory / "recording"

    def now(self) -> Recording | None:
        """The recording that goes on."""
        try:
            found = msgspec.json.decode((self._path / "now.json").read_bytes(), type=Recording)
        except FileNotFoundError:
            return None
        return None if found.over else found

    def begin(self, wish: Wish) -> Recording:
        """Starts a recording, and removes those before the last: whoever recorded that one may still fetch it.

        Raises InvalidRequest while another goes on, and for a wish that cannot be granted.
        """
        wish.check()
        self._path.mkdir(mode=0o700, exist_ok=True)
        with self._locked():
            if (now := self.now()) is not None:
                raise InvalidRequest(
                    f"recording {now.number} goes on already; end it first (DELETE /recording/{now.number}), or wait "
                    "until it ends"
                )
            before = sorted(int(path.name) for path in self._path.iterdir() if path.name.isdecimal())
            number = 1 + (before[-1] if before else 0)
            self._remove(before[:-1])
            started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
            recording = Recording(number, started_at, time.perf_counter(), wish)
            try:
                self._announce(recording)
            except OSError:  # the last one may be what fills the disk
                self._remove(before)
                try:
                    self._announce(recording)
                except OSError as error:
                    self._remove([number])
                    raise NoSpace(f"the server cannot write a recording: {error.strerror}; make room for it") from error
        return recording

    def end(self, number: int) -> None:
        """Ends a recording if it is the one that goes on; workers notice within a moment."""
        with self._locked():
            now = self.now()
            if now is not None and now.number == number:
                (self._path / "now.json").unlink()

    def started_at(self, number: int) -> str:
        """When a recording began. Raises InvalidRequest when there is no such one."""
        return (self._folder(number) / "started_at").read_text()

    def stream_of(self, number: int) -> Path:
        """Where this worker writes what it records."""
        return self._path / str(number) / f"{os.getpid()}.arrow"

    def tell(self, number: int, part: Part) -> None:
        """Says how far this worker is. One that was too slow for a new recording tells nobody."""
        with suppress(FileNotFoundError):
            _replace(self._path / str(number) / f"{os.getpid()}.json", msgspec.json.encode(part))

    def parts(self, number: int) -> dict[int, Part]:
        """What every worker told, by process id. Raises InvalidRequest when there is no such recording."""
        found: dict[int, Part] = {}
        for path in self._folder(number).glob("*.json"):
            with suppress(FileNotFoundError):
                found[int(path.stem)] = msgspec.json.decode(path.read_bytes(), type=Part)
        return found

    def collect(self, number: int) -> "pa.Table":
        """Everything that was recorded, in the order of arrival. Raises InvalidRequest when there is no such one."""
        import pyarrow as pa

        from mlserve.runs.streams import read_stream
        from mlserve.runs.trace import SCHEMA

        streams = [path for path in sorted(self._folder(number).glob("*.arrow")) if path.stat().st_size]
        tables = [read_stream(path, SCHEMA) for path in streams]
        return pa.concat_tables([SCHEMA.empty_table(), *tables]).sort_by("at_ns")

    def _announce(self, recording: Recording) -> None:
        folder = self._path / str(recording.number)
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "started_at").write_text(recording.started_at)
        _replace(self._path / "now.json", msgspec.json.encode(recording))

    def _remove(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            shutil.rmtree(self._path / str(number), ignore_errors=True)

    def _folder(self, number: int) -> Path:
        folder = self._path / str(number)
        if not folder.is_dir():
            raise InvalidRequest(f"there is no recording {number}; only the last two are kept")
        return folder

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.rename(path)
