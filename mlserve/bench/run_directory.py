"""Where a run goes: a fresh directory, refused before any load is made where it cannot be one."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from mlserve.errors import UsageError
from mlserve.runs.load import Flat, Plan
from mlserve.runs.run import RUN_FILE, ServedModel

__all__ = ["default_directory", "default_label", "run_directory"]


@contextmanager
def run_directory(path: Path) -> Iterator[Path]:
    """`path`, made if need be with the folders above it; what was made and stayed empty is removed with the block.

    Raises UsageError when it cannot be written, or holds a run already, whole or interrupted.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
        taken = any(path.glob("samples.*")) or (path / RUN_FILE).exists()
    except OSError as error:
        raise UsageError(f"--out {path} cannot be written: {error.strerror}; choose another folder") from error
    if taken:
        raise UsageError(f"--out {path} holds a run already; choose another folder, or remove that one")
    try:
        yield path
    finally:
        with suppress(OSError):  # it is not empty, as it should be
            for folder in made:
                folder.rmdir()


def default_label(model: ServedModel, plan: Plan) -> str:
    """`minilm-int8-rest-200rps`, `minilm-int8-grpc-closed-16users`, `minilm-v2-rest-200rps-ramp`: what, and how."""
    which = model.variant or (f"v{model.version}" if model.version else "")
    load = f"closed-{plan.users}users" if plan.closed else f"{plan.rate_per_s:g}rps"
    shape = "" if isinstance(plan.shape, Flat) else str(plan.shape.__struct_config__.tag)
    return "-".join(part for part in (model.name, which, plan.protocol, load, shape, plan.scenario) if part)


def default_directory(model: ServedModel, plan: Plan, now: datetime) -> Path:
    """`runs/minilm-int8-rest-200rps-20260731T120000`."""
    label = default_label(model, plan)
    safe = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in label)
    return Path("runs") / f"{safe}-{now:%Y%m%dT%H%M%S}"
