"""The folder of one worker's Unix sockets, named so that the supervisor finds it when the worker was killed."""

import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["make_sockets_folder", "remove_sockets_folders"]

# The path of a Unix socket has at most 107 characters; with a process's number and the socket's name so many are left.
_LONGEST_FOLDER = 82
_ELSEWHERE = Path("/tmp")  # noqa: S108  # a folder of our own is made in it


def make_sockets_folder(run_directory: str) -> str:
    """A new folder that only this user may enter, in `run_directory`.

    Elsewhere, if there is none or its path is too long for a socket.
    """
    parent, prefix = _place(run_directory, os.getpid())
    return tempfile.mkdtemp(prefix=prefix, dir=parent)


def remove_sockets_folders(run_directory: str, process_id: int) -> None:
    """Removes what a worker that has ended, of the server with `run_directory`, left behind.

    Raises OSError where there is no file to be had.
    """
    parent, prefix = _place(run_directory, process_id)
    for folder in parent.glob(f"{prefix}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _place(run_directory: str, process_id: int) -> tuple[Path, str]:
    """Where the folder is made, and how its name begins: among those of others with the server's name."""
    if 0 < len(run_directory) < _LONGEST_FOLDER:
        return Path(run_directory), f"grpc-{process_id}-"
    return _ELSEWHERE, f"grpc-{Path(run_directory).name}-{process_id}-"
