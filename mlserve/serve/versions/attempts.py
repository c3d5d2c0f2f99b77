"""Which version is tried next, and when one that did not load is tried again. Pure: the caller brings the time."""

from collections.abc import Hashable, Iterable

import msgspec

__all__ = ["Attempts", "Failure", "Key"]

Key = tuple[str, str]
"""A name and a version."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0


class Failure(msgspec.Struct, frozen=True):
    """A version that did not load: why, in which state its files were, and after which command it was tried.

    `error` is for the one who runs the server, `reason`, without its folders, for clients. After `times` failures it
    is due again at `retry_at_s`.
    """

    error: str
    reason: str
    files: Hashable
    command: int
    times: int = 1
    retry_at_s: float = 0.0


class Attempts:
    """What failed.

    A version is due again after a pause that doubles, and at once when its files changed or a client asks for it.
    """

    def __init__(self) -> None:
        self.failures: dict[Key, Failure] = {}

    def failed(self, key: Key, failure: Failure, now_s: float) -> bool:
        """Remembers it; whether this is news."""
        before = self.failures.get(key)
        times = before.times + 1 if before is not None and before.files == failure.files else 1
        pause_s = min(_FIRST_PAUSE_S * 2 ** (times - 1), _LONGEST_PAUSE_S)
        self.failures[key] = msgspec.structs.replace(failure, times=times, retry_at_s=now_s + pause_s)
        return before is None or before.error != failure.error

    def forget(self, keys: Iterable[Key]) -> None:
        """They loaded, or are wanted no more."""
        for key in keys:
            self.failures.pop(key, None)

    def untried(self, key: Key, command: int) -> bool:
        """Whether it has not failed since `command` asked for it."""
        failure = self.failures.get(key)
        return failure is None or failure.command < command

    def due(self, key: Key, files: Hashable, command: int, now_s: float) -> bool:
        """Whether it is to be tried now; `files` is the state its files are in, None where nobody has looked since."""
        failure = self.failures.get(key)
        return (
            failure is None
            or failure.command < command
            or now_s >= failure.retry_at_s
            or files not in (None, failure.files)
        )
