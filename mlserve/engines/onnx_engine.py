"""The onnxruntime engine, on the CPU or a CUDA device."""

import contextlib
import ctypes
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlserve.engines.engine import EngineSettings
from mlserve.errors import EngineError, InvalidRequest
from mlserve.model.tensors import Tensors, TensorSpec

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, NodeArg

__all__ = ["OnnxEngine", "loadable_providers"]

_FATAL = 4

_DTYPE_OF_ONNX = {
    "tensor(bool)": "bool",
    "tensor(double)": "float64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(string)": "object",
    **{f"tensor({kind}{bits})": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}


class OnnxEngine:
    """A model in an onnxruntime session.

    `path` must have passed `mlserve.model.onnx_file.inspect_onnx`. Raises EngineError when onnxruntime cannot load it,
    when an input or output is no plain tensor, or when the device asked for is not the one really used: a silent fall
    back to the CPU would make every figure measured afterwards a lie (onnxruntime#23372).
    """

    def __init__(self, path: Path, settings: EngineSettings | None = None) -> None:
        settings = settings or EngineSettings()
        self._session = _open_session(path, settings)
        self.inputs = tuple(_spec(node, path) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node, path) for node in self._session.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]

    def run(self, inputs: Tensors) -> Tensors:
        try:
            arrays = self._session.run(self._output_names, inputs)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            if type(error).__name__ == "InvalidArgument":
                raise InvalidRequest(f"the model refused these values: {_reason(error)}") from error
            raise EngineError(_reason(error)) from error
        return dict(zip(self._output_names, arrays, strict=True))

    def close(self) -> None:
        del self._session


def loadable_providers() -> dict[str, str]:
    """Execution provider -> why it does not load on this machine, "" when it does.

    A provider that was compiled in may still lack its libraries or its device, so each is really asked to load.
    """
    import onnxruntime

    return {name: _provider_fault(name) for name in onnxruntime.get_available_providers()}


def _provider_fault(provider: str) -> str:
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    try:
        session = _create_session(model.SerializeToString(), EngineSettings(), (provider, {}))
    except Exception as error:  # as in run
        return _missing_library(provider) or _reason(error)
    return "" if provider in session.get_providers() else _missing_library(provider) or "no device was found"


def _missing_library(provider: str) -> str:
    """What the system's loader says when the provider's own library is opened by hand; "" when it opens."""
    import onnxruntime

    name = f"libonnxruntime_providers_{provider.removesuffix('ExecutionProvider').lower()}.so"
    path = Path(onnxruntime.__file__).parent / "capi" / name
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return str(error).removeprefix(f"{path}: ")
    return ""


def _open_session(path: Path, settings: EngineSettings) -> "InferenceSession":
    import onnxruntime

    provider, provider_options = _provider(settings.device)
    if provider not in onnxruntime.get_available_providers():
        raise EngineError(
            f"--device {settings.device} needs onnxruntime's {provider}, which this installation lacks; "
            "install onnxruntime-gpu, or see: mlserve doctor"
        )
    try:
        session = _create_session(str(path), settings, (provider, provider_options))
    except Exception as error:  # as in run
        raise EngineError(f"{path} cannot be loaded: {_reason(error)}") from error
    if provider not in session.get_providers():
        raise EngineError(
            f"--device {settings.device}: {provider} did not load ({_missing_library(provider) or 'no device found'}), "
            "so the model would run on the CPU; see what is missing with: mlserve doctor"
        )
    return session


def _create_session(
    model: str | bytes, settings: EngineSettings, provider: tuple[str, dict[str, Any]]
) -> "InferenceSession":
    import onnxruntime

    onnxruntime.set_default_logger_severity(_FATAL)
    # Both calls print to the terminal what we report as an error of our own.
    with contextlib.redirect_stdout(io.StringIO()):
        if provider[0] != "CPUExecutionProvider" and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        return onnxruntime.InferenceSession(model, _options(settings.threads), [provider], enable_fallback=0)


def _provider(device: str) -> tuple[str, dict[str, Any]]:
    kind, _, number = device.partition(":")
    if kind == "cpu" and not number:
        return "CPUExecutionProvider", {}
    if kind == "cuda" and (number or "0").isdecimal():
        return "CUDAExecutionProvider", {"device_id": int(number or 0)}
    raise EngineError(f"{device!r} is no device; use cpu, cuda or cuda:N")


def _options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    # Threads that spin between runs take the core that parses the next request.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _spec(node: "NodeArg", path: Path) -> TensorSpec:
    dtype = _DTYPE_OF_ONNX.get(node.type)
    if dtype is None:
        raise EngineError(
            f"{path}: '{node.name}' is a {node.type}, which no serving protocol carries; "
            "export the model with plain tensors (scikit-learn: zipmap=False)"
        )
    shape = (dim if isinstance(dim, int) else dim or f"{node.name}_{axis}" for axis, dim in enumerate(node.shape))
    return TensorSpec(node.name, dtype, tuple(shape))


def _reason(error: Exception) -> str:
    """The last part of onnxruntime's message: `[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : reason` -> `reason`."""
    text = str(error).splitlines()[0].rsplit("Status Message: ", 1)[-1]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text).strip()
