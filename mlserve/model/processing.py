"""What a version carries for people: how a text or an image becomes its inputs, and what its outputs mean."""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from mlserve.model.tensors import TensorSpec
from mlserve.model.tokens import TOKENIZED, TOKENIZER_FILE

__all__ = [
    "Activation",
    "AnswerForm",
    "AnswerKind",
    "ImageInput",
    "Pooling",
    "Problem",
    "Processing",
    "Resample",
    "TextInput",
    "answer_form",
    "takes_text",
]

AnswerKind = Literal["embedding", "label", "labels", "value", "outputs"]
"""What one row's answer is: a vector, the best class, all that apply, a number, or the outputs as they are."""

Pooling = Literal["none", "mean", "cls", "max"]
Activation = Literal["none", "softmax", "sigmoid"]
Problem = Literal["", "regression", "single_label_classification", "multi_label_classification"]
"""What a classifier was trained for, by Hugging Face's words; "" where nothing says."""

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]

_LONGEST_SIDE = 8192
_Side = Annotated[int, msgspec.Meta(ge=1, le=_LONGEST_SIDE)]

_FEATURES = ("feature-extraction", "sentence-similarity", "image-feature-extraction")
_SENTENCE = "sentence_embedding"


class TextInput(msgspec.Struct, frozen=True):
    """Texts go through the tokenizer in the file `tokenizer` beside the model, cut after `max_tokens`.

    0 is for what the tokenizer itself says, or else 512. `pad_token` fills shorter ones up; "" as the tokenizer says.
    """

    tokenizer: str = TOKENIZER_FILE
    max_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    pad_token: str = ""


class ImageInput(msgspec.Struct, frozen=True, kw_only=True):
    """Images become `height` x `width` pixels of `channels` (1 gray, 3 red, green, blue) in the order of `layout`.

    First each is turned upright and brought to the size `resize`: `(height, width)`, or the length of its shorter side,
    or None for `height` x `width`; then the middle is cut out where that is larger. A pixel's value 0 to 255 is
    multiplied by `scale`, then `mean` is taken away and what is left divided by `std`, a number for each channel or
    none at all. `NHW` has no channels.
    """

    height: _Side
    width: _Side
    channels: Literal[1, 3] = 3
    layout: Literal["NCHW", "NHWC", "NHW"] = "NCHW"
    # An annotated side in this union makes msgspec 0.22 crash at the next collection of garbage.
    resize: int | tuple[int, int] | None = None
    resample: Resample = "bilinear"
    scale: float = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        sides = self.resize if isinstance(self.resize, tuple) else (1 if self.resize is None else self.resize,)
        if not all(1 <= side <= _LONGEST_SIDE for side in sides):
            raise ValueError(f"resize is {self.resize}; a side has 1 to {_LONGEST_SIDE} pixels")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, self.channels):
                raise ValueError(f"{name} has {len(values)} numbers for {self.channels} channels")
        if 0.0 in self.std:
            raise ValueError("std holds a 0, which nothing can be divided by")
        if self.layout == "NHW" and self.channels != 1:
            raise ValueError("the layout NHW is for 1 channel")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image, without the rows."""
        sides = (self.height, self.width)
        return {"NCHW": (self.channels, *sides), "NHWC": (*sides, self.channels), "NHW": sides}[self.layout]


class AnswerForm(msgspec.Struct, frozen=True, kw_only=True):
    """What one row of `output` (the first output, by "") means.

    embedding   [rows, size], or [rows, tokens, size] by `pooling`; of length 1 with `normalize`
    label       [rows, classes] after `activation`: the best class, none below `threshold`
    labels      [rows, classes] after `activation`: every class of at least `threshold` (0.5 by None), best first
    value       [rows] or [rows, 1]
    outputs     whatever the model gives
    """

    kind: AnswerKind = "outputs"
    output: str = ""
    pooling: Pooling = "none"
    normalize: bool = False
    activation: Activation = "none"
    threshold: float | None = None


class Processing(msgspec.Struct, frozen=True, kw_only=True):
    """All of it; the names of the classes are the manifest's `labels`. A model takes texts or images, seldom both."""

    text: TextInput | None = None
    image: ImageInput | None = None
    answer: AnswerForm = AnswerForm()


def takes_text(inputs: Sequence[TensorSpec]) -> bool:
    """Whether a tokenizer gives every one of `inputs`, [rows, tokens] each."""
    return (
        bool(inputs)
        and inputs[0].shape[1:] == inputs[-1].shape[1:]
        and any(spec.name == "input_ids" for spec in inputs)
        and all(spec.name in TOKENIZED and len(spec.shape) == 2 for spec in inputs)
    )


def answer_form(
    task: str, labels: Sequence[str], outputs: Sequence[TensorSpec], *, problem: Problem = "", output: str = ""
) -> AnswerForm:
    """What the answers mean, by Hugging Face's word for the model's `task` and by the shape of its `output`.

    `output` "" is chosen. Nothing is guessed: without a task and without labels it is the outputs as they are.
    """
    names = [spec.name for spec in outputs]
    if not output and _SENTENCE in names:
        output = _SENTENCE
    spec = next((spec for spec in outputs if not output or spec.name == output), outputs[0])
    rank, width = len(spec.shape), spec.shape[-1] if spec.shape else 1
    named = spec.name if len(outputs) > 1 else ""
    if not spec.dtype.startswith("float"):
        return AnswerForm()
    if rank == 2 and (labels or ("classification" in task and not task.startswith("token"))):
        if problem == "regression" or (width == 1 and len(labels) < 2 and not problem.endswith("classification")):
            return AnswerForm(kind="value", output=named)
        if problem == "multi_label_classification":
            return AnswerForm(kind="labels", output=named, activation="sigmoid")
        return AnswerForm(kind="label", output=named, activation="sigmoid" if width == 1 else "softmax")
    if task in _FEATURES and rank in (2, 3):
        return AnswerForm(kind="embedding", output=named, pooling="mean" if rank == 3 else "none")
    return AnswerForm()
