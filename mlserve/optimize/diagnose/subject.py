"""What is diagnosed: a version in the store or an ONNX file, opened alike."""

from pathlib import Path

import msgspec

from mlserve.engines.engine import Engine, EngineSettings
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.engines.opening import open_engine
from mlserve.errors import UsageError
from mlserve.model.artifact import Artifact
from mlserve.model.onnx_file import inspect_onnx
from mlserve.model.rows import TOKENIZER_FILE
from mlserve.model.store import Store, verify
from mlserve.model.tensors import TensorSpec
from mlserve.optimize.importers.onnx_model import known_specs
from mlserve.optimize.precision import weight_precision

__all__ = ["Model", "find_model", "find_reference"]


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be opened. `artifact` is None for a file that is in no store."""

    ref: str
    path: Path
    variant: str
    format: str
    engine: str
    compute_type: str
    size_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    artifact: Artifact | None = None

    @property
    def tokenizer(self) -> Path:
        """Where its tokenizer is, if it has one."""
        return self.path.parent / TOKENIZER_FILE

    @property
    def fixed_rows(self) -> int | None:
        """The only number of rows it takes; None when it takes any."""
        first = self.inputs[0].shape
        return first[0] if first and isinstance(first[0], int) else None

    @property
    def quantized(self) -> bool:
        """Whether most of its weights are narrow integers, so that nothing should be made of it; False if not ONNX."""
        import onnx

        if self.format != "onnx":
            return False
        return weight_precision(onnx.load(self.path, load_external_data=False)).startswith("int")

    def open(self, settings: EngineSettings) -> Engine:
        """The loaded model. Raises EngineError when it does not load, or not on the device asked for."""
        return open_engine(self.artifact, settings) if self.artifact else OnnxEngine(self.path, settings)


def find_model(ref: str, store: Store) -> Model:
    """What `ref` names, checked before anything opens it.

    Raises StoreError for an unknown or damaged version, ModelFileError for a file that is no model, UsageError for a
    file that is not there.
    """
    path = Path(ref)
    try:
        is_file = path.is_file()
    except OSError:  # no path can be so long
        is_file = False
    if is_file or path.suffix.lower() == ".onnx":
        if not is_file:
            raise UsageError(f"there is no file {ref}; give an .onnx file or the name of a model in the store")
        return _from_file(path)
    return _from_store(store.resolve(ref))


def find_reference(model: Model, against: str, store: Store) -> Model | None:
    """The model to hold `model` against: `against`, else its parent, else version 1 of its name; None if there is none.

    Raises StoreError or UsageError when `against` cannot be had, or takes other inputs.
    """
    if against:
        reference = find_model(against, store)
        if _signature(reference) != _signature(model):
            raise UsageError(
                f"--against {against} takes {_words(reference)}, {model.ref} takes {_words(model)}; "
                "name a version of the same model"
            )
        return reference
    if model.artifact is None:
        return None
    manifest = model.artifact.manifest
    first = f"{manifest.name}@1" if manifest.version != 1 and 1 in store.versions(manifest.name) else ""
    name, _, version = (manifest.parent or first).partition("@")
    if not version.isdecimal() or int(version) not in store.versions(name):
        return None
    reference = _from_store(store.get(name, int(version)))
    return reference if _signature(reference) == _signature(model) else None


def _from_store(artifact: Artifact) -> Model:
    manifest = artifact.manifest
    verify(artifact)
    if manifest.format == "onnx":
        inspect_onnx(artifact.model_path)
    return Model(
        ref=artifact.ref,
        path=artifact.model_path,
        variant=manifest.variant,
        format=manifest.format,
        engine=manifest.engine,
        compute_type=manifest.compute_type,
        size_bytes=artifact.size_bytes,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        artifact=artifact,
    )


def _from_file(path: Path) -> Model:
    import onnx

    external = inspect_onnx(path).external_files
    engine = OnnxEngine(path)
    inputs, outputs = known_specs(path, engine.inputs), engine.outputs
    engine.close()
    if not inputs or not outputs:
        raise UsageError(f"{path} has {len(inputs)} inputs and {len(outputs)} outputs; there is nothing to run")
    return Model(
        ref=str(path),
        path=path,
        variant=weight_precision(onnx.load(path, load_external_data=False)),
        format="onnx",
        engine="onnxruntime",
        compute_type="",
        size_bytes=path.stat().st_size + sum((path.parent / name).stat().st_size for name in external),
        inputs=inputs,
        outputs=outputs,
    )


def _signature(model: Model) -> list[tuple[str, str, int]]:
    return [(spec.name, spec.dtype, len(spec.shape)) for spec in model.inputs]


def _words(model: Model) -> str:
    return ", ".join(str(spec) for spec in model.inputs)
