"""Versions of the known model that must not be served: spoilt in every way, put into a store as by a copying tool."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from scorecard.known import MODEL, write_known

from mlserve.model.artifact import MODEL_FILE, Manifest, record_files, write_manifest
from mlserve.model.tensors import TensorSpec

__all__ = ["FAULTS", "Spoil", "flip", "keep_weights_beside", "make_version", "put_version"]

Spoil = Callable[[Path], None]
"""Does something to the folder of a version."""

WEIGHTS = "model.weights"


def put_version(root: Path, version: int, fault: str = "", name: str = MODEL) -> Path:
    """Puts `version` of `name`, spoilt as FAULTS says, into the store at `root`, whole, by one rename."""
    folder = make_version(root / f".made-{version}", version, fault, name)
    return folder.rename(root / name / str(version))


def make_version(folder: Path, version: int, fault: str = "", name: str = MODEL) -> Path:
    """The same in a folder that is no version yet."""
    before, after, inputs = FAULTS[fault] if fault else (None, None, ("batch", 2))
    folder.mkdir()
    write_known(folder / MODEL_FILE, version)
    if before:
        before(folder)
    manifest = Manifest(
        variant="fp32",
        name=name,
        version=version,
        inputs=(TensorSpec("x", "float32", inputs),),
        outputs=(TensorSpec("y", "float32", ("batch", 2)),),
        files=record_files(folder),
    )
    write_manifest(folder, manifest)
    if after:
        after(folder)
    return folder


def flip(path: Path) -> None:
    """Changes one bit in the middle of the file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def keep_weights_beside(folder: Path) -> None:
    """Moves the model's constants into a file of their own."""
    model = onnx.load(folder / MODEL_FILE)
    onnx.save(model, folder / MODEL_FILE, save_as_external_data=True, location=WEIGHTS, size_threshold=0)


def _rewrite(change: Callable[[onnx.ModelProto], None]) -> Spoil:
    def spoil(folder: Path) -> None:
        model = onnx.load(folder / MODEL_FILE)
        change(model)
        (folder / MODEL_FILE).write_bytes(model.SerializeToString())

    return spoil


def _of_no_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def _of_half_a_terabyte(model: onnx.ModelProto) -> None:
    """Repeats its input 2**36 times before it takes the largest of all: loads well, and can never run."""
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array([2**36, 1, 1], np.int64), "often"))
    graph.node[0].output[0] = "product"
    graph.node.append(helper.make_node("Expand", ["product", "often"], ["repeated"]))
    graph.node.append(helper.make_node("ReduceMax", ["repeated"], ["y"], axes=[0], keepdims=0))


def _without_weights(folder: Path) -> None:
    keep_weights_beside(folder)
    (folder / WEIGHTS).unlink()


def _truncate(folder: Path) -> None:
    path = folder / MODEL_FILE
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FAULTS: dict[str, tuple[Spoil | None, Spoil | None, tuple[str | int, ...]]] = {
    "truncated": (None, _truncate, ("batch", 2)),
    "another shape than its manifest says": (None, None, ("batch", 3)),
    "out of memory at warm-up": (_rewrite(_of_half_a_terabyte), None, ("batch", 2)),
    "corrupted": (None, lambda folder: flip(folder / MODEL_FILE), ("batch", 2)),
    "zero bytes": (lambda folder: (folder / MODEL_FILE).write_bytes(b"") and None, None, ("batch", 2)),
    "an unknown opset": (_rewrite(_of_no_opset), None, ("batch", 2)),
    "missing external data": (_without_weights, None, ("batch", 2)),
    "a flipped bit in external data": (keep_weights_beside, lambda folder: flip(folder / WEIGHTS), ("batch", 2)),
    "a file too many": (
        None,
        lambda folder: shutil.copy(folder / MODEL_FILE, folder / "more.bin") and None,
        ("batch", 2),
    ),
}
"""What is done to the folder before its manifest is written, what after, and the shape of `x` in the manifest."""
