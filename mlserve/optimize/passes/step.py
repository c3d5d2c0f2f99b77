"""What every pass has in common: it turns one artifact into another and writes down that it did."""

import contextlib
import io
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from mlserve.model.artifact import MANIFEST, MODEL_FILE, Artifact, Step

__all__ = ["Transform", "copy_companions", "copy_model", "quiet", "stepped"]


class Transform(Protocol):
    """A pass.

    **Law:** `out` is an empty folder and becomes a whole artifact; the source is untouched; inputs and outputs keep
    their names, types and shapes; the lineage grows by one step.
    """

    def __call__(self, source: Artifact, out: Path) -> Artifact: ...


def copy_companions(source: Artifact, out: Path) -> None:
    """Everything but the model itself: tokenizer, configuration."""
    for path in source.directory.rglob("*"):
        if path.is_file() and not path.name.startswith(MODEL_FILE) and path.name != MANIFEST:
            target = out / path.relative_to(source.directory)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def copy_model(source: Artifact, out: Path) -> None:
    """The model itself as it is, with the weights that lie beside it."""
    for path in source.directory.glob(f"{MODEL_FILE}*"):
        shutil.copyfile(path, out / path.name)


def stepped(source: Artifact, out: Path, transform: msgspec.Struct, notes: tuple[str, ...]) -> Artifact:
    """The artifact in `out`, its lineage that of `source` and this step."""
    parameters: dict[str, Any] = msgspec.to_builtins(transform)
    step = Step(str(parameters.pop("pass")), parameters, notes)
    return Artifact(out, msgspec.structs.replace(source.manifest, lineage=(*source.manifest.lineage, step)))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps off the terminal what onnxruntime's tools print and log; stdout is for our own result."""
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
