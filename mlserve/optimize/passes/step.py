"""What every pass has in common: it turns one artifact into another and writes down that it did."""

import contextlib
import io
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from mlserve.model.artifact import MANIFEST, Artifact, Step, is_model_file
from mlserve.model.rows import Rows

__all__ = ["ALONE", "Resources", "Transform", "copy_companions", "copy_model", "quiet", "stepped"]


class Resources(msgspec.Struct, frozen=True):
    """What a pass may use beside the artifact.

    `rows` are the user's rows set aside for calibration; those that accuracy is measured on are never among them.
    """

    rows: Rows | None = None
    threads: int = 1
    seed: int = 0
    on_step: Callable[[str], None] = lambda _: None


ALONE = Resources()


class Transform(Protocol):
    """A pass.

    **Law:** `out` is an empty folder and becomes a whole artifact; the source is untouched; inputs and outputs keep
    their names, types and shapes; the lineage grows by one step. Raises Refused for a model it cannot be done to.
    """

    def __call__(self, source: Artifact, out: Path, resources: Resources = ALONE) -> Artifact: ...


def copy_companions(source: Artifact, out: Path) -> None:
    """Everything but the model itself: tokenizer, configuration."""
    for path in source.directory.rglob("*"):
        if path.is_file() and not is_model_file(path.name) and path.name != MANIFEST:
            target = out / path.relative_to(source.directory)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def copy_model(source: Artifact, out: Path) -> None:
    """The model itself as it is, with the weights that lie beside it."""
    for path in source.directory.iterdir():
        if is_model_file(path.name):
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
