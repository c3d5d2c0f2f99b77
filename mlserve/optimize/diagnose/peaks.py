"""The roofs of this machine, measured: the largest rates it shows with as many threads as the model is given."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mlserve.engines.engine import EngineSettings
from mlserve.engines.onnx_session import session_options
from mlserve.optimize.diagnose.facts import Peaks

__all__ = ["measure_peaks"]

_LONGEST_S = 0.3
_FEWEST = 3
_SIDE = 1024
# STREAM's rule: at least four times the last cache, so that what is measured is the memory (McCalpin 1995).
_COPIED_BYTES = 256 << 20
_MOST_OF_MEMORY = 16


def measure_peaks(threads: int, memory_bytes: int) -> Peaks:
    """The rates of a large float32 product, a large int8 product and a large copy: about a second in all.

    The products are onnxruntime's own (1024 x 1024 x 1024), as numpy's would not keep to `threads`.
    """
    work = 2 * _SIDE**3
    int8_s = _product_s("MatMulInteger", np.uint8, np.int8, threads)
    copied_bytes = min(_COPIED_BYTES, memory_bytes // _MOST_OF_MEMORY)
    fp32_s = _product_s("MatMul", np.float32, np.float32, threads)
    assert fp32_s is not None
    return Peaks(
        fp32_flops_per_s=work / fp32_s,
        int8_ops_per_s=work / int8_s if int8_s else None,
        # Every byte is read once and written once.
        bytes_per_s=2 * copied_bytes / _copy_s(copied_bytes, threads),
    )


def _product_s(operator: str, left: type[np.generic], right: type[np.generic], threads: int) -> float | None:
    """The shortest time of one product with constant right side, as a layer has it; None where there is no kernel."""
    import onnxruntime
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = rng.integers(-64, 64, (_SIDE, _SIDE)).astype(right)
    given, gives = (helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in (left, np.float32))
    if operator == "MatMulInteger":
        gives = helper.np_dtype_to_tensor_dtype(np.dtype(np.int32))
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"])],
        "peak",
        [helper.make_tensor_value_info("x", given, [_SIDE, _SIDE])],
        [helper.make_tensor_value_info("y", gives, [_SIDE, _SIDE])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), session_options(EngineSettings(threads=threads)), ["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        if type(error).__name__ == "NotImplemented":
            return None
        raise
    values: dict[str, Any] = {"x": rng.integers(0, 64, (_SIDE, _SIDE)).astype(left)}
    return _shortest_s(lambda: session.run(None, values))


def _copy_s(size_bytes: int, threads: int) -> float:
    """The shortest time of one copy of `size_bytes`, shared out over the threads."""
    source = np.zeros(size_bytes, np.uint8)
    target = np.ones_like(source)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        return _shortest_s(lambda: list(pool.map(lambda pair: np.copyto(*pair), parts)))


def _shortest_s(call: Callable[[], object]) -> float:
    """The shortest of at least three calls in 0.3 s: a roof is what the machine can do when nothing disturbs it."""
    call()
    taken: list[float] = []
    started_s = time.perf_counter()
    while len(taken) < _FEWEST or time.perf_counter() - started_s < _LONGEST_S:
        before_s = time.perf_counter()
        call()
        taken.append(time.perf_counter() - before_s)
    return min(taken)
