"""Another revision of our own code, to be run beside the working tree's."""

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["ROOT", "interpreter", "take_out"]

ROOT = Path(__file__).resolve().parents[1]


def take_out(revision: str, folder: Path) -> Path:
    """The code of `revision`, below `folder`, by a name that no other has. Ends the program where there is none."""
    commit = _git("rev-parse", "--verify", "--short=12", f"{revision}^{{commit}}").decode().strip()
    place = folder / f"base-{commit}"
    if not place.is_dir():
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            with tarfile.open(fileobj=io.BytesIO(_git("archive", revision, "mlserve"))) as archive:
                archive.extractall(partial, filter="data")
            shutil.copytree(partial, place)
    return place


def interpreter(path: Path, code: Path) -> Path:
    """An interpreter at `path` that is ours, with the mlserve of `code`: PYTHONPATH comes before what is installed, and
    the safe path keeps out the folder that it is started in.
    """
    words: Sequence[str] = (
        "#!/bin/sh",
        f'PYTHONSAFEPATH=1 PYTHONPATH="{code}" exec "{sys.executable}" "$@"',
        "",
    )
    path.write_text("\n".join(words))
    path.chmod(0o755)
    return path


def _git(*words: str) -> bytes:
    done = subprocess.run(["git", "-C", str(ROOT), *words], check=False, capture_output=True)
    if done.returncode:
        sys.exit(f"git {' '.join(words)} failed: {done.stderr.decode().strip()}")
    return done.stdout
