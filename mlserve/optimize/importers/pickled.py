"""What a pickle names, read without unpickling it: the classes and functions that loading it would run."""

import bz2
import gzip
import io
import lzma
import pickletools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlserve.errors import ModelFileError

__all__ = ["PICKLE_PROTOCOL", "beginning", "foreign_names", "is_compressed", "pickled_names"]

PICKLE_PROTOCOL = b"\x80"
_PICKLES = 4  # torch before 1.6 wrote four, one after another; the last is the object
# Class names come before the numbers of a model: what is read of a pickle to see them.
_ENOUGH_BYTES = 16_000_000

_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ"
_ZLIB = (b"x\x01", b"x^", b"x\x9c", b"x\xda")

# What a state dict's pickle names: tensors, their storages and plain containers.
_TENSOR_MODULES = ("torch._utils", "torch.storage", "collections", "numpy", "numpy.core.multiarray", "_codecs")
_TENSOR_TYPES = ("torch.Size", "torch.device", "torch.serialization._get_layout", "torch._tensor._rebuild_from_type_v2")


def is_compressed(head: bytes) -> bool:
    """Whether a file that begins with `head` may be what joblib makes of a pickle when it compresses it."""
    return head.startswith((_GZIP, _BZIP2, _XZ, *_ZLIB))


def beginning(path: Path) -> bytes:
    """The beginning of a pickle, unpacked where joblib compressed it.

    Raises ModelFileError when it is damaged.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_ENOUGH_BYTES)
        if content.startswith(_ZLIB):
            return zlib.decompressobj().decompress(content, _ENOUGH_BYTES)
        openers: dict[bytes, Callable[[Path], Any]] = {_GZIP: gzip.open, _BZIP2: bz2.open, _XZ: lzma.open}
        for magic, opener in openers.items():
            if content.startswith(magic):
                with opener(path) as reader:
                    return bytes(reader.read(_ENOUGH_BYTES))
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ModelFileError(f"{path} is damaged or was cut short ({error}); save or copy the model again") from error
    return content


def foreign_names(content: bytes) -> list[str]:
    """Every class or function the pickle names that a state dict has no use for."""
    return [name for name in pickled_names(content) if not _belongs_to_tensors(name)]


def pickled_names(content: bytes) -> list[str]:
    """`module.name` of every global, in each pickle of `content`.

    Raises ModelFileError when it breaks off before the first; joblib's numbers, which are no pickle, may end it later.
    """
    names: list[str] = []
    recent: list[str] = []
    stream = io.BytesIO(content)
    try:
        for _ in range(_PICKLES):
            for operation, argument, _ in pickletools.genops(stream):
                if operation.name == "GLOBAL":
                    names.append(str(argument).replace(" ", "."))
                elif operation.name == "STACK_GLOBAL":
                    names.append(".".join(recent[-2:]))
                elif isinstance(argument, str):
                    recent.append(argument)
            if stream.tell() == len(content):
                break
    except (ValueError, IndexError) as error:
        if not names:
            raise ModelFileError(f"the pickle inside is damaged ({error}); save the model again") from error
    return names


def _belongs_to_tensors(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    storage = module == "torch" and (attribute.endswith(("Storage", "Tensor")) or attribute[:1].islower())
    return storage or name in _TENSOR_TYPES or module in _TENSOR_MODULES or name == "torch.nn.parameter.Parameter"
