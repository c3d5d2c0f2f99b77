"""The seam every engine fits: `run` maps named arrays to named arrays."""

from typing import Literal, Protocol

import msgspec

from mlserve.model.tensors import Tensors, TensorSpec

__all__ = ["Engine", "EngineSettings", "Execution", "GraphOptimization"]

GraphOptimization = Literal["off", "basic", "extended", "all"]


class EngineSettings(msgspec.Struct, frozen=True):
    """How a model is run. `threads` work on one run together, or on `streams` runs side by side.

    `split_batches` cuts large batches into a piece for each thread, which takes the memory of the model twice; None is
    what the artifact was made for.

    `device` is `cpu`, `cuda` or `cuda:N` (onnxruntime, torch), `tensorrt` or `tensorrt:N` (onnxruntime), `gpu` or
    `gpu:N` (OpenVINO: Intel's). `engine` and `compute_type` are empty for what the artifact was made for; the compute
    type "" is that of the weights, never a narrower one. `cache` is a folder that keeps compiled forms of published
    models, so that they load quicker the next time; "" keeps none.

    `graph_optimization`, `memory_arena` and `io_binding` are onnxruntime's, and an error with another engine. Their
    defaults were measured (see `onnx_session`).
    """

    device: str = "cpu"
    threads: int = 1
    engine: str = ""
    compute_type: str = ""
    graph_optimization: GraphOptimization = "all"
    memory_arena: bool = True
    io_binding: bool = False
    cache: str = ""
    streams: int = 1
    split_batches: bool | None = None


class Execution(msgspec.Struct, frozen=True):
    """What a loaded model really runs on, as the engine tells once it is loaded.

    `provider` is onnxruntime's execution provider (`CPUExecutionProvider`) or the engine and its device
    (`openvino CPU`, `torch cuda:0`). `precision` is the type it computes in, "" where that is the type of the weights.
    """

    provider: str = ""
    precision: str = ""


class Engine(Protocol):
    """A loaded model.

    **Law:** `run` maps named arrays `[rows, ...]` to named arrays `[rows, ...]`, row i from row i; it may be called
    from several threads at once. What it raises is EngineError, or InvalidRequest for values the model refuses.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    execution: Execution

    def run(self, inputs: Tensors) -> Tensors: ...

    def close(self) -> None:
        """Frees the model; `run` must not be called afterwards."""
        ...
