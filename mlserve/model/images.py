"""Rows that are images: a folder of them, or a folder with one folder of them for each class.

root/cat/1.png, root/dog/2.jpg      the label of an image is the number of its class among the sorted names
root/1.png, root/2.jpg              images without labels
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from mlserve.errors import DataFileError
from mlserve.model.tensors import Array, Tensors, TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageRows", "read_images"]

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
_CHANNELS = (1, 3)
_WHITE = 255


class _Form(msgspec.Struct, frozen=True):
    """How one input takes an image: `channels_axis` is 1, -1, or 0 for none, which is gray too."""

    name: str
    dtype: str
    channels: int
    channels_axis: int
    height: int
    width: int


class ImageRows:
    """Images as one input: gray or in three colours, resized to the input's height and width, read a batch at a time.

    Floats lie between 0 and 1, bytes between 0 and 255. Where the input leaves the size open, it is that of the first
    image.
    """

    def __init__(self, paths: Sequence[Path], form: _Form, source: str, labels: Array | None = None) -> None:
        self.paths, self.source, self.labels = paths, source, labels
        self._form = form

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, start: int, stop: int) -> Tensors:
        return {self._form.name: np.stack([_pixels(path, self._form) for path in self.paths[start:stop]])}

    def take(self, indices: Sequence[int]) -> "ImageRows":
        labels = None if self.labels is None else self.labels[list(indices)]
        return ImageRows([self.paths[index] for index in indices], self._form, self.source, labels)


def read_images(folder: Path, specs: Sequence[TensorSpec]) -> ImageRows:
    """The images in `folder` as the one input in `specs`.

    Raises DataFileError when it holds no image, one that cannot be read, or when the model takes no image.
    """
    paths, classes = _listed(folder)
    sizes = [_size(path) for path in paths]
    form = _form(folder, specs, sizes[0])
    labels = np.array([classes.index(path.parent.name) for path in paths]) if classes else None
    told = "".join(f"{path.relative_to(folder)}\0{path.stat().st_size}\n" for path in paths)
    names = hashlib.sha256(told.encode()).hexdigest()[:12]
    return ImageRows(paths, form, f"{folder.name} ({len(paths)} images, sha256 of names and sizes {names})", labels)


def _listed(folder: Path) -> tuple[list[Path], list[str]]:
    """The images, and the sorted names of their classes; no names when they lie in `folder` itself."""
    try:
        inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        flat = [path for path in inside if path.suffix.lower() in _SUFFIXES and path.is_file()]
        folders = [path for path in inside if path.is_dir()]
        by_class = {
            each.name: [path for path in sorted(each.iterdir()) if path.suffix.lower() in _SUFFIXES] for each in folders
        }
    except OSError as error:
        raise DataFileError(f"{folder} cannot be read: {error.strerror}") from error
    if flat and any(by_class.values()):
        raise DataFileError(f"{folder} holds images beside folders of images; move them into the folder of their class")
    empty = next((name for name, paths in by_class.items() if not paths), None)
    if not flat and (empty is not None or not by_class):
        where = folder / empty if empty is not None else folder
        raise DataFileError(f"{where} holds no images; put files in it that end in {', '.join(_SUFFIXES)}")
    if flat:
        return flat, []
    return [path for paths in by_class.values() for path in paths], list(by_class)


def _size(path: Path) -> tuple[int, int]:
    """Height and width, from the beginning of the file."""
    image = _open(path)
    with image:
        return image.height, image.width


def _open(path: Path) -> "Image":
    from PIL import Image

    try:
        return Image.open(path)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataFileError(f"{path} cannot be read as an image ({error}); save it again, or remove it") from error


def _form(folder: Path, specs: Sequence[TensorSpec], size: tuple[int, int]) -> _Form:
    taken = ", ".join(map(str, specs))
    if len(specs) != 1:
        raise DataFileError(f"{folder} holds images, the model takes {taken}; give its inputs in an .npz file")
    (spec,) = specs
    inner = sides = spec.shape[1:]
    if len(inner) == 2:
        channels, axis = 1, 0
    elif len(inner) == 3 and inner[0] in _CHANNELS:
        channels, axis, sides = int(inner[0]), 1, inner[1:]
    elif len(inner) == 3 and inner[2] in _CHANNELS:
        channels, axis, sides = int(inner[2]), -1, inner[:2]
    elif len(inner) == 3 and isinstance(inner[0], str):
        channels, axis, sides = 3, 1, inner[1:]
    else:
        channels = 0
    if not channels or len(sides) != 2 or not (spec.dtype.startswith("float") or spec.dtype == "uint8"):
        raise DataFileError(
            f"{folder} holds images, the model takes {taken}, which is none: an image is float or uint8 of "
            "rows,channels,height,width or rows,height,width,channels, with 1 or 3 channels"
        )
    height, width = (side if isinstance(side, int) else own for side, own in zip(sides, size, strict=True))
    return _Form(spec.name, spec.dtype, channels, axis, height, width)


def _pixels(path: Path, form: _Form) -> Array:
    from PIL import Image, ImageOps

    with _open(path) as image:
        try:
            upright = ImageOps.exif_transpose(image).convert("L" if form.channels == 1 else "RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataFileError(f"{path} cannot be read as an image ({error}); save it again, or remove it") from error
    if upright.size != (form.width, form.height):
        upright = upright.resize((form.width, form.height), Image.Resampling.BILINEAR)
    pixels = np.asarray(upright)
    if form.dtype != "uint8":
        pixels = (pixels.astype(np.float64) / _WHITE).astype(form.dtype)
    if form.channels_axis == 0:
        return pixels
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return np.moveaxis(pixels, -1, 0) if form.channels_axis == 1 else pixels
