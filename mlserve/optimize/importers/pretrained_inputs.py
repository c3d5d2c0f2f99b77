"""What a Hugging Face folder says of texts, images and answers, as a manifest keeps it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlserve.model.pixels import pixels
from mlserve.model.processing import (
    AnswerForm,
    ImageInput,
    Problem,
    Processing,
    Resample,
    TextInput,
    answer_form,
    takes_text,
)
from mlserve.model.tensors import TensorSpec
from mlserve.model.tokens import TOKENIZER_FILE

__all__ = ["image_form", "processing_of"]

_PREPROCESSOR = "preprocessor_config.json"
_NOT_FOLLOWED = f"{_PREPROCESSOR} is not followed, so images are not read"
# Pillow's numbers for them.
_RESAMPLE: tuple[Resample, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
# Transformers writes 1e30 for "no limit".
_NO_LIMIT = 1_000_000
# Models that count positions from behind the padding token's number.
_POSITIONS_FROM_TWO = ("roberta", "camembert", "mpnet", "longformer")
# Two ways to resize differ by less than one of 255 steps, on the average.
_SAME_PIXELS_WITHIN = 1 / 255
# ConvNeXt resizes smaller images to more than it then cuts out.
_CUT_BELOW = 384


def processing_of(
    source: Path,
    config: Any,
    task: str,
    labels: Sequence[str],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> tuple[Processing | None, tuple[str, ...]]:
    """What leads from a text or an image to an answer, None where the folder does not tell; and notes.

    `config` is transformers' configuration of the model.
    """
    answer = _answer(config, task, labels, outputs)
    if (source / TOKENIZER_FILE).is_file() and takes_text(inputs):
        return Processing(text=_text_input(source, config), answer=answer), ()
    form, notes = image_form(source)
    if form is not None and not _fits(form, inputs):
        return None, (f"{_PREPROCESSOR} is of another size than the model's input, so images are not read",)
    return (Processing(image=form, answer=answer) if form else None), notes


def image_form(source: Path) -> tuple[ImageInput | None, tuple[str, ...]]:
    """How the folder's own preprocessing reads images, checked against it; None where it does what mlserve does not."""
    if not (source / _PREPROCESSOR).is_file():
        return None, ()
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(source, local_files_only=True, use_fast=False)
        form = _image_input(processor)
        same = _reads_alike(processor, form)
    except Exception as error:  # a class of its own for every family, each with sizes of its own kind
        return None, (f"{_NOT_FOLLOWED}: {type(error).__name__}: {error}"[:300],)
    return (form, ()) if same else (None, (_NOT_FOLLOWED,))


def _text_input(source: Path, config: Any) -> TextInput:
    tokenizer = _json(source / "tokenizer_config.json")
    positions = int(getattr(config, "max_position_embeddings", 0) or 0)
    if any(family in str(getattr(config, "model_type", "")) for family in _POSITIONS_FROM_TWO):
        positions -= 2
    limits = [
        _json(source / "sentence_bert_config.json").get("max_seq_length"), tokenizer.get("model_max_length"), positions,
    ]  # fmt: skip
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit < _NO_LIMIT]
    pad = tokenizer.get("pad_token") or ""
    pad = pad.get("content", "") if isinstance(pad, dict) else pad
    return TextInput(max_tokens=min(known, default=0), pad_token=str(pad))


def _answer(config: Any, task: str, labels: Sequence[str], outputs: Sequence[TensorSpec]) -> AnswerForm:
    problem: Problem = getattr(config, "problem_type", None) or ""
    if not problem and getattr(config, "num_labels", 2) == 1:  # transformers' own convention
        problem = "regression"
    return answer_form(task, labels, outputs, problem=problem)


def _image_input(processor: Any) -> ImageInput:
    """Raises ValueError, KeyError or AttributeError for sizes of another kind."""
    size = dict(processor.size)
    resize: int | tuple[int, int] = (
        int(size["shortest_edge"]) if "shortest_edge" in size else (int(size["height"]), int(size["width"]))
    )
    height, width = (resize, resize) if isinstance(resize, int) else resize
    if getattr(processor, "do_center_crop", False):
        height, width = int(processor.crop_size["height"]), int(processor.crop_size["width"])
    elif isinstance(resize, int) and getattr(processor, "crop_pct", None):
        resize = int(resize / processor.crop_pct) if resize < _CUT_BELOW else (resize, resize)
    if not processor.do_resize or "longest_edge" in size:
        raise ValueError("images of any size")
    normalize = getattr(processor, "do_normalize", False)
    return ImageInput(
        height=height,
        width=width,
        resize=None if resize == (height, width) else resize,
        resample=_RESAMPLE[int(processor.resample)],
        scale=float(processor.rescale_factor) if processor.do_rescale else 1.0,
        mean=_by_channel(processor.image_mean) if normalize else (),
        std=_by_channel(processor.image_std) if normalize else (),
    )


def _by_channel(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values)) if isinstance(values, list | tuple) else (float(values),) * 3


def _reads_alike(processor: Any, form: ImageInput) -> bool:
    from PIL import Image

    noise = np.random.default_rng(0).integers(256, size=(12, 17, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((511, 360), Image.Resampling.BICUBIC)
    theirs = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
    ours = pixels(image, form, "float32")
    if theirs.shape != ours.shape:
        return False
    step = _SAME_PIXELS_WITHIN * (255 * form.scale) / min(form.std or (1.0,))
    return bool(np.abs(theirs - ours).mean() <= step)


def _fits(form: ImageInput, inputs: Sequence[TensorSpec]) -> bool:
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        return False
    return all(isinstance(dim, str) or dim == own for dim, own in zip(inputs[0].shape[1:], form.shape, strict=True))


def _json(path: Path) -> dict[str, Any]:
    import json

    return dict(json.loads(path.read_bytes())) if path.is_file() else {}
