"""An example is a request that its model takes, in every dialect that shows it, whatever the model's inputs are."""

import json
import shlex

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import TensorSpec
from mlserve.serve.catalog import ServedModel
from mlserve.serve.pages.example import example_question, example_v2
from mlserve.serve.pages.snippets import Address, curl, snippets
from mlserve.wire.plain import from_columns
from mlserve.wire.rest import decode_request
from mlserve.wire.signature import Signature

dims = st.one_of(st.integers(1, 5), st.sampled_from(["batch", "sequence"]))
dtypes = st.sampled_from(["bool", "uint8", "uint64", "int8", "int64", "float16", "float32", "float64", "object"])
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
specs = st.builds(TensorSpec, names, dtypes, st.lists(dims, max_size=3).map(tuple), st.sampled_from([None, 3]))
inputs = st.lists(specs, min_size=1, max_size=4, unique_by=lambda spec: spec.name)
ADDRESS = Address("http://127.0.0.1:8000", "127.0.0.1:8001", keyed=True)


def served(name, specs):
    return ServedModel(Signature(name, "1", specs, [TensorSpec("y", "float32", ("batch",))]), None, None)


@given(inputs)
def test_an_example_fits_its_model_in_every_dialect(specs):
    model = served("m", specs)
    question = json.loads(msgspec.json.encode(example_question(model)))
    tensors = from_columns(question["inputs"], model.signature)
    request = decode_request(msgspec.json.encode(example_v2(model)), model.signature, None)
    for name, array in tensors.items():
        assert array.tobytes() == request.inputs[name].tobytes() or array.dtype == object
        assert array.tolist() == request.inputs[name].tolist() or array.dtype == object


@given(names, inputs)
def test_python_examples_compile_whatever_the_names_are(name, specs):
    for way in snippets(served(name, specs), ADDRESS):
        if way.language == "python":
            compile(way.code, "example", "exec")


@given(names, st.text())
def test_a_shell_sees_one_url_and_one_body_whatever_is_in_them(name, body):
    words = shlex.split(curl(f"http://h/{name}", ADDRESS, body).replace(" \\\n  ", " "))
    assert words[:3] == ["curl", "-s", f"http://h/{name}"]
    assert words[-2:] == ["--data-raw", body]


def test_inputs_too_large_to_be_made_up_are_not_made_up():
    model = served("wide", [TensorSpec("x", "float32", ("batch", 1 << 20, 1 << 20))])
    with pytest.raises(InvalidRequest, match="too large"):
        example_question(model)


def test_integers_whose_bound_is_not_known_stay_in_every_vocabulary():
    model = served("m", [TensorSpec("ids", "int64", ("batch", 50))])
    assert set(example_question(model)["inputs"]["ids"][0]) == {0, 1}
