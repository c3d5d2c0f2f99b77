"""What the importing process is asked and what it answers: one line of JSON each way, progress lines between."""

from typing import Literal

import msgspec

from mlserve.model.processing import Processing
from mlserve.model.tensors import TensorSpec
from mlserve.optimize.evaluation.split import Split
from mlserve.optimize.importers.source import SourceKind
from mlserve.optimize.training import TrainingPass

__all__ = ["Answer", "Fault", "ImportRequest", "Imported", "Progress"]


class ImportRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One import. `out` is an empty folder for `model.onnx` and what belongs to it; empty texts mean not given.

    `training` is done to the model before it is exported, with those rows of `data` that `split` does not hold out;
    `checkpoints` is the folder that keeps unfinished training. With `program`, a torch.export program is written too.
    """

    source: str
    kind: SourceKind
    out: str
    inputs: tuple[TensorSpec, ...] = ()
    example: str = ""
    data: str = ""
    model_class: str = ""
    trust_pickle: bool = False
    training: tuple[TrainingPass, ...] = ()
    split: Split = Split()
    checkpoints: str = ""
    program: bool = False


class Imported(msgspec.Struct, frozen=True, kw_only=True, tag="imported"):
    """What came of it: the specs that hold, what had to be assumed, and how it was done and checked.

    `trained` says of each pass in the request's `training`, in that order, what it did.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    task: str = "unknown"
    labels: tuple[str, ...] = ()
    processing: Processing | None = None
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    trained: tuple[tuple[str, ...], ...] = ()


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """What is being done now."""

    step: str


class Fault(msgspec.Struct, frozen=True, tag="fault"):
    """Why it could not be done; `error` says which of our errors to raise."""

    error: Literal[
        "ModelFileError", "UnknownInputError", "DataFileError", "UsageError", "Refused", "EngineError", "StoreError"
    ]
    message: str


Answer = Imported | Progress | Fault
