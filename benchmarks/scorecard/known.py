"""A model whose every answer is known bit for bit before it is asked, in as many versions as wanted, as slow as wanted.

`x` float32 [batch, 2] -> `y` = `x` times a factor of the version's own: small whole numbers, so that numpy, JSON and
any engine agree on every bit.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec

__all__ = ["MODEL", "expected", "factor_of", "payload", "publish", "write_known"]

MODEL = "known"
_FACTORS = 1000
_LOW = 1 << 14
_SIDE = 64
_TRIALS = 300


def factor_of(version: int) -> int:
    """What a version multiplies by: 2 for the first, and another for each of its neighbours."""
    return 2 + (version - 1) % _FACTORS


def payload(number: int) -> tuple[float, float]:
    """The row that request `number` asks, which no other number below 2**28 asks."""
    return float(1 + number % _LOW), -float(1 + number // _LOW)


def expected(number: int, version: int) -> tuple[float, float]:
    """What `version` answers to `payload(number)`, as numpy multiplies."""
    factor = np.float32(factor_of(version))
    first, second = payload(number)
    return float(np.float32(first) * factor), float(np.float32(second) * factor)


def publish(root: Path, name: str = MODEL, versions: Iterable[int] = (1,), run_s: float = 0.0) -> Store:
    """A store at `root` with `name` in all `versions`, added in this order, which must be 1, 2, 3 ... of a new name.

    The first is promoted. `run_s` as in `write_known`.
    """
    store = Store(root)
    specs = [(TensorSpec(tensor, "float32", ("batch", 2)),) for tensor in "xy"]
    versions = list(versions)
    for version in versions:
        with store.staging() as folder:
            (folder / "made").mkdir()
            write_known(folder / "made" / MODEL_FILE, version, run_s)
            store.add(Artifact(folder / "made", Manifest(variant="fp32", inputs=specs[0], outputs=specs[1])), name)
    store.promote(name, versions[0])
    return store


def write_known(path: Path, version: int = 1, run_s: float = 0.0) -> Path:
    """The model as an ONNX file. One run takes about `run_s` seconds more than the multiplication, whatever the rows.

    How many turns of a loop that takes is measured here and at once, with one thread.
    """
    from onnx import save_model

    turns = round(run_s / _turn_s(path)) if run_s else 0
    save_model(_model(factor_of(version), turns), path)
    return path


def _turn_s(path: Path) -> float:
    """How long one turn of the loop takes on this machine."""
    import onnxruntime
    from onnx import save_model

    save_model(_model(1, _TRIALS), path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    took_s = []
    for _ in range(5):
        started_s = time.perf_counter()
        session.run(None, {"x": np.ones((1, 2), np.float32)})
        took_s.append(time.perf_counter() - started_s)
    return min(took_s) / _TRIALS


def _model(factor: int, turns: int) -> Any:
    """`y = x * factor`, and, where there are `turns`, plus nothing that so many products of matrices have come to."""
    from onnx import TensorProto, helper, numpy_helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy")
    constants = [numpy_helper.from_array(np.float32(factor), "factor")]
    nodes = [helper.make_node("Mul", ["x", "factor"], ["product" if turns else "y"])]
    if turns:
        # Orthogonal, so that the products stay finite; it begins with something of x, so that nothing is folded away.
        side, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((_SIDE, _SIDE)))
        given = {
            "nothing": np.float32(0),
            "turns": np.int64(turns),
            "yes": np.bool_(True),
            "side": side.astype(np.float32),
        }
        constants += [numpy_helper.from_array(np.asarray(value), name) for name, value in given.items()]
        nodes += [
            helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
            helper.make_node("Mul", ["largest", "nothing"], ["seed"]),
            helper.make_node("Add", ["side", "seed"], ["first"]),
            helper.make_node("Loop", ["turns", "yes", "first"], ["last"], body=_turn()),
            helper.make_node("ReduceMax", ["last"], ["end"], keepdims=0),
            helper.make_node("Mul", ["end", "nothing"], ["gone"]),
            helper.make_node("Add", ["product", "gone"], ["y"]),
        ]
    graph = helper.make_graph(nodes, "known", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _turn() -> Any:
    from onnx import TensorProto, helper

    square = [_SIDE, _SIDE]
    inputs = [
        helper.make_tensor_value_info("turn", TensorProto.INT64, []),
        helper.make_tensor_value_info("on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("before", TensorProto.FLOAT, square),
    ]
    outputs = [
        helper.make_tensor_value_info("still", TensorProto.BOOL, []),
        helper.make_tensor_value_info("after", TensorProto.FLOAT, square),
    ]
    nodes = [
        helper.make_node("MatMul", ["before", "side"], ["after"]),
        helper.make_node("Identity", ["on"], ["still"]),
    ]
    return helper.make_graph(nodes, "turn", inputs, outputs)
