"""Where the time of an OpenVINO model goes, by its own performance counters (`PERF_COUNT`)."""

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from mlserve.engines.engine import EngineSettings
from mlserve.errors import EngineError
from mlserve.model.tensors import Tensors
from mlserve.optimize.diagnose.facts import Operation, Profile, Tensor
from mlserve.optimize.diagnose.work import Executed, flops, precision, traffic

if TYPE_CHECKING:
    from openvino import CompiledModel, InferRequest

__all__ = ["profile_openvino"]

_WARM_UP = 2
_FEWEST, _MOST = 3, 30
_LONGEST_S = 1.0
_MEANS = "OpenVINO tells the average time of each operator, not its median"
_MERGED = "OpenVINO merges operators into a Subgraph, and does not tell the work inside it: it counts as none"
_PRECISION_HINTS = {"": "f32", "fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def profile_openvino(
    path: Path, compute_type: str, settings: EngineSettings, batches: Mapping[int, Tensors]
) -> tuple[Profile, ...]:
    """One profile for each of `batches` (rows -> inputs).

    Raises EngineError when OpenVINO is not installed, or cannot load or run the model.
    """
    try:
        import openvino
    except ImportError as error:
        raise EngineError("OpenVINO is not installed; pip install 'mlserve[openvino]'") from error
    # As the engine compiles it (`engines.openvino_engine`), and counting.
    configuration = {
        "PERF_COUNT": True,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_NUM_THREADS": settings.threads,
        "INFERENCE_PRECISION_HINT": _PRECISION_HINTS.get(compute_type, "f32"),
    }
    core = openvino.Core()
    try:
        # Compiled anew for each batch size: the counters add up all runs of one compiled model.
        return tuple(
            _profile(core.compile_model(str(path), "CPU", configuration), inputs, rows)
            for rows, inputs in batches.items()
        )
    except RuntimeError as error:
        raise EngineError(f"{path} cannot be profiled: {str(error).strip().splitlines()[-1]}") from error


def _profile(compiled: "CompiledModel", inputs: Tensors, batch_rows: int) -> Profile:
    request = compiled.create_infer_request()
    for _ in range(_WARM_UP):
        request.infer(inputs)
    before_s = _averages(request)
    taken: list[float] = []
    started_s = time.perf_counter()
    while len(taken) < _FEWEST or (len(taken) < _MOST and time.perf_counter() - started_s < _LONGEST_S):
        run_s = time.perf_counter()
        request.infer(inputs)
        taken.append(time.perf_counter() - run_s)
    runs = len(taken)
    # The first runs pack the weights, which takes many times as long; they are taken out of the average again.
    own_s = {
        name: max(0.0, ((_WARM_UP + runs) * average_s - _WARM_UP * before_s.get(name, 0.0)) / runs)
        for name, average_s in _averages(request).items()
    }
    # The graph that was run tells its shapes only after a run.
    graph = {node.get_friendly_name(): node for node in compiled.get_runtime_model().get_ordered_ops()}
    operations = tuple(_operation(name, graph[name], self_s) for name, self_s in own_s.items() if name in graph)
    merged = any(operation.operator == "Subgraph" for operation in operations)
    return Profile(
        batch_rows=batch_rows,
        runs=runs,
        run_s=median(taken),
        operations=operations,
        notes=(_MEANS, _MERGED) if merged else (_MEANS,),
    )


def _averages(request: "InferRequest") -> dict[str, float]:
    """Node -> seconds, the average of all runs so far (that is what OpenVINO tells), of those that were really run."""
    return {
        info.node_name: info.real_time.total_seconds()
        for info in request.get_profiling_info()
        if info.status.name == "EXECUTED"
    }


def _operation(name: str, node: Any, self_s: float) -> Operation:
    told = node.get_rt_info()
    operator = _text(told, "layerType")
    given = _text(told, "runtimePrecision")
    inputs = [(_tensor(port.get_source_output()), _is_constant(port)) for port in node.inputs()]
    executed = Executed(
        operator=operator,
        inputs=[tensor for tensor, _ in inputs],
        outputs=[_tensor(port) for port in node.outputs()],
        weights={place: tensor for place, (tensor, constant) in enumerate(inputs) if constant},
    )
    moved_bytes, weight_bytes = traffic(executed)
    # The precision of a node is what its kernel computes in, not what it gives.
    of_kernel = precision(Executed(operator="", inputs=(), outputs=(Tensor(given, ()),)))
    return Operation(
        name=name,
        operator=operator,
        provider=f"openvino CPU ({_text(told, 'primitiveType')})",
        self_s=self_s,
        precision=of_kernel,
        flops=flops(executed),
        moved_bytes=moved_bytes,
        weight_bytes=weight_bytes,
        outputs=tuple(executed.outputs),
    )


def _is_constant(port: Any) -> bool:
    """Whether an input is a weight, straight or turned and packed before the first run."""
    node = port.get_source_output().get_node()
    for _ in range(4):
        told = node.get_rt_info()
        if _text(told, "layerType") == "Const":
            return True
        if _text(told, "layerType") not in ("Reorder", "Transpose", "Reshape", "Convert") or not node.inputs():
            return False
        node = node.inputs()[0].get_source_output().get_node()
    return False


def _tensor(port: Any) -> Tensor:
    """Precision and shape of a value; a dimension that stays open even after a run counts as 0."""
    shape = port.get_partial_shape()
    dims = tuple(dim.get_length() if dim.is_static else 0 for dim in shape) if shape.rank.is_static else ()
    told = port.get_node().get_rt_info()
    return Tensor(_text(told, "outputPrecisions").split(",")[port.get_index()] or "f32", dims)


def _text(told: Any, key: str) -> str:
    if key not in told:
        return ""
    value = told[key]
    return str(getattr(value, "value", value))
