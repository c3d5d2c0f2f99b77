"""The folder that the processes of one server share: theirs while one of them lives, then the next server removes it.

mlserve-run-XXXXXXXX/lock       locked by the supervisor and, as they inherit it, by its workers
mlserve-run-XXXXXXXX/metrics    what they count
mlserve-run-XXXXXXXX/control    what they agree on
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from mlserve.locked_folder import locked_folder

__all__ = ["CommonFolder", "open_common_folder"]

_PREFIX = "mlserve-run-"


class CommonFolder(NamedTuple):
    """Where it lies, and the descriptor of its lock, for the workers to inherit."""

    path: Path
    lock: int

    @property
    def metrics(self) -> Path:
        """For what the workers count."""
        return self.path / "metrics"


@contextmanager
def open_common_folder() -> Iterator[CommonFolder]:
    """A new folder, for this user alone, removed at the end; and with it those that killed servers left behind."""
    with locked_folder(_PREFIX) as locked:
        folder = CommonFolder(*locked)
        for part in (folder.metrics, folder.path / "control"):
            part.mkdir(mode=0o700)
        yield folder
