"""From an artifact, or from a bare ONNX file, to the engine it runs on."""

from pathlib import Path

import msgspec

from mlserve.engines.compiled_cache import model_digest
from mlserve.engines.engine import Engine, EngineSettings
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.engines.openvino_engine import OpenvinoEngine
from mlserve.engines.split_engine import SplitEngine
from mlserve.engines.torch_engine import TorchEngine
from mlserve.errors import EngineError, ModelFileError
from mlserve.model.artifact import Artifact, Format, Manifest
from mlserve.model.onnx_file import inspect_onnx
from mlserve.model.private_copy import private_onnx
from mlserve.model.tensors import batchable

__all__ = ["open_engine", "open_onnx_file"]

# PyTorch's number of threads is a setting of the whole process, so that its pieces cannot have one each.
_SPLITTING = ("onnxruntime", "openvino")
_ONNXRUNTIME_ONLY = {"graph_optimization": "all", "memory_arena": True, "io_binding": False}


def open_engine(artifact: Artifact, settings: EngineSettings | None = None) -> Engine:
    """The model of `artifact`, loaded by the engine that `settings` name or else by the one it was made for.

        onnxruntime             opens onnx
        openvino                opens openvino, onnx
        torch, torch-compiled   open torch

    The compute type it was made for goes with its engine, and so does whether large batches are split; on a device, on
    one thread and for rows that depend on each other they never are. Raises EngineError when the engine is not
    installed, cannot open the artifact's format, would not run on the device or in the compute type asked for, and for
    an ONNX file that must not be loaded.
    """
    if artifact.manifest.format == "onnx":
        _inspect(artifact.model_path)
    settings = _settled(settings or EngineSettings(), artifact.manifest)
    whole = _open(artifact, settings)
    if not settings.split_batches:
        return whole
    if settings.engine not in _SPLITTING or settings.device != "cpu" or settings.threads == 1:
        return whole
    if not _rows_can_part(artifact.manifest):
        return whole
    part = _open(artifact, msgspec.structs.replace(settings, streams=settings.threads))
    return SplitEngine(whole, part, settings.threads)


def _inspect(path: Path) -> None:
    try:
        inspect_onnx(path)
    except ModelFileError as error:
        raise EngineError(f"{path} cannot be loaded: it {str(error).removeprefix(f'{path} ')}") from error


def _settled(settings: EngineSettings, manifest: Manifest) -> EngineSettings:
    """`settings`, with what they leave open as the artifact was made for."""
    engine = settings.engine or manifest.engine
    as_made = engine == manifest.engine
    split = settings.split_batches
    return msgspec.structs.replace(
        settings,
        engine=engine,
        compute_type=settings.compute_type or (manifest.compute_type if as_made else ""),
        split_batches=(manifest.split_batches and as_made) if split is None else split,
    )


def _rows_can_part(manifest: Manifest) -> bool:
    return manifest.rows_independent and batchable([*manifest.inputs, *manifest.outputs])


def _open(artifact: Artifact, settings: EngineSettings) -> Engine:
    manifest, path, engine = artifact.manifest, artifact.model_path, settings.engine
    _check_applicable(engine, settings)
    digest = model_digest(manifest.files)
    match engine, manifest.format:
        case "onnxruntime", "onnx":
            return OnnxEngine(path, settings, digest)
        case "openvino", "openvino" | "onnx":
            return OpenvinoEngine(path, settings, manifest.inputs, manifest.outputs, digest)
        case "torch" | "torch-compiled", "torch":
            compiled = engine == "torch-compiled"
            return TorchEngine(path, settings, manifest.inputs, manifest.outputs, compiled=compiled)
        case _:
            raise _cannot_open(engine, manifest.format)


def open_onnx_file(path: Path, settings: EngineSettings | None = None, within: str = "") -> Engine:
    """The ONNX file `path`, inspected and then loaded by onnxruntime or the engine that `settings` name.

    What is inspected and loaded is a copy of it, in the folder `within` ("" for that of temporary files). The engine's
    inputs have the bounds that the file tells. A bare file is never cached: nothing binds it to its content. Raises
    ModelFileError for a file that must not be loaded, and EngineError as `open_engine`.
    """
    settings = settings or EngineSettings()
    engine = settings.engine or "onnxruntime"
    _check_applicable(engine, settings)
    opened: Engine
    with private_onnx(path, within) as (copy, file):
        match engine:
            case "onnxruntime":
                opened = OnnxEngine(copy, settings)
            case "openvino":
                opened = OpenvinoEngine(copy, settings)
            case _:
                raise _cannot_open(engine, "onnx")
    bounds = file.bounds
    opened.inputs = tuple(msgspec.structs.replace(spec, below=bounds.get(spec.name)) for spec in opened.inputs)
    return opened


def _check_applicable(engine: str, settings: EngineSettings) -> None:
    """A setting that the engine would ignore is refused."""
    if engine == "onnxruntime":
        return
    for name, default in _ONNXRUNTIME_ONLY.items():
        if getattr(settings, name) != default:
            raise EngineError(f"{name} is a setting of onnxruntime's, which {engine} has not; leave it away")


def _cannot_open(engine: str, kept_as: Format) -> EngineError:
    usable = {"onnx": "onnxruntime or openvino", "openvino": "openvino", "torch": "torch or torch-compiled"}[kept_as]
    if engine not in ("onnxruntime", "openvino", "torch", "torch-compiled"):
        return EngineError(f"{engine!r} is no engine; use {usable}")
    return EngineError(f"the engine {engine} does not open a model kept as {kept_as}; use {usable}")
