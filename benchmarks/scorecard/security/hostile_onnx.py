"""ONNX files that reach for what is not theirs: each adds to its input the numbers of a file outside its folder, or
brings code.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import SparseTensorProto, TensorProto, TrainingInfoProto, helper

__all__ = ["HOSTILE", "SECRET", "secret_bytes"]

SECRET = (73561.5, 73562.5, 73563.5, 73564.5, 73565.5, 73566.5)
"""What the file outside holds, as float32; no answer may hold it."""

Make = Callable[[Path, Path], None]
"""Writes `model.onnx` and what belongs to it into a folder; the second path is the file outside."""


def secret_bytes() -> bytes:
    """The file outside."""
    return np.array(SECRET, np.float32).tobytes()


def _tensor(location: str, **entries: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[6], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "length": "24", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def _model(*, nodes: Any = (), initializers: Any = (), functions: Any = (), domains: Any = (), sparse: Any = ()) -> Any:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6])
    add = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([*nodes, add], "g", [x], [y], list(initializers), sparse_initializer=list(sparse))
    imports = [helper.make_opsetid(domain, 1) for domain in domains]
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), *imports], ir_version=8, functions=list(functions)
    )


def _save(folder: Path, model: Any) -> None:
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def _named(location: str, **entries: str) -> Make:
    def make(folder: Path, outside: Path) -> None:
        there = location.format(outside=outside, up=os.path.relpath(outside, folder))
        _save(folder, _model(initializers=[_tensor(there, **entries)]))

    return make


def _beside(put: Callable[[Path, Path], None], location: str = "w.bin", **entries: str) -> Make:
    def make(folder: Path, outside: Path) -> None:
        put(folder, outside)
        _save(folder, _model(initializers=[_tensor(location, **entries)]))

    return make


def _twice(folder: Path, outside: Path) -> None:
    (folder / "w.bin").write_bytes(bytes(24))
    tensor = _tensor("w.bin")
    tensor.external_data.add(key="location", value=os.path.relpath(outside, folder))
    _save(folder, _model(initializers=[tensor]))


def _constant(outside: Path, folder: Path) -> Any:
    return helper.make_node("Constant", [], ["w"], value=_tensor(os.path.relpath(outside, folder)))


def _in_constant(folder: Path, outside: Path) -> None:
    _save(folder, _model(nodes=[_constant(outside, folder)]))


def _in_subgraph(folder: Path, outside: Path) -> None:
    given = helper.make_tensor_value_info("w", TensorProto.FLOAT, [6])
    inner = helper.make_graph([_constant(outside, folder)], "inner", [], [given])
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    choose = helper.make_node("If", ["yes"], ["w"], then_branch=inner, else_branch=inner)
    _save(folder, _model(nodes=[yes, choose]))


def _in_function(folder: Path, outside: Path) -> None:
    opset = helper.make_opsetid("", 17)
    function = helper.make_function("own", "Give", [], ["w"], [_constant(outside, folder)], [opset])
    give = helper.make_node("Give", [], ["w"], domain="own")
    _save(folder, _model(nodes=[give], functions=[function], domains=["own"]))


def _in_default(folder: Path, outside: Path) -> None:
    inner = helper.make_node("Constant", [], ["w"])
    inner.attribute.add(name="value", ref_attr_name="given", type=4)
    function = helper.make_function("own", "Give", [], ["w"], [inner], [helper.make_opsetid("", 17)])
    function.attribute_proto.append(helper.make_attribute("given", _tensor(os.path.relpath(outside, folder))))
    give = helper.make_node("Give", [], ["w"], domain="own")
    _save(folder, _model(nodes=[give], functions=[function], domains=["own"]))


def _sparse(folder: Path, outside: Path) -> None:
    values = _tensor(os.path.relpath(outside, folder))
    indices = helper.make_tensor("", TensorProto.INT64, [6], range(6))
    _save(folder, _model(sparse=[SparseTensorProto(values=values, indices=indices, dims=[6])]))


def _in_training(folder: Path, outside: Path) -> None:
    model = _model(initializers=[helper.make_tensor("w", TensorProto.FLOAT, [6], [0.0] * 6)])
    training = TrainingInfoProto()
    training.initialization.initializer.append(_tensor(os.path.relpath(outside, folder)))
    model.training_info.append(training)
    _save(folder, model)


def _code(operator: str, domain: str) -> Make:
    def make(folder: Path, outside: Path) -> None:
        node = helper.make_node(operator, ["x"], ["w"], domain=domain, notes=str(outside))
        _save(folder, _model(nodes=[node], domains=[domain]))

    return make


def _link(folder: Path, outside: Path) -> None:
    (folder / "w.bin").symlink_to(outside)


def _folder_link(folder: Path, outside: Path) -> None:
    (folder / "sub").symlink_to(outside.parent)


def _hard_link(folder: Path, outside: Path) -> None:
    os.link(outside, folder / "w.bin")


def _zeros(folder: Path, _: Path) -> None:
    (folder / "w.bin").write_bytes(bytes(24))


HOSTILE: dict[str, Make] = {
    "a link": _beside(_link),
    "a hard link": _beside(_hard_link),
    "..": _named("{up}"),
    "an absolute path": _named("{outside}"),
    "a backslash": _named("..\\outside\\secret.bin"),
    "a zero byte": _named("w.bin\0{up}"),
    "a link on the way": _beside(_folder_link, "sub/secret.bin"),
    "two locations": _twice,
    "a negative offset": _beside(_zeros, offset="-24"),
    "a huge length": _beside(_zeros, length=str(2**63)),
    "an unknown key": _beside(_zeros, surprise="1"),
    "a sparse tensor": _sparse,
    "a constant": _in_constant,
    "a subgraph": _in_subgraph,
    "a function": _in_function,
    "a function's default": _in_default,
    "training": _in_training,
    "EPContext": _code("EPContext", "com.microsoft"),
    "a domain of its own": _code("Custom", "evil.example"),
    "Python code": _code("PyOp", "com.microsoft"),
}
