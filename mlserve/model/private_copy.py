"""A private copy of a model, for as long as it is being loaded.

**Law:** the bytes that were checked are the bytes that are loaded. Whoever may write where a model lies could exchange
it between the check and the load, so both happen on a copy, in a folder that no other user can enter.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlserve.errors import MlserveError, ModelFileError, StoreError
from mlserve.model.artifact import MANIFEST, MODEL_FILE, Artifact, read_manifest
from mlserve.model.onnx_file import OnnxFile, inspect_onnx
from mlserve.model.plain_files import copy_plain_file, differences, read_plain_file

__all__ = ["private_onnx", "private_version", "remove_copies"]

_PREFIX = "mlserve-loading-"
_MOST_MANIFEST_BYTES = 64 << 20


@contextmanager
def private_version(directory: Path, within: str = "") -> Iterator[Artifact]:
    """The version in `directory`, copied and checked: its files are those of its manifest.

    The copy lies in the folder `within` ("" for that of temporary files) and is gone at the end; what an engine has
    mapped of it stays. Raises StoreError for files that are not those of the manifest. Errors of ours that the body
    raises name the original.
    """
    with _folder(within) as folder, _naming({folder: directory}):
        try:
            (folder / MANIFEST).write_bytes(read_plain_file(directory, MANIFEST, _MOST_MANIFEST_BYTES))
            artifact = Artifact(folder, read_manifest(folder))
            faults = differences(directory, artifact.manifest.files, but=MANIFEST, copy_to=folder)
        except OSError as error:
            raise StoreError(
                f"{directory} cannot be read, or not be copied to {folder.parent}: {error.strerror}; the version is "
                "incomplete, or TMPDIR shall name a folder with room for it"
            ) from error
        if faults:
            raise StoreError(
                f"{artifact.ref} does not match its manifest: {'; '.join(faults)}; restore it or optimize the model "
                "again"
            )
        yield artifact


@contextmanager
def private_onnx(path: Path, within: str = "") -> Iterator[tuple[Path, OnnxFile]]:
    """A copy of the bare ONNX file at `path`, with the files that it keeps weights in, and what it says of itself.

    As `private_version`; raises ModelFileError for what cannot be read or must not be loaded.
    """
    with _folder(within) as folder:
        # A name of ours: onnxruntime reads formats of its own where a name ends in .ort.
        copy = folder / MODEL_FILE
        with _naming({copy: path, path.parent / MODEL_FILE: path, folder: path.parent}):
            try:
                # The file itself may be a link, or one of several names: whoever gave it meant what it leads to.
                resolved = path.resolve(strict=True)
                copy_plain_file(resolved.parent, resolved.name, copy, alone=False)
                file = inspect_onnx(copy, beside=path.parent)
                for name in file.external_files:
                    copy_plain_file(path.parent, name, folder / name)
            except OSError as error:
                raise ModelFileError(
                    f"{path} cannot be read, or not be copied to {folder.parent}: {error.strerror}"
                ) from error
            yield copy, inspect_onnx(copy) if file.external_files else file


def remove_copies(process_id: int, within: Path) -> None:
    """Removes from the folder `within` the copies of a process that was ended before it could.

    Raises OSError where there is no file to be had.
    """
    for folder in within.glob(f"{_PREFIX}{process_id}-*"):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _folder(within: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-", dir=within or None) as folder:
        yield Path(folder)


@contextmanager
def _naming(originals: dict[Path, Path]) -> Iterator[None]:
    """Errors of ours name each original where they would name its copy."""
    try:
        yield
    except MlserveError as error:
        text = str(error)
        for copy, original in originals.items():
            text = text.replace(str(copy), str(original))
        if text == str(error):
            raise
        raise type(error)(text) from error
