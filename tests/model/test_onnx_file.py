"""An ONNX file is looked through before anything executes it: it may name no file outside its own folder."""

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, save_model

from mlserve.errors import ModelFileError
from mlserve.model.onnx_file import inspect_onnx

WEIGHTS = np.arange(6, dtype=np.float32)


def external(location, **entries):
    """A tensor of 6 floats that `location` is said to hold."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[6], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "length": "24", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def model_with(tensor, place="initializer"):
    """A model that keeps `tensor` in one of the places where ONNX allows one."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [6]) for name in "xy")
    nodes, initializers, functions = [helper.make_node("Add", ["x", "w"], ["y"])], [], []
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    if place == "initializer":
        initializers = [tensor]
    elif place == "constant":
        nodes = [constant, *nodes]
    elif place == "subgraph":
        inner = helper.make_graph([constant], "inner", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, [6])])
        yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
        nodes = [yes, helper.make_node("If", ["yes"], ["w"], then_branch=inner, else_branch=inner), *nodes]
    elif place == "function":
        opset = helper.make_opsetid("", 17)
        functions = [helper.make_function("mine", "Give", [], ["w"], [constant], [opset])]
        nodes = [helper.make_node("Give", [], ["w"], domain="mine"), *nodes]
    elif place == "default":
        functions = [helper.make_function("mine", "Give", [], ["w"], [], [helper.make_opsetid("", 17)])]
        functions[0].attribute_proto.append(helper.make_attribute("given", tensor))
        nodes = [helper.make_node("Give", [], ["w"], domain="mine"), *nodes]
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    if place == "sparse":
        indices = helper.make_tensor("", TensorProto.INT64, [6], range(6))
        graph.sparse_initializer.add(values=tensor, indices=indices, dims=[6])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8, functions=functions)
    if place == "training":
        model.training_info.add().initialization.initializer.append(tensor)
    return model


@pytest.fixture
def folder(tmp_path):
    """`outside/secret.bin`, and an empty `model` folder beside it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.bin").write_bytes(WEIGHTS.tobytes())
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def inspect(folder, model):
    folder.joinpath("model.onnx").write_bytes(model.SerializeToString())
    return inspect_onnx(folder / "model.onnx")


PLACES = ["initializer", "sparse", "constant", "subgraph", "function", "default", "training"]


@pytest.mark.parametrize("place", PLACES)
def test_external_data_beside_the_model_is_taken(folder, place):
    (folder / "weights.bin").write_bytes(WEIGHTS.tobytes())
    assert inspect(folder, model_with(external("weights.bin"), place)).external_files == ("weights.bin",)
    (folder / "sub").mkdir()
    (folder / "weights.bin").rename(folder / "sub" / "weights.bin")
    assert inspect(folder, model_with(external("sub/weights.bin"), place)).external_files == ("sub/weights.bin",)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("{outside}/secret.bin", "lies outside the model's folder"),
        ("../outside/secret.bin", "lies outside the model's folder"),
        ("sub/../../outside/secret.bin", "lies outside the model's folder"),
        ("..\\outside\\secret.bin", "lies outside the model's folder"),
        ("", "lies outside the model's folder"),
        (".", "lies outside the model's folder"),
        ("link.bin\0", "lies outside the model's folder"),
        ("n" * 5000, "is missing"),
        ("link.bin", "is reached through a link"),
        ("linked/secret.bin", "is reached through a link"),
        ("hard.bin", "not a plain file with one name"),
        ("sub", "not a plain file with one name"),
        ("pipe", "not a plain file with one name"),
        ("missing.bin", "is missing; copy it beside the model"),
    ],
)
def test_external_data_elsewhere_is_refused_wherever_the_tensor_stands(folder, place, location, message):
    outside = folder.parent / "outside"
    (folder / "sub").mkdir()
    (folder / "link.bin").symlink_to(outside / "secret.bin")
    (folder / "linked").symlink_to(outside)
    os.link(outside / "secret.bin", folder / "hard.bin")
    os.mkfifo(folder / "pipe")
    with pytest.raises(ModelFileError, match=message):
        inspect(folder, model_with(external(location.format(outside=outside)), place))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"length": "25"}, "needs bytes 0 to 25 of weights.bin, which has 24"),
        ({"offset": "1"}, "needs bytes 1 to 25"),
        ({"offset": "-1"}, "has offset '-1'"),
        ({"length": "1e3"}, "has length '1e3'"),
        ({"length": "\u0662\u0664"}, "has length '"),
        ({"length": "9" * 5000}, "has length '9"),
        ({"surprise": "1"}, "unknown or repeated key 'surprise'"),
    ],
)
def test_external_data_that_is_not_all_there_is_refused(folder, entries, message):
    (folder / "weights.bin").write_bytes(WEIGHTS.tobytes())
    inspect(folder, model_with(external("weights.bin")))
    with pytest.raises(ModelFileError, match=message):
        inspect(folder, model_with(external("weights.bin", **entries)))


def test_a_location_given_twice_is_refused(folder):
    (folder / "weights.bin").write_bytes(WEIGHTS.tobytes())
    tensor = external("weights.bin")
    tensor.external_data.add(key="location", value="../outside/secret.bin")
    with pytest.raises(ModelFileError, match="unknown or repeated key 'location'"):
        inspect(folder, model_with(tensor))


def test_a_reference_without_the_external_mark_is_checked_too(folder):
    tensor = external("../outside/secret.bin")
    tensor.data_location = TensorProto.DEFAULT
    with pytest.raises(ModelFileError, match="lies outside the model's folder"):
        inspect(folder, model_with(tensor))


@pytest.mark.parametrize("content", [b"", b"\0", b"no model", b"PK\x03\x04" + b"\0" * 100, b"{}" * 50])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"model\.onnx (is no ONNX model|holds no ONNX graph)"):
        inspect_onnx(tmp_path / "model.onnx")


@pytest.mark.parametrize("path", ["missing.onnx", "."])
def test_a_path_that_cannot_be_read_is_named(tmp_path, path):
    with pytest.raises(ModelFileError, match="cannot be read"):
        inspect_onnx(tmp_path / path)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_truncated_or_damaged_model_is_read_or_refused(tiny_onnx, tmp_path, data):
    content = bytearray(tiny_onnx.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, 400))] = data.draw(st.integers(0, 255))
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        told = f"{path} uses {inspect_onnx(path).operators}"
    except ModelFileError as error:
        told = str(error)
    assert str(path) in told


def test_code_compiled_for_one_device_is_refused(folder):
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [6]) for name in "xy")
    graph = helper.make_graph([node], "g", [x], [y])
    with pytest.raises(ModelFileError, match="code compiled for one device"):
        inspect(folder, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


@pytest.mark.parametrize(
    ("operator", "domain", "told"),
    [
        ("Custom", "evil.example", "needs the operator 'Custom' of 'evil.example', which is a library of its own"),
        ("Add", "evil.example", "needs the operator 'Add' of 'evil.example'"),
        ("PyOp", "com.microsoft", r"holds Python code \(PyOp\)"),
        ("PythonOp", "", r"holds Python code \(PythonOp\)"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_operators_that_are_code_are_refused_wherever_they_stand(folder, operator, domain, told, inside):
    model = model_with(
        helper.make_tensor("w", TensorProto.FLOAT, [6], WEIGHTS), "subgraph" if inside else "initializer"
    )
    node = helper.make_node(operator, ["w"], ["v"], domain=domain)
    (model.graph.node[1].attribute[0].g if inside else model.graph).node.append(node)
    with pytest.raises(ModelFileError, match=told):
        inspect(folder, model)


def test_an_operator_of_its_own_domain_is_taken_where_the_file_says_what_it_is(folder):
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [6], WEIGHTS)
    assert "Give" in inspect(folder, model_with(tensor, "function")).operators
    model = model_with(tensor, "function")
    del model.functions[:]
    with pytest.raises(ModelFileError, match="needs the operator 'Give' of 'mine'"):
        inspect(folder, model)


def test_what_selects_rows_of_a_table_is_bounded_by_it(tmp_path):
    tables = [
        numpy_helper.from_array(np.zeros((size, 2), np.float32), name) for name, size in (("big", 50), ("small", 10))
    ]
    ids, other = (helper.make_tensor_value_info(name, TensorProto.INT32, ["batch"]) for name in ("ids", "other"))
    nodes = [
        helper.make_node("Cast", ["ids"], ["long"], to=TensorProto.INT64),
        helper.make_node("Gather", ["big", "long"], ["a"]),
        helper.make_node("Gather", ["small", "ids"], ["b"]),
        helper.make_node("Gather", ["big", "other"], ["c"], axis=1),
        helper.make_node("Sum", ["a", "b"], ["y"]),
    ]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [ids, other], [y], tables), opset_imports=[helper.make_opsetid("", 17)]
    )
    save_model(model, tmp_path / "model.onnx")
    file = inspect_onnx(tmp_path / "model.onnx")
    assert file.bounds == {"ids": 10}
    assert file.opset == 17
    assert file.operators == {"Cast", "Gather", "Sum"}
