"""The importing process: one request from stdin, answers as lines of JSON, nothing else on stdout.

Started by `python -m mlserve.optimize.importers`, which `mlserve.optimize.importing` starts.
"""

import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from mlserve.errors import MlserveError, ModelFileError, RequestError
from mlserve.optimize.disk import naming_a_full_disk
from mlserve.optimize.importers.confinement import Wall, attempts
from mlserve.optimize.importers.request import Answer, Fault, Imported, ImportRequest, Progress
from mlserve.optimize.importers.shapes import Unfit
from mlserve.optimize.importers.write_wall import Held, shut_writes

__all__ = ["import_asked", "main"]

Send = Callable[[Answer], None]


def import_asked(request: ImportRequest, on_step: Callable[[str], None]) -> Imported:
    """Imports one model into `request.out`, in this process. Raises what `mlserve.optimize.importing` names."""
    try:
        with naming_a_full_disk(Path(request.out)):
            return _by_kind(request, on_step)
    except Unfit as error:
        raise ModelFileError(f"the exported model does not run: {error}") from error
    except RequestError as error:
        raise ModelFileError(f"{request.source} does not take what it was given: {error}") from error


def _by_kind(request: ImportRequest, on_step: Callable[[str], None]) -> Imported:
    match request.kind:
        case "huggingface":
            from mlserve.optimize.importers.huggingface import import_folder

            return import_folder(request, Path(request.out), on_step)
        case "skops" | "sklearn":
            from mlserve.optimize.importers.sklearn_model import import_sklearn

            return import_sklearn(request, on_step)
        case "xgboost":
            from mlserve.optimize.importers.xgboost_model import import_xgboost

            return import_xgboost(request, on_step)
        case "lightgbm":
            from mlserve.optimize.importers.lightgbm_model import import_lightgbm

            return import_lightgbm(request, on_step)
        case "keras" | "savedmodel":
            from mlserve.optimize.importers.keras_model import import_keras

            return import_keras(request, on_step)
        case _:
            return _import_torch(request, on_step)


def main(wall: Wall) -> None:
    """Answers one request; a fault the user can mend is an answer too. `wall` says what keeps it from the network."""
    requests, send = _claim_stdin(), _claim_stdout()
    line = requests.readline()
    if not line:
        sys.exit("this is started by `mlserve optimize`; it reads its request from stdin")
    request = msgspec.json.decode(line, type=ImportRequest)
    folders = (request.out, request.checkpoints, tempfile.gettempdir())
    for folder in folders:
        Path(folder).mkdir(parents=True, exist_ok=True)  # later it could not be made
    held = shut_writes(Path(folder) for folder in folders if folder)
    threading.Thread(target=_end_with_parent, args=[requests], name="parent watch", daemon=True).start()
    warnings.simplefilter("ignore")  # exporters warn of their own future, which the user cannot change
    try:
        imported = import_asked(request, lambda step: send(Progress(step)))
        send(_with_attempts(imported, wall, held=held))
    except MlserveError as error:
        send(Fault(type(error).__name__, str(error)))  # type: ignore[arg-type]  # Fault lists what importing raises
    except PermissionError as error:
        if not attempts() and held == "nothing":
            raise
        told = "" if attempts() else "; while it is imported, its code may write to folders of the import alone"
        send(Fault("ModelFileError", f"{request.source} is refused: {error}{told}"))


def _with_attempts(imported: Imported, wall: Wall, *, held: Held) -> Imported:
    """`imported`, saying what it was kept from, and what it nevertheless tried."""
    tried = tuple(f"its code tried to reach the network and was kept from it ({attempt})" for attempt in attempts())
    writes = {
        "all": "; it could write to folders of the import alone",
        "most": "; it could write to folders of the import alone, and shorten files elsewhere",
        "nothing": "",
    }[held]
    return msgspec.structs.replace(
        imported,
        assumed=(*imported.assumed, *tried),
        notes=(*imported.notes, f"loaded without a network ({wall}){writes}"),
    )


def _import_torch(request: ImportRequest, on_step: Callable[[str], None]) -> Imported:
    from mlserve.model.artifact import MODEL_FILE, PROGRAM_FILE
    from mlserve.model.rows import read_rows
    from mlserve.optimize.importers.export import export, save_program
    from mlserve.optimize.importers.inputs import find_inputs
    from mlserve.optimize.importers.onnx_model import known_specs
    from mlserve.optimize.importers.original import load_original

    on_step("loading the model")
    original = load_original(request)
    on_step("finding its inputs")
    inputs = find_inputs(original, request)
    trained: tuple[tuple[str, ...], ...] = ()
    if request.training:
        from mlserve.optimize.training.training import train

        original, trained = train(original, inputs, request, on_step)
    rows = read_rows(Path(request.data), inputs.specs) if request.data else None
    out = Path(request.out)
    exported = export(original, inputs, rows, out, on_step)
    if request.program:
        on_step("exporting: torch.export")
        save_program(original, exported.inputs, inputs.sizes, out / PROGRAM_FILE)
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
        trained=trained,
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
