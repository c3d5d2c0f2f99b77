"""The importing process: one request from stdin, answers as lines of JSON, nothing else on stdout.

python -m mlserve.optimize.importers.worker < request    (started by mlserve.optimize.importing)
"""

import os
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import msgspec

from mlserve.errors import MlserveError
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
    send = _claim_stdout()
    line = sys.stdin.buffer.readline()
    if not line:
        sys.exit("this is started by `mlserve optimize`; it reads its request from stdin")
    threading.Thread(target=_end_with_parent, name="parent watch", daemon=True).start()
    warnings.simplefilter("ignore")  # exporters warn of their own future, which the user cannot change
    try:
        request = msgspec.json.decode(line, type=ImportRequest)
        send(_run(request, lambda step: send(Progress(step))))
    except Unfit as error:
        send(Fault("ModelFileError", f"the exported model does not run: {error}"))
    except MlserveError as error:
        send(Fault(type(error).__name__, str(error)))  # type: ignore[arg-type]  # Fault lists what importing raises


def _import_torch(request: ImportRequest, on_step: Callable[[str], None]) -> Imported:
    from mlserve.model.artifact import MODEL_FILE
    from mlserve.model.rows import read_rows
    from mlserve.optimize.importers.export import export
    from mlserve.optimize.importers.inputs import find_inputs
    from mlserve.optimize.importers.onnx_model import known_bounds
    from mlserve.optimize.importers.original import load_original

    on_step("loading the model")
    original = load_original(request)
    on_step("finding its inputs")
    inputs = find_inputs(original, request)
    rows = read_rows(Path(request.data), inputs.specs) if request.data else None
    out = Path(request.out)
    exported = export(original, inputs, rows, out, on_step)
    assumed = inputs.assumed
    if exported.inputs != inputs.specs:
        fixed = ", ".join(map(str, exported.inputs))
        assumed += (f"{fixed}: only so could it be exported; torch.export with dynamic_shapes opens the batch",)
    bounded = known_bounds(out / MODEL_FILE, exported.inputs)
    return Imported(inputs=bounded, outputs=exported.outputs, assumed=assumed, notes=exported.notes)


def _claim_stdout() -> Send:
    """Keeps stdout for answers: whatever libraries print goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(answer: Answer) -> None:
        answers.write(msgspec.json.encode(answer) + b"\n")

    return send


def _end_with_parent() -> None:
    """Stdin stays open for as long as the parent lives."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
