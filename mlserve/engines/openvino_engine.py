"""The OpenVINO engine, on the CPU or one of Intel's GPUs."""

import logging
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlserve.engines.compiled_cache import CacheEntry, cache_entry
from mlserve.engines.device import Device, parse_device
from mlserve.engines.engine import EngineSettings, Execution
from mlserve.engines.feed import arrays_in_order
from mlserve.engines.onnx_dimensions import declared_shapes
from mlserve.errors import EngineError
from mlserve.model.tensors import Dims, Tensors, TensorSpec

if TYPE_CHECKING:
    from openvino import CompiledModel, ConstOutput, Core, InferRequest

__all__ = ["OpenvinoEngine", "openvino_devices"]

_log = logging.getLogger("mlserve.engines")

# OpenVINO sets the locale of the whole process to "C" and back while it reads a cached model; two that do so at once
# leave it there, and from then on Python reads text files as ASCII.
_one_at_a_time = threading.Lock()

# What each type is called in OpenVINO's hints and in what it says a device can do.
_HINTS = {"": "f32", "fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_TYPE_OF_HINT = {hint: name for name, hint in _HINTS.items() if name}
_CAPABILITY = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}

_DTYPE_OF_ELEMENT = {
    "boolean": "bool",
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    **{
        f"{letter}{bits}": f"{kind}{bits}" for letter, kind in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)
    },
}


class OpenvinoEngine:
    """A model compiled by OpenVINO: its own IR (`model.xml` and `model.bin`), or an ONNX file.

    An ONNX file must have passed `mlserve.model.onnx_file.inspect_onnx`. `inputs` and `outputs` are what is known of a
    published model: OpenVINO keeps neither the names of dynamic dimensions nor bounds. `digest` names it in the cache.

    Computes in float32 unless the compute type says otherwise; OpenVINO by itself would take bf16 wherever the CPU
    has it. All threads work on one run (latency before throughput): the batcher above hands over one batch at a time.
    Raises EngineError when OpenVINO is not installed, cannot load the model, or would not use the device or the
    compute type asked for.
    """

    def __init__(
        self,
        path: Path,
        settings: EngineSettings | None = None,
        inputs: Sequence[TensorSpec] = (),
        outputs: Sequence[TensorSpec] = (),
        digest: str = "",
    ) -> None:
        settings = settings or EngineSettings()
        self._model = _open(path, settings, digest)
        self.execution = _execution(self._model)
        named = {spec.name: spec.shape for spec in (*inputs, *outputs)} or declared_shapes(path)
        found = [_spec(port, named, path) for port in self._model.inputs]
        self.inputs = _agreeing(inputs, found, path)
        self.outputs = _agreeing(outputs, [_spec(port, named, path) for port in self._model.outputs], path)
        # A request of OpenVINO's runs one thing at a time; as many are made as threads call at once.
        self._idle: deque[InferRequest] = deque([self._model.create_infer_request()])
        self._order = [[spec.name for spec in found].index(spec.name) for spec in self.inputs]

    def run(self, inputs: Tensors) -> Tensors:
        arrays = arrays_in_order(inputs, self.inputs)
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._model.create_infer_request()
        try:
            results = request.infer(dict(zip(self._order, arrays, strict=True)), share_inputs=True)
            return {spec.name: results[spec.name] for spec in self.outputs}
        except RuntimeError as error:
            raise EngineError(_reason(error)) from error
        finally:
            self._idle.append(request)

    def close(self) -> None:
        self._idle.clear()
        del self._model


def openvino_devices() -> dict[str, tuple[str, ...]]:
    """Device as `--device` takes it -> its full name, then what it can do (`FP32`, `BF16`, `INT8`, ...).

    Empty without OpenVINO.
    """
    try:
        core = _core()
    except EngineError:
        return {}
    return {
        device.lower().replace(".", ":"): (
            core.get_property(device, "FULL_DEVICE_NAME"),
            *core.get_property(device, "OPTIMIZATION_CAPABILITIES"),
        )
        for device in core.available_devices
    }


def _core() -> "Core":
    # OpenVINO tells its maker's server that it is used. Where the package that does it is an empty one, it does not.
    sys.modules.setdefault("openvino_telemetry", ModuleType("openvino_telemetry"))
    try:
        from openvino import Core
    except ImportError as error:
        raise EngineError("the engine openvino needs OpenVINO: pip install 'mlserve[openvino]'") from error
    return Core()


def _open(path: Path, settings: EngineSettings, digest: str) -> "CompiledModel":
    core = _core()
    if path.suffix not in (".onnx", ".xml") or not path.is_file():
        raise EngineError(f"{path} cannot be loaded: it is no file in one of OpenVINO's formats, .onnx and .xml")
    device = parse_device(settings.device, "OpenVINO", ("gpu",))
    name = _device_name(device, settings, core.available_devices)
    hint = _hint(settings, name, core.get_property(name, "OPTIMIZATION_CAPABILITIES"))
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    if device.kind == "cpu":
        # Pinned threads of several workers would share the same cores and leave the others idle.
        config |= {"INFERENCE_NUM_THREADS": settings.threads, "ENABLE_CPU_PINNING": False}
    config["NUM_STREAMS"] = settings.streams
    entry = cache_entry(settings.cache, digest, {"engine": "openvino", "version": _version(), "device": name, **config})
    try:
        with _one_at_a_time:
            model = _compile(core, path, name, config, entry)
    except RuntimeError as error:
        raise EngineError(f"{path} cannot be loaded: {_reason(error)}") from error
    _check_used(model, settings, name, hint)
    return model


def _compile(
    core: "Core", path: Path, device: str, config: dict[str, Any], entry: CacheEntry | None
) -> "CompiledModel":
    if entry is None:
        return core.compile_model(str(path), device, config)
    if entry.intact():
        model = core.compile_model(str(path), device, {**config, "CACHE_DIR": str(entry.folder)})
        if not model.get_property("LOADED_FROM_CACHE"):
            entry.discard("OpenVINO did not take it")
        return model
    try:
        with entry.making() as folder:
            return core.compile_model(str(path), device, {**config, "CACHE_DIR": str(folder)})
    except (OSError, RuntimeError) as error:  # the disk is full or not writable; or it is the model, which fails again
        model = core.compile_model(str(path), device, config)
        _log.warning("%s: the compiled model is not kept: %s", path, error)
        return model


def _device_name(device: Device, settings: EngineSettings, available: Sequence[str]) -> str:
    """`cpu` -> `CPU`; `gpu:1` -> `GPU.1`, and `gpu` -> `GPU` where there is but one."""
    for name in (device.kind.upper(), f"{device.kind.upper()}.{device.number}"):
        if name in available and (device.number == 0 or "." in name):
            return name
    raise EngineError(
        f"--device {settings.device}: OpenVINO finds {', '.join(available) or 'no device'} here; see: mlserve doctor"
    )


def _hint(settings: EngineSettings, device: str, capabilities: Sequence[str]) -> str:
    hint = _HINTS.get(settings.compute_type)
    if hint is None or _CAPABILITY[hint] not in capabilities:
        usable = [name for name, each in _HINTS.items() if name and _CAPABILITY[each] in capabilities]
        raise EngineError(
            f"OpenVINO on this {device} cannot compute in {settings.compute_type!r}; use {' or '.join(usable)}"
        )
    return hint


def _check_used(model: "CompiledModel", settings: EngineSettings, device: str, hint: str) -> None:
    used = [str(name) for name in model.get_property("EXECUTION_DEVICES")]
    if used != [device]:
        raise EngineError(f"--device {settings.device}: OpenVINO would run the model on {', '.join(used)}")
    element = model.get_property("INFERENCE_PRECISION_HINT").to_string()
    if element != hint:
        raise EngineError(
            f"--compute-type {settings.compute_type}: OpenVINO would compute in {element}; leave it away, or see: "
            "mlserve doctor"
        )


def _execution(model: "CompiledModel") -> Execution:
    devices = " ".join(str(name) for name in model.get_property("EXECUTION_DEVICES"))
    element = model.get_property("INFERENCE_PRECISION_HINT").to_string()
    return Execution(f"openvino {devices}", _TYPE_OF_HINT[element])


def _spec(port: "ConstOutput", named: dict[str, Dims], path: Path) -> TensorSpec:
    """What OpenVINO says of an input or output, with the names its dynamic dimensions had in the model it came from."""
    name, element, shape = port.any_name, port.element_type.to_string(), port.partial_shape
    dtype = _DTYPE_OF_ELEMENT.get(element)
    if dtype is None:
        raise EngineError(
            f"{path}: '{name}' is a tensor of {element}, which OpenVINO cannot serve; use --engine onnxruntime"
        )
    known = named.get(name, ())
    if shape.rank.is_dynamic:
        return TensorSpec(name, dtype, known)
    dims = tuple(
        dim.get_length()
        if dim.is_static
        else known[axis]
        if len(known) == len(shape) and isinstance(known[axis], str)
        else f"{name}_{axis}"
        for axis, dim in enumerate(shape)
    )
    return TensorSpec(name, dtype, dims)


def _agreeing(declared: Sequence[TensorSpec], found: list[TensorSpec], path: Path) -> tuple[TensorSpec, ...]:
    """`declared`, which tells more than OpenVINO does, once it is sure to speak of the same tensors."""
    if not declared:
        return tuple(found)
    types = {spec.name: spec.dtype for spec in found}
    if types != {spec.name: spec.dtype for spec in declared}:
        raise EngineError(
            f"{path} has {', '.join(map(str, found))}, its manifest says {', '.join(map(str, declared))}; "
            "optimize the model again"
        )
    return tuple(declared)


def _version() -> str:
    import openvino

    return str(openvino.__version__)


def _reason(error: RuntimeError) -> str:
    """The last lines say what was wrong, those before them in which of OpenVINO's source files it was found."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from ", "Check '"))]
    return " ".join(telling or lines)[:500]
