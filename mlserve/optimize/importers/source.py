"""What a model file is, told by its content and without running any of it."""

import io
import pickletools
import zipfile
import zlib
from pathlib import Path
from typing import Literal

from mlserve.errors import ModelFileError, UsageError

__all__ = ["SourceKind", "identify"]

SourceKind = Literal["onnx", "torchscript", "exported", "state-dict", "pickle", "huggingface"]

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_PROTOCOL = b"\x80"
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6 begins with this number, pickled
_LEGACY_PICKLES = 4  # that number, the protocol, the machine it was written on, and then the object
_SAFETENSORS = ".safetensors"

# All that zipfile raises for one flipped byte or another.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError, ValueError)

# What a state dict's pickle names: tensors, their storages and plain containers.
_TENSOR_MODULES = ("torch._utils", "torch.storage", "collections", "numpy", "numpy.core.multiarray", "_codecs")
_TENSOR_TYPES = ("torch.Size", "torch.device", "torch.serialization._get_layout", "torch._tensor._rebuild_from_type_v2")


def identify(path: Path, *, model_class: str = "", trust_pickle: bool = False) -> SourceKind:
    """The kind of model in `path`.

    `model_class` names the code a bare state dict belongs to. Raises ModelFileError when the file is missing, damaged,
    no model, or may not be loaded as it is; the message names the flag that would help.
    """
    kind = _identify_folder(path) if path.is_dir() else _identify_file(path)
    if kind == "state-dict" and not model_class:
        raise ModelFileError(
            f"{path} holds weights without a model; say which code they belong to with --model-class module:factory"
        )
    if model_class and kind != "state-dict":
        raise UsageError(f"--model-class is for a bare state dict; {path} is {_NAMES[kind]} and brings its own code")
    if kind == "pickle" and not trust_pickle:
        raise ModelFileError(
            f"{path} is a pickled module: loading it runs whatever code it names ({_named_code(path)}). Save it with "
            "torch.export or torch.jit, give its state dict with --model-class, or, if you trust who made it, pass "
            "--trust-pickle"
        )
    return kind


def _identify_file(path: Path) -> SourceKind:
    head = _read_head(path)
    if path.suffix == ".onnx":
        return "onnx"
    if path.suffix == _SAFETENSORS:
        return "state-dict"
    if head.startswith(_ZIP_MAGIC):
        return _identify_archive(path)
    if head.startswith(_PICKLE_PROTOCOL):
        return _identify_pickle(path, head)
    raise ModelFileError(
        f"{path} is no model mlserve knows; give a .pt file (TorchScript, torch.export or a state dict), an .onnx "
        "file or a Hugging Face folder"
    )


_NAMES: dict[SourceKind, str] = {
    "onnx": "an ONNX file",
    "torchscript": "a TorchScript archive",
    "exported": "a torch.export program",
    "state-dict": "a state dict",
    "pickle": "a pickled module",
    "huggingface": "a Hugging Face folder",
}


def _identify_folder(path: Path) -> SourceKind:
    if (path / "config.json").is_file() or (path / "modules.json").is_file():
        return "huggingface"
    raise ModelFileError(f"the folder {path} holds no config.json, so it is no Hugging Face model; give a model file")


def _read_head(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise ModelFileError(f"{path} is no plain file; give a model file or folder")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}; give a model file or folder") from error
    if not head:
        raise ModelFileError(f"{path} is empty; save or copy the model again")
    return head


def _identify_archive(path: Path) -> SourceKind:
    names = _archive_names(path)
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "torchscript"
    if any(name.startswith("models/") for name in inner) or "serialized_exported_program.json" in names:
        return "exported"
    if "data.pkl" in inner:
        return _kind_of_pickle(_pickle_in_archive(path))
    raise ModelFileError(f"{path} is an archive, but not one that torch wrote; it holds {', '.join(sorted(names)[:3])}")


def _archive_names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except _DAMAGED as error:
        raise ModelFileError(f"{path} is damaged or was cut short ({error}); save or copy the model again") from error


def _pickle_in_archive(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
        try:
            return archive.read(name)
        except _DAMAGED as error:
            raise ModelFileError(f"{path} is damaged ({error}); save or copy the model again") from error


def _identify_pickle(path: Path, head: bytes) -> SourceKind:
    if _LEGACY_MAGIC in head:
        return _kind_of_pickle(path.read_bytes())
    raise ModelFileError(
        f"{path} is a pickle that torch did not write; save the model with torch.export, torch.jit or as a state dict"
    )


def _kind_of_pickle(content: bytes) -> SourceKind:
    return "pickle" if _foreign_names(content) else "state-dict"


def _foreign_names(content: bytes) -> list[str]:
    """Every class or function the pickle names that a state dict has no use for."""
    return [name for name in _pickled_names(content) if not _belongs_to_tensors(name)]


def _belongs_to_tensors(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    storage = module == "torch" and (attribute.endswith(("Storage", "Tensor")) or attribute[:1].islower())
    return storage or name in _TENSOR_TYPES or module in _TENSOR_MODULES or name == "torch.nn.parameter.Parameter"


def _pickled_names(content: bytes) -> list[str]:
    """`module.name` of every global, in each pickle of `content` (the old format has several, one after another)."""
    names: list[str] = []
    recent: list[str] = []
    stream = io.BytesIO(content)
    try:
        for _ in range(_LEGACY_PICKLES):
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


def _named_code(path: Path) -> str:
    content = _pickle_in_archive(path) if zipfile.is_zipfile(path) else path.read_bytes()
    names = list(dict.fromkeys(_foreign_names(content)))
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
