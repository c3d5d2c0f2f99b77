"""From an artifact to the engine it runs on."""

from mlserve.engines.engine import Engine, EngineSettings
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import EngineError
from mlserve.model.artifact import Artifact

__all__ = ["open_engine"]


def open_engine(artifact: Artifact, settings: EngineSettings | None = None) -> Engine:
    """The model of `artifact`, loaded by the engine that `settings` name or else by the one it was made for.

    Raises EngineError when that engine is not installed, cannot open the artifact's format, or would not run on the
    device asked for.
    """
    settings = settings or EngineSettings()
    engine = settings.engine or artifact.manifest.engine
    if engine == "onnxruntime" and artifact.manifest.format == "onnx":
        return OnnxEngine(artifact.model_path, settings)
    raise EngineError(f"the engine {engine!r} does not open a model kept as {artifact.manifest.format}")
