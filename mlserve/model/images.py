"""Rows that are images: a folder of them, or a folder with one folder of them for each class.

root/cat/1.png, root/dog/2.jpg      the label of an image is the number of its class among the sorted names
root/1.png, root/2.jpg              images without labels
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from mlserve.errors import DataFileError
from mlserve.model.pixels import BadImage, open_image, pixels
from mlserve.model.processing import ImageInput
from mlserve.model.tensors import Array, Tensors, TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageRows", "image_input", "read_images"]

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")


class ImageRows:
    """Images as one input: gray or in three colours, of the size and form that the model takes, a batch at a time.

    Where nothing says otherwise, floats lie between 0 and 1, bytes between 0 and 255, and an open size is that of the
    first image. `classes` are the names of the labels.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        form: ImageInput,
        spec: TensorSpec,
        source: str,
        classes: Sequence[str] = (),
    ) -> None:
        self.paths, self.form, self.source, self.classes = paths, form, source, tuple(classes)
        self.labels: Array | None = None
        if classes:
            self.labels = np.array([self.classes.index(path.parent.name) for path in paths])
        self._spec = spec

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, start: int, stop: int) -> Tensors:
        return {self._spec.name: np.stack([self._read(path) for path in self.paths[start:stop]])}

    def take(self, indices: Sequence[int]) -> "ImageRows":
        return ImageRows([self.paths[index] for index in indices], self.form, self._spec, self.source, self.classes)

    def _read(self, path: Path) -> Array:
        with _open(path) as image:
            try:
                return pixels(image, self.form, self._spec.dtype)
            except BadImage as error:
                raise _unreadable(path, error) from error


def read_images(folder: Path, specs: Sequence[TensorSpec], form: ImageInput | None = None) -> ImageRows:
    """The images in `folder` as the one input in `specs`, as `form` says where there is one.

    Raises DataFileError when it holds no image, one that cannot be read, or when the model takes no image.
    """
    paths, classes = _listed(folder)
    sizes = [_size(path) for path in paths]
    form = form or image_input(specs, sizes[0])
    if form is None:
        taken = ", ".join(map(str, specs))
        if len(specs) != 1:
            raise DataFileError(f"{folder} holds images, the model takes {taken}; give its inputs in an .npz file")
        raise DataFileError(
            f"{folder} holds images, the model takes {taken}, which is none: an image is float or uint8 of "
            "rows,channels,height,width or rows,height,width,channels, with 1 or 3 channels"
        )
    told = "".join(f"{path.relative_to(folder)}\0{path.stat().st_size}\n" for path in paths)
    names = hashlib.sha256(told.encode()).hexdigest()[:12]
    source = f"{folder.name} ({len(paths)} images, sha256 of names and sizes {names})"
    return ImageRows(paths, form, specs[0], source, classes)


def image_input(specs: Sequence[TensorSpec], size: tuple[int, int]) -> ImageInput | None:
    """How the one input in `specs` takes an image, by its shape; None when it takes none.

    `size`, height and width, is for sides that the shape leaves open.
    """
    if len(specs) != 1 or not (specs[0].dtype.startswith("float") or specs[0].dtype == "uint8"):
        return None
    inner = sides = specs[0].shape[1:]
    channels: Literal[1, 3] = 3
    layout: Literal["NCHW", "NHWC", "NHW"] = "NCHW"
    if len(inner) == 2:
        channels, layout = 1, "NHW"
    elif len(inner) == 3 and (inner[0] in (1, 3) or (isinstance(inner[0], str) and inner[2] not in (1, 3))):
        channels, sides = (1 if inner[0] == 1 else 3), inner[1:]
    elif len(inner) == 3 and inner[2] in (1, 3):
        channels, layout, sides = (1 if inner[2] == 1 else 3), "NHWC", inner[:2]
    else:
        return None
    height, width = (side if isinstance(side, int) else own for side, own in zip(sides, size, strict=True))
    scale = 1.0 if specs[0].dtype == "uint8" else 1 / 255
    return ImageInput(height=height, width=width, channels=channels, layout=layout, scale=scale)


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
    try:
        return open_image(path)
    except (BadImage, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataFileError:
    return DataFileError(f"{path} cannot be read as an image ({error}); save it again, or remove it")
