"""A full disk is told from other faults, however a library wraps it. /dev/full is always full."""

from pathlib import Path

import pytest

from mlserve.errors import StoreError
from mlserve.optimize.disk import naming_a_full_disk


def write(path: Path) -> None:
    try:
        path.write_bytes(b"weights")
    except OSError as error:
        raise RuntimeError("serialization failed") from error


def test_a_full_disk_is_named():
    with pytest.raises(StoreError, match="no space is left on the disk of store"), naming_a_full_disk(Path("store")):
        write(Path("/dev/full"))


def test_another_fault_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="serialization failed"), naming_a_full_disk(Path("store")):
        write(tmp_path / "no folder" / "file")
