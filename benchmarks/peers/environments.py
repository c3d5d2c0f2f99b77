"""The virtual environments of the peers, one each, below `benchmarks/.work/peers/`.

An environment is ready when its marker names the requirements it was made from; one that was left unfinished, by Ctrl-C
or by a network that went away, is taken up where it was left.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import msgspec
from closed_loop import err, fail

__all__ = ["Environment", "prepare"]

HERE = Path(__file__).parent
WORK = HERE.parent / ".work" / "peers"
_LIST = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"


class Environment(msgspec.Struct, frozen=True):
    """A peer's own Python, and every package that is really installed in it."""

    name: str
    python: Path
    packages: dict[str, str]


def prepare(name: str) -> Environment:
    """The environment of `requirements/NAME.txt`, made now if it is not there. Ends the program when that fails."""
    requirements = HERE / "requirements" / f"{name}.txt"
    wanted = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    folder = WORK / name
    python, marker = folder / "venv" / "bin" / "python", folder / "installed"
    if not marker.is_file() or marker.read_text() != wanted:
        marker.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        err.print(f"installing {name} (once) into {folder}", highlight=False)
        if not _works(python):
            _run(name, [sys.executable, "-m", "venv", "--clear", str(folder / "venv")])
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run(name, [*pip, "--requirement", str(requirements)])
        marker.write_text(wanted)
    listed = subprocess.run([python, "-c", _LIST], capture_output=True, text=True, check=True)
    return Environment(name, python, json.loads(listed.stdout))


def _works(python: Path) -> bool:
    if not python.is_file():
        return False
    return not subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode


def _run(name: str, command: list[str]) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        errors = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")] or ended.stderr.splitlines()
        reason = "; ".join(errors[-2:]) or f"status {ended.returncode}"
        fail(
            f"{name} cannot be installed: {reason}\n"
            "pip needs PyPI or a mirror of it (PIP_INDEX_URL); what is there already is used again. "
            f"Run this again, or leave it out: --without {name}"
        )
