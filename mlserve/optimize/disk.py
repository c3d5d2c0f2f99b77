"""A full disk, told apart from everything else that goes wrong while a model is written."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlserve.errors import StoreError

__all__ = ["naming_a_full_disk", "no_space_left"]


def no_space_left(error: BaseException | None) -> bool:
    """Whether a full disk is what `error` comes from; libraries wrap it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def naming_a_full_disk(folder: Path) -> Iterator[None]:
    """Turns what a full disk makes of writing into `folder` into a StoreError."""
    try:
        yield
    except Exception as error:
        if no_space_left(error) and not isinstance(error, StoreError):
            raise StoreError(
                f"no space is left on the disk of {folder}; free some, or choose another with --store"
            ) from error
        raise
