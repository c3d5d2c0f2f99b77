"""Where a run goes: a fresh directory, refused before any load is made where it cannot be one."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path

from mlserve.errors import UsageError
from mlserve.runs.load import Flat, Plan
from mlserve.runs.run import RUN_FILE, ServedModel

__all__ = ["default_directory", "default_label", "own_directory", "run_directory"]


@contextmanager
def own_directory(path: Path) -> Iterator[Path]:
    """`path`, made if need be with the folders above it, and nobody else's for as long as the block lasts; what was
    made and stayed empty is removed with it.

    Raises UsageError when it cannot be written, or another process has it.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    held = -1
    try:
        path.mkdir(parents=True, exist_ok=True)
        held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with tempfile.TemporaryFile(dir=path):
            pass
    except BlockingIOError as error:
        os.close(held)
        raise UsageError(f"--out {path} is being written by another mlserve; choose another folder") from error
    except OSError as error:
        if held >= 0:
            os.close(held)
        raise UsageError(f"--out {path} cannot be written: {error.strerror}; choose another folder") from error
    try:
        yield path
    finally:
        with suppress(OSError):  # it is not empty, as it should be
            for folder in made:
                folder.rmdir()
        os.close(held)


@contextmanager
def run_directory(path: Path) -> Iterator[Path]:
    """`own_directory`, for one run.

    Raises UsageError also when it holds a run already, whole or interrupted.
    """
    with own_directory(path):
        if any(path.glob("samples.*")) or (path / RUN_FILE).exists():
            raise UsageError(f"--out {path} holds a run already; choose another folder, or remove that one")
        yield path


def default_label(model: ServedModel, plan: Plan) -> str:
    """`minilm-int8-rest-200rps`, `minilm-int8-grpc-closed-16users`, `minilm-v2-rest-200rps-ramp`: what, and how."""
    which = model.variant or (f"v{model.version}" if model.version else "")
    load = f"closed-{plan.users}users" if plan.closed else f"{plan.rate_per_s:g}rps"
    shape = "" if isinstance(plan.shape, Flat) else str(plan.shape.__struct_config__.tag)
    return "-".join(part for part in (model.name, which, plan.protocol, load, shape, plan.scenario) if part)


def default_directory(model: ServedModel, plan: Plan, now: datetime) -> Path:
    """`runs/minilm-int8-rest-200rps-20260731T120000`; with `-2` and so on where there is such a folder already."""
    label = default_label(model, plan)
    safe = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in label)
    first = Path("runs") / f"{safe}-{now:%Y%m%dT%H%M%S}"
    others = (first.with_name(f"{first.name}-{number}") for number in count(2))
    return first if not first.exists() else next(path for path in others if not path.exists())
