"""onnxruntime's execution providers: which of them load on this machine, and which operators each one got."""

import contextlib
import ctypes
import io
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["loadable_providers", "missing_library", "operators_by_provider"]

_FATAL = 4


def loadable_providers() -> dict[str, str]:
    """Execution provider -> why it does not load on this machine, "" when it does.

    A provider that was compiled in may still lack its libraries or its device, so each is really asked to load.
    """
    import onnxruntime

    return {name: _provider_fault(name) for name in onnxruntime.get_available_providers()}


def operators_by_provider(session: "InferenceSession") -> dict[str, dict[str, int]] | None:
    """Execution provider -> operator -> how many nodes of the loaded graph it runs; None where onnxruntime is older
    than 1.24 and does not tell. Operators that a provider merged count as what they were.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    counted: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        counted.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return {provider: dict(operators) for provider, operators in counted.items()}


def missing_library(provider: str) -> str:
    """What the system's loader says when the provider's own library is opened by hand; "" when it opens."""
    import onnxruntime

    name = f"libonnxruntime_providers_{provider.removesuffix('ExecutionProvider').lower()}.so"
    path = Path(onnxruntime.__file__).parent / "capi" / name
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return str(error).removeprefix(f"{path}: ")
    return ""


def _provider_fault(provider: str) -> str:
    import onnxruntime
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        # Both calls print to the terminal what we report ourselves.
        with contextlib.redirect_stdout(io.StringIO()):
            if provider != "CPUExecutionProvider" and hasattr(onnxruntime, "preload_dlls"):
                onnxruntime.preload_dlls()
            content = model.SerializeToString()
            session = onnxruntime.InferenceSession(content, options, [provider], enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        return missing_library(provider) or str(error).splitlines()[0]
    return "" if provider in session.get_providers() else missing_library(provider) or "no device was found"
