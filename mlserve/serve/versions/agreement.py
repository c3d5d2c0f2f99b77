"""What the workers of one server tell each other, as small files in their common folder.

    control/asked.json            what clients asked for, by name, and the number of the last command
    control/worker-PID.json       what one worker has made of it
    control/ended.json            the last words of a worker that died

Every file is replaced by rename, so a reader needs no lock; who asks for something holds `control/lock` meanwhile.
"""

import fcntl
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from mlserve.serve.versions.policy import Choice, Words

__all__ = ["Agreement", "Applied", "Asked", "bury"]

_log = logging.getLogger("mlserve.serve")


class Asked(msgspec.Struct, frozen=True):
    """What is to be served, by name; the name `*` stands for every other name of the store.

    `command` is the number of the last command that changed it.
    """

    names: Mapping[str, Choice] = {}
    command: int = 0


class Applied(msgspec.Struct, frozen=True):
    """What one worker has made of the commands up to `command`.

    `loading` are names with a version still to be tried, `failures` say by name and version what did not load.
    """

    command: int = 0
    loading: frozenset[str] = frozenset()
    failures: Mapping[str, Mapping[str, str]] = {}
    words: Mapping[str, Words] = {}


class Agreement:
    """The files of one server, as one of its workers sees them. `initial` holds until a client asks for something."""

    def __init__(self, run_directory: Path, initial: Asked) -> None:
        self._initial, self._folder = initial, run_directory / "control"
        self._own = self._folder / f"worker-{os.getpid()}.json"
        self._told, self._silent = b"", False

    def asked(self) -> Asked:
        """What is to be served at this moment."""
        try:
            return msgspec.json.decode((self._folder / "asked.json").read_bytes(), type=Asked)
        except FileNotFoundError:
            return self._initial

    def ask(self, change: Callable[[Asked], Asked]) -> int:
        """Puts what `change` makes of it in the place of what was asked; the number of this command.

        Alone among all workers; `change` need not think of the number.
        """
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = self.asked()
            command = before.command + 1
            after = msgspec.structs.replace(change(msgspec.structs.replace(before, command=command)), command=command)
            _replace(self._folder / "asked.json", msgspec.json.encode(after))
            return command

    def tell(self, applied: Applied) -> None:
        """Lets the other workers know, if there is something new."""
        content = msgspec.json.encode(applied)
        if content != self._told:
            try:
                _replace(self._own, content)
            except OSError as error:  # a full disk: it is told as soon as it can be
                if not self._silent:
                    _log.warning("what this worker serves cannot be told to the others: %s", error.strerror)
                self._silent = True
                return
            self._told, self._silent = content, False

    def applied(self) -> dict[int, Applied]:
        """What every living worker told last, by its process's number."""
        found = {}
        for path in self._folder.glob("worker-*.json"):
            pid = int(path.stem.removeprefix("worker-"))
            with suppress(FileNotFoundError):
                if _lives(pid):
                    found[pid] = msgspec.json.decode(path.read_bytes(), type=Applied)
        return found

    def words(self) -> list[Mapping[str, Words]]:
        """What the words of every name mean to the workers, and meant to the one that died last."""
        told = [each.words for each in self.applied().values()]
        with suppress(FileNotFoundError):
            told.append(msgspec.json.decode((self._folder / "ended.json").read_bytes(), type=Applied).words)
        return told


def bury(run_directory: Path, pid: int) -> None:
    """Nobody waits any more for what the worker `pid`, which died, has to tell."""
    with suppress(FileNotFoundError):
        (run_directory / "control" / f"worker-{pid}.json").replace(run_directory / "control" / "ended.json")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.rename(path)
