"""From the bytes of an image to a model's pixels: the one place that opens images."""

from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from mlserve.model.processing import ImageInput
from mlserve.model.tensors import Array

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["BadImage", "open_image", "pixels"]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

# A phone takes 50 million; as many in colour are 150 MB.
MOST_PIXELS = 64_000_000
_WIDE = ("I;16", "I;16B", "I;16L", "I")


class BadImage(ValueError):
    """What is wrong with an image, in words."""


def open_image(file: Path | IO[bytes]) -> "Image":
    """The image, of which only the beginning is read by now. Raises BadImage, and OSError for a missing file.

    What it says its size is, is looked at before anything is unpacked: a small file can hold a huge image.
    """
    # Pillow would import the reader of WebP, and those of all others, at the first image that has none.
    from PIL import Image, UnidentifiedImageError, WebPImagePlugin  # noqa: F401

    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise BadImage(f"it is none of {', '.join(FORMATS)}") from error
    except FileNotFoundError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise BadImage(str(error)) from error
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise BadImage(f"it has {image.width} x {image.height} pixels, at most {MOST_PIXELS} are read")
    return image


def pixels(image: "Image", form: ImageInput, dtype: str) -> Array:
    """One image as `form` says, upright; of an animation its first picture. Raises BadImage when it is cut short."""
    from PIL import ImageOps

    try:
        upright = _eight_bit(ImageOps.exif_transpose(image)).convert("L" if form.channels == 1 else "RGB")
    except MemoryError:
        raise
    except Exception as error:  # what a damaged file makes of a parser has no base class
        raise BadImage(str(error) or type(error).__name__) from error
    array = np.asarray(_sized(upright, form))
    if dtype != "uint8" or form.mean or form.std:
        values = array.astype(np.float64) * form.scale
        if form.mean:
            values -= np.array(form.mean if form.channels > 1 else form.mean[0])
        if form.std:
            values /= np.array(form.std if form.channels > 1 else form.std[0])
        array = values.astype(dtype)
    if form.layout == "NHW":
        return array
    if array.ndim == 2:
        array = array[:, :, None]
    return np.moveaxis(array, -1, 0) if form.layout == "NCHW" else array


def _eight_bit(image: "Image") -> "Image":
    """Gray of 16 bits as gray of 8; Pillow would make white of everything above 255."""
    if image.mode not in _WIDE:
        return image
    from PIL import Image

    return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))


def _sized(image: "Image", form: ImageInput) -> "Image":
    from PIL import Image

    size = _resized(image.size, form)
    if size[0] * size[1] > MOST_PIXELS:
        raise BadImage(f"it is {image.width} x {image.height} pixels, too long and narrow to be resized to {size}")
    if image.size != size:
        image = image.resize(size, Image.Resampling[form.resample.upper()])
    if size == (form.width, form.height):
        return image
    left, top = (size[0] - form.width) // 2, (size[1] - form.height) // 2
    return image.crop((left, top, left + form.width, top + form.height))


def _resized(size: tuple[int, int], form: ImageInput) -> tuple[int, int]:
    """Width and height before the middle is cut out."""
    if form.resize is None:
        return form.width, form.height
    if isinstance(form.resize, tuple):
        return form.resize[1], form.resize[0]
    width, height = size
    shorter, longer = min(size), max(size)
    other = int(form.resize * longer / shorter)
    return (form.resize, other) if width <= height else (other, form.resize)
