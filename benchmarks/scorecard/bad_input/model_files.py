"""D3: ONNX files whose fields and bytes were changed at random are loaded or refused, and crash no server."""

import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from onnx import ModelProto, TensorProto, helper, numpy_helper
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.driver import Load, driving
from scorecard.known import MODEL, publish
from scorecard.lifecycle.failed_loads import index_entry
from scorecard.server import Server, serving_known
from scorecard.spoilt_versions import put_version

from mlserve.engines.engine import EngineSettings
from mlserve.errors import MlserveError
from mlserve.model.store import Store
from mlserve.serve.trial import Trial, limit_process, load_and_run

__all__ = ["CASE", "mutated", "seeds"]

_FILES = {"seconds": 60, "short": 600, "long": 2000}
_LONGEST_S = 10.0
_PER_S = 150.0
_PATIENCE_S = 40.0
_LOADED, _REFUSED = 0, 3

_CRASHES = """
import os
import mlserve.engines.opening as opening

right = opening.open_engine

def crash(artifact, settings=None):
    if artifact.manifest.version == 2:
        os.abort()
    return right(artifact, settings)

opening.open_engine = crash
"""
"""Ends every process that loads version 2, as some files do."""

_UNTRIED = """
import mlserve.serve.loading as loading

loading.try_model = lambda *_: None
"""


def run(stage: Stage) -> Outcome:
    with ThreadPoolExecutor(1) as threads:
        fuzzing = threads.submit(_fuzz, stage.folder, _FILES[stage.form])
        crashed, control = _crash_servers(stage.folder)
        counts, longest_s, slow = fuzzing.result()
    raised = f"{counts['raised']} files raised what is no error of ours" if counts["raised"] else ""
    faults = [
        raised,
        f"{len(slow)} files took longer than {_LONGEST_S:g} s: {', '.join(slow[:3])}" if slow else "",
        crashed,
    ]
    fault = "; ".join(filter(None, faults))
    crashes = sum(count for name, count in counts.items() if name not in ("loaded", "refused", "ended", "raised"))
    told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return Outcome(
        passed=not fault,
        found=fault
        or f"of {sum(counts.values())} files {told}, each in a process of its own, at most {longest_s:.1f} s; "
        "a server that meets one which crashes goes on with the version before",
        figures=(
            Figure("files", sum(counts.values())),
            Figure("longest", longest_s, "s", "at most 10"),
            Figure("crashed the process that tried them", crashes),
            Figure("crashed a server", 0 if not crashed else 1, limit="0"),
        ),
        control=f"a server that loads them in its workers untried: {control or 'nothing wrong'}",
        control_failed=bool(control),
    )


def _fuzz(folder: Path, files: int) -> tuple[Counter[str], float, list[str]]:
    """What became of each file, how long the slowest took, and which took too long.

    They are loaded by the code of a server's trial, under its limits, in a process each; one that has imported
    everything forks them, or most of the time would go into that.
    """
    counts: Counter[str] = Counter()
    longest_s, slow = 0.0, []
    kinds = list(seeds())
    path, log = folder / "mutated.onnx", folder / "trials"
    with log.open("w") as told, subprocess.Popen(
        [sys.executable, __file__, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=told, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(files):
            rng = random.Random(number)
            path.write_bytes(mutated(rng.choice(kinds), rng))
            process.stdin.write("\n")
            process.stdin.flush()
            line = process.stdout.readline().split()
            if not line:
                raise RuntimeError(f"the process that forks trials has ended: {log.read_text()[-500:]}")
            counts[line[0]] += 1
            longest_s = max(longest_s, float(line[1]))
            slow += [str(number)] if float(line[1]) > _LONGEST_S else []
        process.stdin.close()
    return counts, longest_s, slow


def _crash_servers(folder: Path) -> tuple[str, str]:
    """What is wrong with a server that meets a file which crashes, and with one that loads it untried."""
    # A store each: what one is told to serve, the other would meet before its turn.
    folders = {folder / "tried": _CRASHES, folder / "untried": _CRASHES + _UNTRIED}
    stores = [publish(each / "store") for each in folders]
    with ExitStack() as stack, ThreadPoolExecutor(2) as threads:
        starting = [
            threads.submit(stack.enter_context, serving_known(each, "--no-cache", plant=plant))
            for each, plant in folders.items()
        ]
        servers = [each.result() for each in starting]
        tried, untried = (_meet(server, store) for server, store in zip(servers, stores, strict=True))
        return tried, untried


def _meet(server: Server, store: Store) -> str:
    """What was wrong while version 2 was wanted; empty for nothing."""
    put_version(store.root, 2)
    store.promote(MODEL, 1)
    workers = {worker.pid for worker in server.workers}
    refused = False
    with driving(server.endpoints, Load(per_s=_PER_S, seconds=60.0, ways=("http", "grpc"))) as running:
        time.sleep(0.2)
        store.promote(MODEL, 2)
        deadline_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline_s and not refused and not running.so_far("lost", "error"):
            with suppress(OSError, HTTPException):
                entry = index_entry(server, 2)
                refused = entry is not None and entry["state"] == "UNAVAILABLE"
            time.sleep(0.05)
        time.sleep(0.2)
        running.stop()
    store.promote(MODEL, 1)
    died = workers - {worker.pid for worker in server.workers}
    return "; ".join(
        filter(
            None,
            [f"{len(died)} workers died" if died else "" if refused else "it was not refused", running.driven.not_ok],
        )
    )


def seeds() -> Iterator[bytes]:
    """Small models of every kind of operator that reads its attributes and shapes in a way of its own."""
    for nodes, inputs, outputs, constants in _graphs():
        graph = helper.make_graph(
            nodes,
            "seed",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        )
        domains = [("", 17), ("ai.onnx.ml", 3), ("com.microsoft", 1)]
        imports = [helper.make_opsetid(domain, version) for domain, version in domains]
        yield helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()


def _graphs() -> Iterator[tuple[list[Any], dict[str, list[Any]], dict[str, int], dict[str, Any]]]:
    node, floats = helper.make_node, TensorProto.FLOAT
    rng = np.random.default_rng(0)

    def numbers(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    y = {"y": floats}
    layers = [node("Gemm", ["x", "w", "b"], ["h"]), node("Relu", ["h"], ["r"]), node("Softmax", ["r"], ["y"])]
    yield layers, {"x": ["n", 8]}, y, {"w": numbers(8, 4), "b": numbers(4)}
    layers = [
        node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1], strides=[1, 1]),
        node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Reshape", ["p", "s"], ["y"]),
    ]
    yield layers, {"x": ["n", 1, 8, 8]}, y, {"k": numbers(4, 1, 3, 3), "s": np.array([0, -1], np.int64)}
    lstm = node("LSTM", ["x", "w", "r"], ["y"], hidden_size=3)
    yield [lstm], {"x": [4, "n", 2]}, y, {"w": numbers(1, 12, 2), "r": numbers(1, 12, 3)}
    quantized = node("DynamicQuantizeMatMul", ["x", "w", "s", "z"], ["y"], domain="com.microsoft")
    given = {"w": np.ones((8, 4), np.uint8), "s": np.float32([0.1]), "z": np.uint8([0])}
    yield [quantized], {"x": ["n", 8]}, y, given
    blocks = node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=32, N=4, bits=4, block_size=32)
    yield [blocks], {"x": ["n", 32]}, y, {"w": np.ones((4, 1, 16), np.uint8), "s": numbers(4)}
    layers = [node("TopK", ["x", "k"], ["v", "i"]), node("Slice", ["v", "from", "to"], ["y"])]
    yield layers, {"x": ["n", 8]}, y, {"k": np.int64([3]), "from": np.int64([0]), "to": np.int64([2])}
    layers = [
        node("Split", ["x"], ["a", "b"], axis=1),
        node("Concat", ["a", "b", "a"], ["c"], axis=1),
        node("Pad", ["c", "p"], ["y"]),
    ]
    yield layers, {"x": ["n", 8]}, y, {"p": np.int64([0, 1, 0, 1])}
    attention = node("Attention", ["x", "w", "b"], ["y"], domain="com.microsoft", num_heads=2)
    yield [attention], {"x": ["n", 4, 8]}, y, {"w": numbers(8, 24), "b": numbers(24)}
    yield (
        [node("Resize", ["x", "", "s"], ["y"], mode="linear")],
        {"x": ["n", 1, 4, 4]},
        y,
        {"s": np.float32([1, 1, 2, 2])},
    )
    tree = node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1, nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0], nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_values=[0.5, 0.0, 0.0], nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0], target_ids=[0, 0],
        target_nodeids=[1, 2], target_treeids=[0, 0], target_weights=[1.0, 2.0],
    )  # fmt: skip
    yield [tree], {"x": ["n", 4]}, y, {}


_WHOLE = [0, 1, -1, 2, 7, 127, 255, -128, 2**31 - 1, -(2**31), 2**32, 2**62, -(2**63), 2**63 - 1, 1_000_000]
_REAL = [0.0, -0.0, -1.0, 1e38, float("nan"), float("inf")]
_WORDS = ["", "x", "y", "w", "Gemm", "Conv", "Loop", "If", "Scan", "Gather", "Reshape", "Cast", "Expand", "Tile",
          "ConstantOfShape", "Range", "ScatterND", "OneHot", "Einsum", "QLinearMatMul", "com.microsoft",
          "a" * 5000]  # fmt: skip


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The model with one to three of its fields changed, or, one time in four, of its bytes."""
    if rng.random() < 0.25:
        return _bytes_changed(content, rng)
    model = ModelProto()
    model.ParseFromString(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        with suppress(ValueError, TypeError, AttributeError):  # what protobuf does not let a field be
            _change(rng.choice(list(_messages(model))), rng)
    return bytes(model.SerializeToString())


def _bytes_changed(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        place, length = rng.randrange(len(changed)), rng.choice([1, 2, 4, 16])
        match rng.randrange(3):
            case 0:
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                del changed[place : place + length]
            case _:
                changed[place : place + length] = rng.randbytes(length)
        changed = changed or bytearray(1)
    return bytes(changed)


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for each in [value] if hasattr(value, "ListFields") else value:
                yield from _messages(each)


def _change(message: Any, rng: random.Random) -> None:
    """One field of it: another value, one more or one less of a list."""
    field, value = rng.choice(message.ListFields())
    is_message = field.type == FieldDescriptor.TYPE_MESSAGE
    if isinstance(value, (str, bytes, int, float)):
        setattr(message, field.name, _value(field, value, rng))
    elif hasattr(value, "ListFields"):
        _change(value, rng)
    else:
        place = rng.randrange(len(value))
        match rng.randrange(3):
            case 0:
                del value[place]
            case 1 if is_message:
                value.add().CopyFrom(value[place])
            case 1:
                value.append(value[place])
            case _ if is_message:
                _change(value[place], rng)
            case _:
                value[place] = _value(field, value[place], rng)


def _value(field: Any, before: Any, rng: random.Random) -> Any:
    match before:
        case bytes():
            return rng.choice([b"", before[:-1], before + b"\0", before * 2, rng.randbytes(len(before))])
        case str():
            return rng.choice([*_WORDS, before[:-1], before + "x"])
        case float():
            return rng.choice(_REAL)
        case _ if field.enum_type is not None:
            return rng.choice([each.number for each in field.enum_type.values])
        case _:
            return rng.choice([*_WHOLE, before + 1, before - 1, before * 2])


def _try_each(path: Path) -> None:
    """For each line of stdin, loads the file at `path` in a fork; tells what became of it, and how long it took."""
    trial = Trial(str(path), EngineSettings(), 32, 8 << 30, 6, 9.0)
    for _ in sys.stdin:
        started_s = time.monotonic()
        child = os.fork()
        if child == 0:
            os._exit(_try(trial))
        _, status = os.waitpid(child, 0)
        kind = {_LOADED: "loaded", _REFUSED: "refused"}.get(os.waitstatus_to_exitcode(status), "raised")
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            kind = "ended" if number in (signal.SIGALRM, signal.SIGXCPU) else signal.Signals(number).name
        print(kind, time.monotonic() - started_s, flush=True)


def _try(trial: Trial) -> int:
    try:
        sys.stdout = sys.stderr
        signal.alarm(round(trial.clock_s))
        limit_process(trial)
        load_and_run(trial)
    except (MlserveError, MemoryError):
        return _REFUSED
    except BaseException:
        traceback.print_exc()
        return 1
    return _LOADED


CASE = Case(
    id="D3",
    title="Changed model files",
    criterion="each is loaded or refused within 10 s; none ends a server",
    source="onnx's fuzz targets",
    run=run,
)

if __name__ == "__main__":
    _try_each(Path(sys.argv[1]))
