"""One digest for a whole model, whatever files it is kept in."""

import hashlib
from collections.abc import Mapping

from mlserve.model.artifact import MODEL_FILE, FileRecord, is_model_file

__all__ = ["files_sha256", "model_sha256"]


def model_sha256(files: Mapping[str, FileRecord]) -> str:
    """Of the graph and its weights, by their records in a manifest; "" where there is none.

    That of model.onnx where the model is that file alone, as runs always had it; else as `files_sha256` has it.
    """
    model = {name: record.sha256 for name, record in files.items() if is_model_file(name)}
    return model[MODEL_FILE] if list(model) == [MODEL_FILE] else _of_lines(model)


def files_sha256(files: Mapping[str, str]) -> str:
    """Of files by their names and digests: that of a single one is its own, "" is that of none."""
    return next(iter(files.values())) if len(files) == 1 else _of_lines(files)


def _of_lines(files: Mapping[str, str]) -> str:
    """The SHA-256 of lines as `sha256sum` prints them, in the order of the names."""
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest() if files else ""
