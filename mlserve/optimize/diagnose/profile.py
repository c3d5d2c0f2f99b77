"""The profile of a model, by whatever profiler its engine has."""

from collections.abc import Mapping

from mlserve.engines.engine import EngineSettings
from mlserve.errors import EngineError
from mlserve.model.tensors import Tensors
from mlserve.optimize.diagnose.facts import Profile, Structure
from mlserve.optimize.diagnose.onnx_profile import profile_onnx
from mlserve.optimize.diagnose.openvino_profile import profile_openvino
from mlserve.optimize.diagnose.subject import Model
from mlserve.optimize.diagnose.torch_profile import profile_torch

__all__ = ["take_profiles"]


def take_profiles(
    model: Model, settings: EngineSettings, batches: Mapping[int, Tensors]
) -> tuple[tuple[Profile, ...], Structure | None]:
    """One profile for each of `batches` (rows -> inputs), and the graph's structure where the model is an ONNX graph.

    Raises EngineError for an engine without a profiler.
    """
    if model.engine == "onnxruntime":
        return profile_onnx(model.path, settings, batches)
    if model.engine == "openvino":
        return profile_openvino(model.path, model.compute_type, settings, batches), None
    if model.engine.startswith("torch"):
        return profile_torch(model, settings, batches), None
    raise EngineError(
        f"{model.ref} runs on the engine {model.engine!r}, which has no profiler that mlserve can read; "
        "diagnose a version made for onnxruntime, openvino or torch"
    )
