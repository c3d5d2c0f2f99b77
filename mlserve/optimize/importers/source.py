"""What a model file is, told by its content and without running any of it."""

import zipfile
import zlib
from pathlib import Path
from typing import Literal

from mlserve.errors import ModelFileError, UsageError
from mlserve.optimize.importers.pickled import (
    PICKLE_PROTOCOL,
    beginning,
    foreign_names,
    is_compressed,
    pickled_names,
)
from mlserve.units import format_bytes

__all__ = ["NAMES", "STATES_INPUTS", "TRAINABLE", "SourceKind", "identify"]

SourceKind = Literal[
    "onnx", "torchscript", "exported", "state-dict", "pickle", "huggingface",
    "skops", "sklearn", "xgboost", "lightgbm", "keras", "savedmodel",
]  # fmt: skip

NAMES: dict[SourceKind, str] = {
    "onnx": "an ONNX file",
    "torchscript": "a TorchScript archive",
    "exported": "a torch.export program",
    "state-dict": "a state dict",
    "pickle": "a pickled module",
    "huggingface": "a Hugging Face folder",
    "skops": "a scikit-learn model saved by skops",
    "sklearn": "a pickled scikit-learn model",
    "xgboost": "an XGBoost model",
    "lightgbm": "a LightGBM model",
    "keras": "a Keras model",
    "savedmodel": "a TensorFlow SavedModel",
}
"""What a kind is called in a sentence."""

TRAINABLE: frozenset[SourceKind] = frozenset({"torchscript", "exported", "state-dict", "pickle", "huggingface"})
"""The kinds that are a PyTorch module when loaded."""

STATES_INPUTS: frozenset[SourceKind] = (TRAINABLE - {"huggingface"}) | {"skops", "sklearn"}
"""The kinds that do not say themselves what they take, so that the user may."""

_KNOWN = (
    "a .pt file (TorchScript, torch.export or a state dict), an .onnx file, a Hugging Face folder, a scikit-learn "
    "model (.skops, .joblib or .pkl), an XGBoost model (.json or .ubj), a LightGBM model (.txt), a Keras model "
    "(.keras or .h5) or a TensorFlow SavedModel folder"
)

_ZIP_MAGIC = b"PK\x03\x04"
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6 begins with this number, pickled
_XGBOOST_BINARY = b"binf"
_LIGHTGBM = (b"tree\n", b"tree\r\n")
_SAFETENSORS = ".safetensors"
_HEAD_BYTES = 4096
# In an archive torch keeps weights beside the pickle, which names them; and it unpacks nothing else than these.
_MOST_PICKLE_BYTES = 64_000_000
_TORCH_UNPACKS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_SKLEARN_PACKAGES = ("sklearn", "joblib", "imblearn", "xgboost", "lightgbm")

# All that zipfile raises for one flipped byte or another.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError, ValueError)


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
        raise UsageError(f"--model-class is for a bare state dict; {path} is {NAMES[kind]} and brings its own code")
    if kind in ("pickle", "sklearn") and not trust_pickle:
        better = (
            "Save it with skops.io.dump"
            if kind == "sklearn"
            else "Save it with torch.export or torch.jit, give its state dict with --model-class"
        )
        raise ModelFileError(
            f"{path} is {NAMES[kind]}: loading it runs whatever code it names ({_named_code(path)}). {better}, or, if "
            "you trust who made it, pass --trust-pickle"
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
    if head.startswith(PICKLE_PROTOCOL) or is_compressed(head):
        return _identify_pickle(path, head)
    return _kind_by_head(path, head)


def _kind_by_head(path: Path, head: bytes) -> SourceKind:
    """The kind of a file that is neither an archive nor a pickle."""
    if head.startswith(_XGBOOST_BINARY):
        raise ModelFileError(
            f"{path} is in XGBoost's old binary format, which XGBoost itself no longer reads; load it with xgboost<3.1 "
            "and write it with save_model('model.ubj')"
        )
    if head.startswith(_HDF5_MAGIC):
        return "keras"
    if head.startswith(_LIGHTGBM) and b"version=" in head:
        return "lightgbm"
    if head.lstrip()[:1] == b"{" and b"learner" in head:
        return "xgboost"
    if _is_onnx(path, head):
        return "onnx"
    raise ModelFileError(f"{path} is no model mlserve knows; give {_KNOWN}")


def _identify_folder(path: Path) -> SourceKind:
    if (path / "saved_model.pb").is_file():
        return "savedmodel"
    if (path / "config.json").is_file() or (path / "modules.json").is_file():
        return "huggingface"
    raise ModelFileError(
        f"the folder {path} holds no config.json, so it is no Hugging Face model, and no saved_model.pb, so it is no "
        f"TensorFlow one; give {_KNOWN}"
    )


def _read_head(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise ModelFileError(f"{path} is no plain file; give a model file or folder")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}; give a model file or folder") from error
    if not head:
        raise ModelFileError(f"{path} is empty; save or copy the model again")
    return head


def _is_onnx(path: Path, head: bytes) -> bool:
    """A file under another name that begins as ONNX does, with its format's version, and parses."""
    if head[:1] != b"\x08":
        return False
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except DecodeError:
        return False
    return bool(model.graph.node and model.opset_import)


def _identify_archive(path: Path) -> SourceKind:
    names = _archive_names(path)
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "torchscript"
    if any(name.startswith("models/") for name in inner) or "serialized_exported_program.json" in names:
        return "exported"
    if "data.pkl" in inner:
        return "pickle" if foreign_names(_pickle_in_archive(path)) else "state-dict"
    if {"metadata.json", "config.json"} <= names:
        return "keras"
    if "schema.json" in names:
        return "skops"
    raise ModelFileError(
        f"{path} is an archive, but not one that torch, Keras or skops wrote; it holds {', '.join(sorted(names)[:3])}"
    )


def _archive_names(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist())
    except _DAMAGED as error:
        raise ModelFileError(f"{path} is damaged or was cut short ({error}); save or copy the model again") from error


def _pickle_in_archive(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
        packing = archive.getinfo(name).compress_type
        if packing not in _TORCH_UNPACKS:
            packer = zipfile.compressor_names.get(packing, f"method {packing}")  # type: ignore[attr-defined]
            raise ModelFileError(f"{path} is packed by {packer}, which torch does not read; save it with torch again")
        try:
            with archive.open(name) as file:
                content = file.read(_MOST_PICKLE_BYTES + 1)
        except _DAMAGED as error:
            raise ModelFileError(f"{path} is damaged ({error}); save or copy the model again") from error
    if len(content) > _MOST_PICKLE_BYTES:
        raise ModelFileError(
            f"{path} is refused: the pickle in it, {name}, has more than {format_bytes(_MOST_PICKLE_BYTES)}; save the "
            "model's state dict alone"
        )
    return content


def _identify_pickle(path: Path, head: bytes) -> SourceKind:
    if _LEGACY_MAGIC in head[:64]:
        return "pickle" if foreign_names(beginning(path)) else "state-dict"
    content = beginning(path)
    if content.startswith(PICKLE_PROTOCOL):
        packages = {name.partition(".")[0] for name in pickled_names(content)}
        if packages & set(_SKLEARN_PACKAGES):
            return "sklearn"
        raise ModelFileError(
            f"{path} is a pickle that torch did not write and that holds no scikit-learn model; save the model with "
            "torch.export, torch.jit or skops, or as a state dict"
        )
    raise ModelFileError(f"{path} is no model mlserve knows; give {_KNOWN}")


def _named_code(path: Path) -> str:
    content = _pickle_in_archive(path) if _read_head(path).startswith(_ZIP_MAGIC) else beginning(path)
    names = list(dict.fromkeys(foreign_names(content)))
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
