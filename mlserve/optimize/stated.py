"""What people say of a model that does not say it itself: labels, tokenizer, threshold, how it reads images.

A file `processing.json` beside the model (or in its folder) holds it:

    {"labels": ["ham", "spam"], "tokenizer": "tokenizer.json", "threshold": 0.8}
    {"labels": ["cat", "dog"], "image": {"height": 224, "width": 224, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
"""

import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import EngineError, RequestError, UsageError
from mlserve.model.artifact import MODEL_FILE
from mlserve.model.images import read_images
from mlserve.model.processing import (
    Activation,
    AnswerForm,
    AnswerKind,
    ImageInput,
    Pooling,
    Processing,
    TextInput,
    answer_form,
    takes_text,
)
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import TensorSpec
from mlserve.model.tokens import TOKENIZER_FILE, open_tokenizer
from mlserve.optimize.importers.request import Imported

__all__ = ["PROCESSING_FILE", "Stated", "StatedImage", "files_stated", "read_stated", "settled"]

PROCESSING_FILE = "processing.json"

_PROBED_ROWS = 4


class StatedImage(ImageInput, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An ImageInput as people write it: a key that means nothing is an error."""


class Stated(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is stated; all else follows from the model. `tokenizer` is a path from the model's folder."""

    labels: tuple[str, ...] = ()
    threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    tokenizer: str = ""
    max_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    answer: AnswerKind | None = None
    output: str = ""
    pooling: Pooling | None = None
    normalize: bool | None = None
    activation: Activation | None = None
    image: StatedImage | None = None


NOTHING = Stated()


def read_stated(model: Path) -> Stated:
    """What the file beside `model` states; nothing where there is none. Raises UsageError when it cannot be read."""
    path = _folder(model) / PROCESSING_FILE
    if not path.is_file():
        return NOTHING
    try:
        return msgspec.json.decode(path.read_bytes(), type=Stated)
    except (msgspec.DecodeError, OSError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def files_stated(model: Path) -> list[Path]:
    """The files beside `model` that what is stated consists of."""
    stated = read_stated(model)
    folder = _folder(model)
    paths = [folder / PROCESSING_FILE, *([folder / stated.tokenizer] if stated.tokenizer else [])]
    return [path for path in paths if path.is_file()]


def settled(
    imported: Imported, stated: Stated, model: Path, out: Path, data: Path | None
) -> tuple[Processing | None, tuple[str, ...]]:
    """What leads from a text or an image to an answer of the model in `out`, and the names of its classes.

    What is `stated` comes before what the model's own files said; images of `data` are read as they were for measuring,
    and name the classes where nothing else does. A stated tokenizer is copied. Raises UsageError for what contradicts
    the model, and DataFileError for a tokenizer that is none.
    """
    found = imported.processing or Processing()
    text = _text(imported, stated, found.text, model, out)
    image, classes = _image(imported, stated, found.image, data)
    labels = stated.labels or imported.labels or _as_many(classes, imported.outputs)
    if text is None and image is None and stated == NOTHING:
        return None, imported.labels
    if stated.output and all(spec.name != stated.output for spec in imported.outputs):
        given = ", ".join(spec.name for spec in imported.outputs)
        raise UsageError(f"{PROCESSING_FILE}: the model has no output '{stated.output}', it gives {given}")
    answer = found.answer
    if imported.processing is None or stated.output or (stated.labels and answer.kind == "outputs"):
        answer = answer_form(imported.task, labels, imported.outputs, output=stated.output)
        answer = msgspec.structs.replace(answer, activation=_activation(answer, imported.inputs, out))
    wanted = {name: getattr(stated, name) for name in ("output", "pooling", "normalize", "activation", "threshold")}
    wanted["kind"] = stated.answer
    said = {name: value for name, value in wanted.items() if value not in (None, "")}
    answer = msgspec.structs.replace(answer, **said)
    _check_labels(stated, answer, imported.outputs)
    return Processing(text=text, image=image, answer=answer), labels


def _text(imported: Imported, stated: Stated, found: TextInput | None, model: Path, out: Path) -> TextInput | None:
    if stated.tokenizer:
        path = _folder(model) / stated.tokenizer
        if not path.is_file():
            raise UsageError(f"{PROCESSING_FILE} names the tokenizer {path}, which is not there")
        if not takes_text(imported.inputs):
            taken = ", ".join(map(str, imported.inputs))
            raise UsageError(
                f"{PROCESSING_FILE} names a tokenizer, which gives input_ids, attention_mask and token_type_ids of "
                f"rows,tokens; the model takes {taken}"
            )
        shutil.copyfile(path, out / TOKENIZER_FILE)
    if not (out / TOKENIZER_FILE).is_file() or not takes_text(imported.inputs):
        return None
    open_tokenizer(out / TOKENIZER_FILE)
    text = found or TextInput()
    return msgspec.structs.replace(text, max_tokens=stated.max_tokens) if stated.max_tokens else text


def _image(
    imported: Imported, stated: Stated, found: ImageInput | None, data: Path | None
) -> tuple[ImageInput | None, tuple[str, ...]]:
    """How images are read, and the names of the classes that `data` has folders for."""
    rows = read_images(data, imported.inputs, stated.image or found) if data is not None and data.is_dir() else None
    form = stated.image or found or (rows.form if rows else None)
    if form is not None:
        shape = imported.inputs[0].shape[1:] if len(imported.inputs) == 1 else ()
        if len(shape) != len(form.shape) or any(
            isinstance(dim, int) and dim != own for dim, own in zip(shape, form.shape, strict=False)
        ):
            taken = ", ".join(map(str, imported.inputs))
            raise UsageError(f"{PROCESSING_FILE}: images become {list(form.shape)} a row, the model takes {taken}")
    return form, rows.classes if rows else ()


def _as_many(classes: Sequence[str], outputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """`classes` where some output has one score for each."""
    return tuple(classes) if any(spec.shape[1:] == (len(classes),) for spec in outputs) else ()


def _activation(answer: AnswerForm, inputs: Sequence[TensorSpec], out: Path) -> Activation:
    """None for scores that are probabilities already, as made-up rows show."""
    if answer.activation == "none":
        return "none"
    with closing(OnnxEngine(out / MODEL_FILE)) as engine:
        name = answer.output or engine.outputs[0].name
        try:
            scores = engine.run(synthesize(inputs, _PROBED_ROWS, np.random.default_rng(0)))[name]
        except (EngineError, RequestError):
            return answer.activation
    return "none" if bool(((scores >= 0) & (scores <= 1)).all()) else answer.activation


def _check_labels(stated: Stated, answer: AnswerForm, outputs: Sequence[TensorSpec]) -> None:
    if not stated.labels:
        return
    spec = next((spec for spec in outputs if spec.name == answer.output), outputs[0])
    width = spec.shape[-1] if len(spec.shape) == 2 else None
    if answer.kind not in ("label", "labels"):
        raise UsageError(f"{PROCESSING_FILE} names labels, but output {spec} has no score for each of some classes")
    if isinstance(width, int) and width != len(stated.labels) and not (width == 1 and len(stated.labels) == 2):
        raise UsageError(f"{PROCESSING_FILE} names {len(stated.labels)} labels, the model has {width} classes")


def _folder(model: Path) -> Path:
    return model if model.is_dir() else model.parent
