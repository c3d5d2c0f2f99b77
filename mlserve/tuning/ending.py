"""Whether the search or the sweep that fills a folder has come to its end, by what the folder says."""

from pathlib import Path

import msgspec

from mlserve.errors import UsageError
from mlserve.report.choice import TUNE_FILE
from mlserve.tuning.campaign import is_finished
from mlserve.tuning.grid import Sweep, cells_of, turns_of
from mlserve.tuning.sweep import FAILURE_FILE, SWEEP_FILE

__all__ = ["has_ended"]


class _Judged(msgspec.Struct):
    """Of `tune.json`: only a search that has ended, or was told to end, leaves a verdict there."""

    verdict: msgspec.Raw = msgspec.Raw(b"null")


def has_ended(folder: Path) -> bool:
    """Whether `folder` is that of a search or a sweep to which no run will be added. False for a folder of runs that
    nothing but their maker holds together, for one that is still being filled, and for files that cannot be read.
    """
    try:
        if (folder / TUNE_FILE).is_file():
            judged = msgspec.json.decode((folder / TUNE_FILE).read_bytes(), type=_Judged)
            return bytes(judged.verdict) != b"null"
        if (folder / SWEEP_FILE).is_file():
            return _is_swept(msgspec.json.decode((folder / SWEEP_FILE).read_bytes(), type=Sweep), folder)
    except (OSError, msgspec.DecodeError, UsageError):
        return False
    return False


def _is_swept(sweep: Sweep, folder: Path) -> bool:
    """Whether each cell has all its runs, or a failure, after which the sweep leaves it out."""
    failed, unfinished = set(), set()
    for turn in turns_of(sweep, cells_of(sweep)):
        if (folder / turn.folder / FAILURE_FILE).is_file():
            failed.add(turn.cell.label)
        elif not is_finished(folder / turn.folder):
            unfinished.add(turn.cell.label)
    return unfinished <= failed
