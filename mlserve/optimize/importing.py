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
from mlserve.optimize.importers.onnx_model import import_onnx
from mlserve.optimize.importers.request import Answer, Fault, Imported, ImportRequest
from mlserve.optimize.importers.source import SourceKind, identify
from mlserve.optimize.training import TrainingPass

__all__ = ["UNTRAINED", "Source", "Training", "import_model"]

_LAST_WORDS = 3


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A trained model and what the user said of it; empty texts mean not given."""

    path: Path
    inputs: tuple[TensorSpec, ...] = ()
    example: str = ""
    data: Path | None = None
    model_class: str = ""
    trust_pickle: bool = False


class Training(msgspec.Struct, frozen=True):
    """What is done to a model before it is exported; see ImportRequest."""

    passes: tuple[TrainingPass, ...] = ()
    split: Split = Split()
    checkpoints: Path | None = None


UNTRAINED = Training()


def import_model(
    source: Source, out: Path, on_step: Callable[[str], None], training: Training = UNTRAINED
) -> tuple[str, Imported]:
    """Writes the model to `out/model.onnx`, with the files that belong to it; returns its kind and what it is.

    Raises ModelFileError, UnknownInputError, UsageError or DataFileError for what the user can mend, and Refused when
    the converted model does not give the original's answers.
    """
    kind = identify(source.path, model_class=source.model_class, trust_pickle=source.trust_pickle)
    _check_hints(source, kind)
    if kind == "onnx":
        on_step("reading the ONNX file")
        return kind, import_onnx(source.path, out)
    request = ImportRequest(
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
    )
    with tempfile.TemporaryFile() as messages, _worker(request, messages.fileno()) as answers:
        for line in answers:
            answer = msgspec.json.decode(line, type=Answer)
            if isinstance(answer, Imported):
                return kind, answer
            if isinstance(answer, Fault):
                raise getattr(mlserve.errors, answer.error)(answer.message)
            on_step(answer.step)
        messages.seek(0)
        words = messages.read().decode(errors="replace").strip().splitlines()[-_LAST_WORDS:]
    raise ModelFileError(f"{source.path}: the importing process ended without an answer: {' '.join(words) or 'killed'}")


def _check_hints(source: Source, kind: SourceKind) -> None:
    """What the user said must be of use: a flag that is silently ignored misleads."""
    if kind in ("onnx", "huggingface") and (source.inputs or source.example):
        flag = "--input" if source.inputs else "--example"
        raise UsageError(f"{flag} is for PyTorch files; {source.path} says itself what it takes")


@contextmanager
def _worker(request: ImportRequest, messages: int) -> Iterator[Iterator[bytes]]:
    """The lines that the importing process writes; it is gone at the end, whatever happens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mlserve.optimize.importers.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=messages,
        process_group=0,  # Ctrl-C reaches us alone; leaving this block ends the process
        env={"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            process.stdin.write(msgspec.json.encode(request) + b"\n")
            process.stdin.flush()
            yield iter(process.stdout)
        finally:
            process.kill()
