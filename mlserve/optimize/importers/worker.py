"""The importing process: one request from stdin, answers as lines of JSON, nothing else on stdout.

python -m mlserve.optimize.importers.worker < request    (started by mlserve.optimize.importing)
"""

import os
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from mlserve.errors import MlserveError
from mlserve.optimize.disk import naming_a_full_disk
from mlserve.optimize.importers.request import Answer, Fault, Imported, ImportRequest, Progress
from mlserve.optimize.importers.shapes import Unfit

__all__ = ["main"]

Send = Callable[[Answer], None]


def _run(request: ImportRequest, on_step: Callable[[str], None]) -> Imported:
    """Imports one model into `request.out`."""
    if request.kind == "huggingface":
        from mlserve.optimize.importers.huggingface import import_folder

        return import_folder(request, Path(request.out), on_step)
    return _import_torch(request, on_step)


def main() -> None:
    """Answers one request; a fault the user can mend is an answer too."""
    requests, send = _claim_stdin(), _claim_stdout()
    line = requests.readline()
    if not line:
        sys.exit("this is started by `mlserve optimize`; it reads its request from stdin")
    threading.Thread(target=_end_with_parent, args=[requests], name="parent watch", daemon=True).start()
    warnings.simplefilter("ignore")  # exporters warn of their own future, which the user cannot change
    try:
        request = msgspec.json.decode(line, type=ImportRequest)
        with naming_a_full_disk(Path(request.out)):
            imported = _run(request, lambda step: send(Progress(step)))
        send(imported)
    except Unfit as error:
        send(Fault("ModelFileError", f"the exported model does not run: {error}"))
    except MlserveError as error:
        send(Fault(type(error).__name__, str(error)))  # type: ignore[arg-type]  # Fault lists what importing raises


def _import_torch(request: ImportRequest, on_step: Callable[[str], None]) -> Imported:
    from mlserve.model.artifact import MODEL_FILE
    from mlserve.model.rows import read_rows
    from mlserve.optimize.importers.export import export
    from mlserve.optimize.importers.inputs import find_inputs
    from mlserve.optimize.importers.onnx_model import known_specs
    from mlserve.optimize.importers.original import load_original

    on_step("loading the model")
    original = load_original(request)
    on_step("finding its inputs")
    inputs = find_inputs(original, request)
    rows = read_rows(Path(request.data), inputs.specs) if request.data else None
    out = Path(request.out)
    exported = export(original, inputs, rows, out, on_step)
    assumed = inputs.assumed
    if original.widened_from:
        assumed = (f"its weights were {original.widened_from}; they were imported as float32", *assumed)
    if exported.inputs != inputs.specs:
        fixed = ", ".join(map(str, exported.inputs))
        assumed += (f"{fixed}: only so could it be exported; torch.export with dynamic_shapes opens the batch",)
    return Imported(
        inputs=known_specs(out / MODEL_FILE, exported.inputs),
        outputs=exported.outputs,
        assumed=assumed,
        notes=exported.notes,
    )


def _claim_stdin() -> BinaryIO:
    """Keeps stdin for the request: code that asks the user a question finds nobody there."""
    requests = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    nobody = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nobody, sys.stdin.fileno())
    os.close(nobody)
    return requests


def _claim_stdout() -> Send:
    """Keeps stdout for answers: whatever libraries print goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(answer: Answer) -> None:
        answers.write(msgspec.json.encode(answer) + b"\n")

    return send


def _end_with_parent(requests: BinaryIO) -> None:
    """The parent keeps its end open for as long as it lives."""
    requests.read()
    os._exit(1)


if __name__ == "__main__":
    main()
