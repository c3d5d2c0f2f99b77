"""One digest for a whole model, whatever files it is kept in."""

import hashlib
from collections.abc import Mapping

from mlserve.model.artifact import MODEL_FILE, FileRecord, is_model_file

__all__ = ["model_sha256"]


def model_sha256(files: Mapping[str, FileRecord]) -> str:
    """Of the graph and its weights, by their records in a manifest; "" where there is none.

    That of model.onnx where the model is that file alone, as runs always had it; else the SHA-256 of lines as
    `sha256sum` prints them, in the order of the names.
    """
    model = {name: record.sha256 for name, record in files.items() if is_model_file(name)}
    if list(model) == [MODEL_FILE]:
        return model[MODEL_FILE]
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(model.items()))
    return hashlib.sha256(lines.encode()).hexdigest() if model else ""
