"""A folder for what processes hand each other and nobody keeps."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlserve.locked_folder import locked_folder

__all__ = ["scratch_folder"]

# Older versions locked none of theirs, and called them otherwise: those are left alone.
_PREFIX = "mlserve-scratch-"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder, for this user alone, while the block lasts; no child inherits its lock, so that it ends with this
    process.
    """
    with locked_folder(_PREFIX) as folder:
        yield folder.path
