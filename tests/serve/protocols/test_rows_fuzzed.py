"""Whatever a body holds, a dialect by rows reads it or refuses it as the client's fault: never by another error."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import RequestError
from mlserve.model.tensors import TensorSpec
from mlserve.serve.catalog import ServedModel
from mlserve.serve.protocols import azure, invocations, torchserve, vertex
from mlserve.serve.tasks.task import Asked
from mlserve.wire.signature import Signature

SCORES = [TensorSpec("scores", "float32", ("batch", 2)), TensorSpec("word", "object", ("batch",))]


class Reader:
    kind, example, idle = "image", b"", True


def served(*inputs, task=None):
    signature = Signature("m", "1", [TensorSpec(*spec) for spec in inputs], SCORES)
    return ServedModel(signature, None, None, task=task)


MODELS = [
    served(("x", "float32", ("batch", 2))),
    served(("x", "int64", ("batch",)), ("data", "object", ("batch", 1)), ("flag", "bool", ("batch", "n"))),
    served(("x", "float16", ())),
    served(("x", "object", ("batch",))),
    served(("x", "uint8", (1, 2, 2))),
    served(("x", "float32", ("batch", 2)), task=Reader()),
]
NAMES = [
    "x",
    "data",
    "flag",
    "body",
    "text",
    "image",
    "b64",
    "instances",
    "inputs",
    "input_data",
    "params",
    "parameters",
    "columns",
    "index",
    "dataframe_split",
    "dataframe_records",
    "name",
    "datatype",
    "shape",
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["", "aGk=", "FP32", "é", "\ud800", "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=12,
)
FRAMES = st.sampled_from(["data", "instances", "inputs", "input_data", "dataframe_split", "dataframe_records", ""])
KINDS = st.sampled_from(
    [
        "",
        "application/json",
        "text/csv",
        "text/plain",
        "application/x-npy",
        "image/png",
        "multipart/form-data; boundary=b",
        "application/vnd.sagemaker-triton.binary+json;json-header-size=9",
    ]
)
ACCEPTED = st.sampled_from(["", "text/csv", "application/x-npy", "application/json"])


def read(dialect, body, model, kind, accept):
    """What is decoded; None for what is refused as the client's fault."""
    headers = {b"content-type": kind.encode(), b"accept": accept.encode()}
    try:
        found = dialect.INFERENCE.decode(body, model, headers)
    except RequestError as error:
        status = error.http_status
        return None if 400 <= status < 500 else pytest.fail(f"{status} is not the client's fault")
    if isinstance(found, Asked):
        assert found.values
    else:
        assert found.inputs.keys() == model.signature.inputs.keys()
        outputs = {"scores": np.zeros((found.rows, 2), np.float32), "word": np.array([b"a\xff"] * found.rows, object)}
        assert dialect.INFERENCE.encode(model, found, outputs).body
    return found


@pytest.mark.parametrize("dialect", [torchserve, invocations, vertex, azure])
@given(value=VALUES, frame=FRAMES, which=st.integers(0, len(MODELS) - 1), kind=KINDS, accept=ACCEPTED)
def test_any_json_is_read_or_refused(dialect, value, frame, which, kind, accept):
    body = json.dumps({frame: value} if frame else value).encode()
    read(dialect, body, MODELS[which], kind if kind in ("", "text/plain") else "application/json", accept)


@pytest.mark.parametrize("dialect", [torchserve, invocations, vertex, azure])
@given(
    body=st.binary(max_size=60) | st.text("\"',;\n\r\0aé1.-", max_size=30).map(str.encode),
    which=st.integers(0, len(MODELS) - 1),
    kind=KINDS,
    accept=ACCEPTED,
)
def test_any_bytes_are_read_or_refused(dialect, body, which, kind, accept):
    read(dialect, body, MODELS[which], kind, accept)


@given(value=st.lists(st.lists(st.floats(-1, 1), min_size=2, max_size=2), min_size=1, max_size=4))
def test_good_rows_are_read_by_all(value):
    """The negative control: what is right is not refused."""
    for dialect, body in (
        (torchserve, value),
        (invocations, {"instances": value}),
        (vertex, {"instances": value}),
        (azure, {"data": value}),
    ):
        found = read(dialect, json.dumps(body).encode(), MODELS[0], "application/json", "")
        np.testing.assert_allclose(found.inputs["x"], np.float32(value))
