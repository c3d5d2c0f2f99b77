"""An onnxruntime session with the settings asked for, on the device asked for, from the cache where there is one.

Measured on 2 AVX-512 cores shared with other work, CPU time of one run against the default, interleaved (MLP of 4,000
parameters at 1 and 32 rows; MiniLM-L6 in fp32 and int8 at 1 x 16, 1 x 128 and 8 x 64 tokens):

    inputs and outputs bound    0.63x and 0.70x; MiniLM 0.93x to 1.00x: copies are not what a run on the CPU spends
    no memory arena             1.00x; MiniLM 0.88x at 8 x 64 tokens in fp32, else 0.94x to 1.05x
    optimization "off"          0.95x; MiniLM 0.91x to 1.05x; "basic" and "extended" between that and the default
    threads that spin           0.49x to 0.83x of the speed (wall clock): they take the core of the next request
    from the cache              loads MiniLM in 0.7x (fp32) and 0.8x (int8) of the CPU time, digests checked; the
                                private memory of a worker falls from 117 to 38 MB and from 35 to 4 MB
"""

import contextlib
import io
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlserve.engines.compiled_cache import CacheEntry, cache_entry
from mlserve.engines.device import Device, parse_device
from mlserve.engines.engine import EngineSettings
from mlserve.engines.onnx_providers import missing_library
from mlserve.errors import EngineError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

__all__ = ["open_session", "reason", "session_options"]

_log = logging.getLogger("mlserve.engines")

_FATAL = 4
_GRAPH = "graph.onnx"
_WEIGHTS = "weights.bin"
# Smaller weights stay in the graph.
_LEAST_WEIGHT_BYTES = 1024

Provider = tuple[str, dict[str, Any]]


def open_session(path: Path, settings: EngineSettings, digest: str = "") -> "InferenceSession":
    """A session of the model in `path`; `digest` names it in the cache.

    Raises EngineError when onnxruntime cannot load it, or when what was asked for is not what is really used.
    """
    import onnxruntime

    device = parse_device(settings.device, "onnxruntime", ("cuda", "tensorrt"))
    providers = _providers(device, settings, digest)
    wanted = providers[0][0]
    if wanted not in onnxruntime.get_available_providers():
        raise EngineError(
            f"--device {settings.device} needs onnxruntime's {wanted}, which this installation lacks; "
            "install onnxruntime-gpu, or see: mlserve doctor"
        )
    # Only CPU kernels rearrange weights while loading; what TensorRT compiles it keeps itself.
    entry = _entry(settings, digest) if device.kind == "cpu" else None
    try:
        session = _open_cached(path, settings, entry, providers) if entry else _create(path, settings, providers)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        missing = device.kind != "cpu" and missing_library(wanted)
        if missing:
            raise _not_loaded(settings, wanted, missing) from error
        raise EngineError(f"{path} cannot be loaded: {reason(error)}") from error
    if wanted not in session.get_providers():
        raise _not_loaded(settings, wanted, missing_library(wanted) or "no device found")
    return session


def session_options(settings: EngineSettings) -> "SessionOptions":
    """The options every session of ours has; to change before a session is made of them."""
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, settings.threads // settings.streams)
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.enable_cpu_mem_arena = settings.memory_arena
    options.graph_optimization_level = {
        "off": levels.ORT_DISABLE_ALL,
        "basic": levels.ORT_ENABLE_BASIC,
        "extended": levels.ORT_ENABLE_EXTENDED,
        "all": levels.ORT_ENABLE_ALL,
    }[settings.graph_optimization]
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # So that the engine can tell on which device each operator runs; older versions ignore it.
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def reason(error: Exception) -> str:
    """The last part of onnxruntime's message: `[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : reason` -> `reason`."""
    text = (str(error).splitlines() or [type(error).__name__])[0].rsplit("Status Message: ", 1)[-1]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text).strip()


def _not_loaded(settings: EngineSettings, provider: str, why: str) -> EngineError:
    return EngineError(
        f"--device {settings.device}: {provider} did not load ({why}), so the model would run on the CPU; "
        "see what is missing with: mlserve doctor"
    )


def _providers(device: Device, settings: EngineSettings, digest: str) -> list[Provider]:
    """What is asked for first, and what may take over the operators that it lacks."""
    known = {"cpu": ("",), "cuda": ("", "tf32"), "tensorrt": ("", "fp16", "bf16")}[device.kind]
    if settings.compute_type not in known:
        others = " or ".join(known[1:])
        raise EngineError(
            f"onnxruntime on {settings.device} cannot compute in {settings.compute_type!r}; "
            + (f"use {others}, or " if others else "use the type of the weights: ")
            + "leave --compute-type away, or make a model of that type with: mlserve optimize"
        )
    if device.kind == "cpu":
        return [("CPUExecutionProvider", {})]
    # CUDA rounds float32 to TF32 unless told not to.
    tf32 = str(int(settings.compute_type == "tf32"))
    cuda: Provider = ("CUDAExecutionProvider", {"device_id": device.number, "use_tf32": tf32})
    if device.kind == "cuda":
        return [cuda]
    return [("TensorrtExecutionProvider", _tensorrt_options(device, settings, digest)), cuda]


def _tensorrt_options(device: Device, settings: EngineSettings, digest: str) -> dict[str, Any]:
    """TensorRT compiles for minutes; with a cache it keeps what it compiled, and checks itself what it finds there."""
    options: dict[str, Any] = {"device_id": device.number}
    if settings.compute_type:
        options[f"trt_{settings.compute_type}_enable"] = True
    entry = _entry(settings, digest)
    if entry:
        options |= {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(entry.folder)}
        options |= {"trt_timing_cache_enable": True, "trt_timing_cache_path": str(entry.folder)}
    return options


def _entry(settings: EngineSettings, digest: str) -> CacheEntry | None:
    import onnxruntime

    # Neither the number of threads nor the arena goes into the graph.
    circumstances = {
        "engine": "onnxruntime",
        "version": onnxruntime.__version__,
        "device": settings.device,
        "compute_type": settings.compute_type,
        "graph_optimization": settings.graph_optimization,
    }
    return cache_entry(settings.cache, digest, circumstances)


def _open_cached(
    path: Path, settings: EngineSettings, entry: CacheEntry, providers: list[Provider]
) -> "InferenceSession":
    """The model as onnxruntime left it the last time: graph optimized, weights packed for the kernels and mapped from
    the file, so that all workers share them. The optimized graph alone brings nothing.
    """
    if entry.intact():
        try:
            return _create(entry.folder / _GRAPH, settings, providers, optimized=True)
        except Exception as error:  # as in open_session
            entry.discard(reason(error))
    try:
        with entry.making() as folder:
            return _create(path, settings, providers, keep_in=folder)
    except Exception as error:  # the disk is full or not writable; or it is the model, which then fails again
        session = _create(path, settings, providers)
        _log.warning("%s: the compiled model is not kept: %s", path, reason(error))
        return session


def _create(
    model: Path,
    settings: EngineSettings,
    providers: list[Provider],
    *,
    optimized: bool = False,
    keep_in: Path | None = None,
) -> "InferenceSession":
    import onnxruntime

    options = session_options(settings)
    if optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if keep_in:
        options.optimized_model_filepath = str(keep_in / _GRAPH)
        prefix = "session.optimized_model_external_initializers"
        options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
        options.add_session_config_entry(f"{prefix}_file_name", _WEIGHTS)
        options.add_session_config_entry(f"{prefix}_min_size_in_bytes", str(_LEAST_WEIGHT_BYTES))
    onnxruntime.set_default_logger_severity(_FATAL)
    # Both calls print to the terminal what we report as an error of our own.
    with contextlib.redirect_stdout(io.StringIO()):
        if providers[0][0] != "CPUExecutionProvider" and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        return onnxruntime.InferenceSession(str(model), options, providers, enable_fallback=0)
