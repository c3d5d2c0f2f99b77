"""The onnxruntime engine, on the CPU, a CUDA device, or TensorRT."""

import ctypes
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlserve.engines.engine import EngineSettings, Execution
from mlserve.engines.onnx_providers import loadable_providers, operators_by_provider
from mlserve.engines.onnx_session import open_session, reason
from mlserve.errors import EngineError, InvalidRequest
from mlserve.model.tensors import Array, Tensors, TensorSpec, numpy_dtype

if TYPE_CHECKING:
    from onnxruntime import NodeArg, OrtValue

__all__ = ["OnnxEngine", "loadable_providers"]

_DTYPE_OF_ONNX = {
    "tensor(bfloat16)": "bfloat16",
    "tensor(bool)": "bool",
    "tensor(double)": "float64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(string)": "object",
    **{f"tensor({kind}{bits})": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
_ONNX_BFLOAT16 = 16
# What a run with bound inputs tells by no exception of its own.
_OUT_OF_BOUNDS = "indices element out of data bounds"


class OnnxEngine:
    """A model in an onnxruntime session.

    `path` must have passed `mlserve.model.onnx_file.inspect_onnx`; `digest` names a published model in the cache.
    Raises EngineError when onnxruntime cannot load it, when an input or output is no plain tensor, or when the device
    asked for is not the one really used: a silent fall back to the CPU would make every figure measured afterwards a
    lie (onnxruntime#23372).
    """

    def __init__(self, path: Path, settings: EngineSettings | None = None, digest: str = "") -> None:
        settings = settings or EngineSettings()
        self._session = open_session(path, settings, digest)
        self._check_device_used(settings)
        self.execution = Execution(self._session.get_providers()[0], settings.compute_type)
        self.inputs = tuple(_spec(node, path) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node, path) for node in self._session.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]
        self._bound = settings.io_binding
        self._halves = any(spec.dtype == "bfloat16" for spec in (*self.inputs, *self.outputs))

    def run(self, inputs: Tensors) -> Tensors:
        try:
            if self._halves:
                arrays = self._run_halves(inputs)
            else:
                arrays = self._run_bound(inputs) if self._bound else self._session.run(self._output_names, inputs)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            if type(error).__name__ == "InvalidArgument" or _OUT_OF_BOUNDS in str(error):
                raise InvalidRequest(f"the model refused these values: {reason(error)}") from error
            raise EngineError(reason(error)) from error
        return dict(zip(self._output_names, arrays, strict=True))

    def operators_by_provider(self) -> dict[str, dict[str, int]] | None:
        """Execution provider -> operator -> how many nodes of the loaded graph run there.

        An accelerator that lacks an operator leaves it to the CPU, and each such step costs two copies. None where
        onnxruntime is older than 1.24 and does not tell.
        """
        return operators_by_provider(self._session)

    def close(self) -> None:
        del self._session

    def _run_bound(self, inputs: Tensors) -> list[Array]:
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name in self._output_names:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        arrays: list[Array] = binding.copy_outputs_to_cpu()
        return arrays

    def _run_halves(self, inputs: Tensors) -> list[Array]:
        """A run with bfloat16, which numpy lacks and onnxruntime therefore neither takes nor gives as an array."""
        given = {name: _to_value(array) for name, array in inputs.items()}
        return [_from_value(value) for value in self._session.run_with_ort_values(self._output_names, given)]

    def _check_device_used(self, settings: EngineSettings) -> None:
        """A provider that loaded may still have got nothing to do."""
        if settings.device == "cpu":
            return
        wanted = self._session.get_providers()[0]
        placed = operators_by_provider(self._session)
        if placed and wanted not in placed:
            raise EngineError(
                f"--device {settings.device}: {wanted} runs none of this model's operators, all are left to "
                f"{' and '.join(placed)}; use --device cpu, or a variant that the device can run (fp32, fp16)"
            )


def _to_value(array: Array) -> "OrtValue":
    from onnxruntime import OrtValue

    if array.dtype.kind != "V":
        return OrtValue.ortvalue_from_numpy(array)
    return OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array).view(np.uint16), _ONNX_BFLOAT16)


def _from_value(value: "OrtValue") -> Array:
    if value.element_type() != _ONNX_BFLOAT16:
        array: Array = value.numpy()
        return array
    dtype = numpy_dtype("bfloat16")
    shape = value.shape()
    raw = ctypes.string_at(value.data_ptr(), math.prod(shape) * dtype.itemsize)
    return np.frombuffer(raw, dtype).reshape(shape)


def _spec(node: "NodeArg", path: Path) -> TensorSpec:
    dtype = _DTYPE_OF_ONNX.get(node.type)
    if dtype is None:
        raise EngineError(
            f"{path}: '{node.name}' is a {node.type}, which no serving protocol carries; "
            "export the model with plain tensors (scikit-learn: zipmap=False)"
        )
    shape = (dim if isinstance(dim, int) else dim or f"{node.name}_{axis}" for axis, dim in enumerate(node.shape))
    return TensorSpec(node.name, dtype, tuple(shape))
