"""Import of one trained model: what runs foreign code does so in a process of its own, which can be stopped."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

import mlserve.errors
from mlserve.errors import ModelFileError, UsageError
from mlserve.model.tensors import TensorSpec
from mlserve.optimize.evaluation.split import Split
from mlserve.optimize.importers.limits import Limits, Watch, end
from mlserve.optimize.importers.onnx_model import import_onnx
from mlserve.optimize.importers.request import Answer, Fault, Imported, ImportRequest
from mlserve.optimize.importers.source import NAMES, STATES_INPUTS, TRAINABLE, SourceKind, identify
from mlserve.optimize.stated import Stated
from mlserve.optimize.training import TrainingPass
from mlserve.units import format_exit

__all__ = ["UNTRAINED", "Source", "Training", "import_model", "request_of"]

_LAST_WORDS = 3

# What libraries are told unless the user told them otherwise.
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TOKENIZERS_PARALLELISM": "false",
    "USE_TF": "0",  # transformers refuses Keras 3 where it is installed, though it needs none of it
}


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A trained model and what the user said of it; empty texts mean not given.

    `limits` are those of the importing process. Training is done within its memory, but takes the time it takes.
    `stated` is what people said of texts, images and answers; None for what the file beside the model says.
    """

    path: Path
    inputs: tuple[TensorSpec, ...] = ()
    example: str = ""
    data: Path | None = None
    model_class: str = ""
    trust_pickle: bool = False
    limits: Limits = Limits()
    stated: Stated | None = None


class Training(msgspec.Struct, frozen=True):
    """What is done to a PyTorch model before it is exported, and whether its program is kept; see ImportRequest."""

    passes: tuple[TrainingPass, ...] = ()
    split: Split = Split()
    checkpoints: Path | None = None
    program: bool = False


UNTRAINED = Training()


def import_model(
    source: Source, out: Path, on_step: Callable[[str], None], training: Training = UNTRAINED
) -> tuple[str, Imported]:
    """Writes the model to `out/model.onnx`, with the files that belong to it; returns its kind and what it is.

    Raises ModelFileError, UnknownInputError, UsageError or DataFileError for what the user can mend, and Refused when
    the converted model does not give the original's answers.
    """
    request = request_of(source, out, training)
    kind = request.kind
    if kind == "onnx":
        on_step("reading the ONNX file")
        return kind, import_onnx(source.path, out, source.data, on_step)
    limits = msgspec.structs.replace(source.limits, time_s=0.0) if training.passes else source.limits
    with tempfile.TemporaryFile() as messages, _worker(request, messages.fileno(), limits) as (process, watch):
        assert process.stdout is not None
        for line in process.stdout:
            answer = msgspec.json.decode(line, type=Answer)
            if isinstance(answer, Imported):
                return kind, answer
            if isinstance(answer, Fault):
                raise getattr(mlserve.errors, answer.error)(answer.message)
            on_step(answer.step)
        messages.seek(0)
        words = messages.read().decode(errors="replace").strip().splitlines()[-_LAST_WORDS:]
    if watch.exceeded:
        raise ModelFileError(f"{source.path} was not imported: {watch.exceeded}, the most that an import may take")
    ending = f"the importing process ended with {format_exit(process.returncode)}"
    raise ModelFileError(": ".join((f"{source.path} cannot be loaded", ending, *([" ".join(words)] if words else ()))))


def request_of(source: Source, out: Path, training: Training = UNTRAINED) -> ImportRequest:
    """What the importing process is asked. Raises ModelFileError or UsageError when there is nothing to ask for."""
    kind = identify(source.path, model_class=source.model_class, trust_pickle=source.trust_pickle)
    _check_hints(source, kind, training)
    return ImportRequest(
        source=str(source.path.resolve()),
        kind=kind,
        out=str(out.resolve()),
        inputs=source.inputs,
        example=source.example,
        data=str(source.data.resolve()) if source.data else "",
        model_class=source.model_class,
        trust_pickle=source.trust_pickle,
        training=training.passes,
        split=training.split,
        checkpoints=str(training.checkpoints.resolve()) if training.checkpoints else "",
        program=training.program,
    )


def _check_hints(source: Source, kind: SourceKind, training: Training) -> None:
    """What the user said must be of use: a flag that is silently ignored misleads."""
    if kind not in STATES_INPUTS and (source.inputs or source.example):
        flag = "--input" if source.inputs else "--example"
        raise UsageError(f"{flag} is for PyTorch and scikit-learn; {source.path} says itself what it takes")
    if kind in ("skops", "sklearn") and source.example:
        raise UsageError(f"--example is for PyTorch files; state the inputs of {source.path} with --input or --data")
    if training.program and (kind not in TRAINABLE or kind == "huggingface"):
        raise UsageError(f"the engine torch runs PyTorch files, {source.path} is {NAMES[kind]}; use onnxruntime for it")
    if kind not in TRAINABLE and training.passes:
        raise UsageError(
            f"prune and distill train a PyTorch model, {source.path} is {NAMES[kind]}; leave them out of the recipe"
        )


@contextmanager
def _worker(request: ImportRequest, messages: int, limits: Limits) -> "Iterator[tuple[subprocess.Popen[bytes], Watch]]":
    """The importing process, asked, and what watches it; it is gone at the end, whatever happens."""
    with (
        tempfile.TemporaryDirectory(prefix="mlserve-import-") as scratch,
        _started(messages, scratch) as process,
        Watch(process, limits) as watch,
    ):
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(request) + b"\n")
            process.stdin.flush()
            yield process, watch
        finally:
            end(process)


def _started(messages: int, scratch: str) -> "subprocess.Popen[bytes]":
    """The importing process; its temporary files are its own, in the folder `scratch`."""
    return subprocess.Popen(
        [sys.executable, "-m", "mlserve.optimize.importers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=messages,
        process_group=0,  # Ctrl-C reaches us alone; leaving the caller's block ends the process
        env={**_QUIET, **os.environ, "KERAS_BACKEND": "tensorflow", "TMPDIR": scratch},  # tf2onnx reads no other
    )
