"""What a side of a gate is made of: so that a gate goes on only with runs of the same model, rows and code."""

import hashlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import msgspec

from mlserve.model.artifact import sha256_of
from mlserve.model.digest import files_sha256
from mlserve.tuning.gating.side import Side
from mlserve.tuning.locking import lock_of
from mlserve.tuning.opening import Source

__all__ = ["with_content"]

_PACKAGE = "mlserve"
_FINDS = f"import importlib.util as u; print(u.find_spec({_PACKAGE!r}).origin)"
_FINDS_S = 60.0


def with_content(side: Side, source: Source) -> Side:
    """`side`, with the digests of what its runs read and of the code that serves it."""
    asked = hashlib.sha256(msgspec.json.encode(lock_of(side.contender, source))).hexdigest()
    code = _code_of(side.options.python) if side.options is not None else ""
    return msgspec.structs.replace(side, content=asked, code=code)


def _code_of(python: str) -> str:
    """The digest of the mlserve that `python` serves with, "" for ours; "" where it has none, which its start tells."""
    origin = _origin(python)
    if origin is None:
        return ""
    package = origin.parent
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return files_sha256({path.relative_to(package).as_posix(): sha256_of(path) for path in files})


def _origin(python: str) -> Path | None:
    if not python or python == sys.executable:
        spec = find_spec(_PACKAGE)
        return Path(spec.origin) if spec is not None and spec.origin else None
    try:
        said = subprocess.run([python, "-c", _FINDS], capture_output=True, text=True, timeout=_FINDS_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    path = Path(said.stdout.strip())
    return path if said.returncode == 0 and path.is_file() else None
