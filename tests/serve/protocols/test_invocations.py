"""`/invocations`: every form of SageMaker and of MLflow, in every type asked for, told apart by content."""

import csv
import io
import json
import re

import numpy as np
import pytest
import tritonclient.http as triton

ROWS = np.random.default_rng(0).standard_normal((2, 30)).astype(np.float32)
LIST = ROWS.tolist()
NAMES = [f"f{number}" for number in range(30)]
LINES = "\n".join(",".join(map(repr, row)) for row in LIST)
V2 = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 30], "data": ROWS.ravel().tolist()}]}
PERSON = {"age": 40.5, "city": "Rome", "visits": 3}
SAME = {"same_age": [40.5], "same_city": ["Rome"], "same_visits": 3}
TARGET = "x-amzn-sagemaker-target-model"


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture(scope="module")
def invoke(rows_server):
    """`invoke(body, model, header=value...)` -> `(status, content type, body)`."""

    def ask(body, model="tiny", **headers):
        if not isinstance(body, bytes | str):
            body = json.dumps(body)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        status, fields, answer = rows_server.request("POST", "/invocations", body, {TARGET: model, **named})
        return status, fields["content-type"], answer

    return ask


@pytest.fixture
def still_right(invoke, reference):
    """The negative control of every bad request."""
    yield
    status, _, answer = invoke(LIST)
    assert status == 200
    np.testing.assert_allclose(json.loads(answer), reference(ROWS), rtol=1e-4)


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": NAMES, "data": LIST}},
        {"dataframe_split": {"columns": NAMES, "index": [7, 8], "data": LIST}},
        {"dataframe_split": {"data": LIST}},
        {"dataframe_split": {"columns": ["x"], "data": [[row] for row in LIST]}},
        {"dataframe_records": [dict(zip(NAMES, row, strict=True)) for row in LIST]},
        {"dataframe_records": [{"x": row} for row in LIST]},
        {"instances": LIST},
        {"instances": [{"x": row} for row in LIST]},
        {"inputs": LIST},
        {"inputs": {"x": LIST}},
        {"inputs": LIST, "params": {"temperature": 0.1}},
        {"inputs": LIST, "params": None},
    ],
)
def test_every_form_of_mlflow_is_answered_with_predictions(invoke, reference, body):
    status, kind, answer = invoke(body, content_type="application/json")
    assert (status, kind) == (200, "application/json")
    document = json.loads(answer)
    assert document.keys() == {"predictions"}
    np.testing.assert_allclose(document["predictions"], reference(ROWS), rtol=1e-4)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (LIST, "application/json"),
        (LIST, "application/json; charset=utf-8"),
        (LINES, "text/csv"),
        (npy(ROWS), "application/x-npy"),
        (npy(ROWS.astype(np.float64)), "application/x-npy"),
    ],
)
def test_sagemakers_forms_are_answered_with_the_rows_alone(invoke, reference, body, kind):
    status, answered, answer = invoke(body, content_type=kind)
    assert (status, answered) == (200, "application/json")
    np.testing.assert_allclose(json.loads(answer), reference(ROWS), rtol=1e-4)


def test_csv_with_a_line_of_names_is_mlflows(invoke, reference):
    status, _, answer = invoke(",".join(NAMES) + "\n" + LINES, content_type="text/csv")
    assert status == 200
    np.testing.assert_allclose(json.loads(answer)["predictions"], reference(ROWS), rtol=1e-4)


@pytest.mark.parametrize("body", [LIST, {"instances": LIST}])
def test_the_answer_comes_as_csv_or_npy_where_that_is_accepted(invoke, reference, body):
    status, kind, answer = invoke(body, accept="text/csv")
    assert (status, kind) == (200, "text/csv")
    np.testing.assert_allclose(np.loadtxt(io.BytesIO(answer), delimiter=","), reference(ROWS), rtol=1e-4)
    status, kind, answer = invoke(body, accept="image/png, application/x-npy;q=0.9, */*")
    assert (status, kind) == (200, "application/x-npy")
    found = np.load(io.BytesIO(answer), allow_pickle=False)
    np.testing.assert_allclose(found, reference(ROWS), rtol=1e-5)
    assert found.dtype == np.float32
    assert invoke(body, accept="*/*")[1] == invoke(body, accept="text/html")[1] == "application/json"


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["visits", "age", "city"], "data": [[3, 40.5, "Rome"]]}},
        {"dataframe_records": [PERSON]},
        {"inputs": {"age": [[40.5]], "city": [["Rome"]], "visits": [3]}},
        {"instances": [{"age": [40.5], "city": ["Rome"], "visits": 3}]},
    ],
)
def test_columns_are_a_models_inputs_by_their_names(invoke, body):
    status, _, answer = invoke(body, "mixed")
    assert (status, json.loads(answer)) == (200, {"predictions": [SAME]})


def test_a_table_goes_through_csv_and_back(invoke):
    status, _, answer = invoke(
        'city,visits,age\n"Rome, Italy",3,40.5\nOslo,-4,\n', "mixed", content_type="text/csv", accept="text/csv"
    )
    assert status == 200
    assert list(csv.reader(io.StringIO(answer.decode()))) == [["40.5", "Rome, Italy", "3"], ["nan", "Oslo", "-4"]]


def test_v2_is_answered_as_v2(invoke, reference):
    status, kind, answer = invoke(V2)
    assert (status, kind) == (200, "application/json")
    (output,) = json.loads(answer)["outputs"]
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), reference(ROWS), rtol=1e-4)


def test_tritons_client_speaks_binary_tensors_as_on_sagemaker(invoke, reference):
    tensor = triton.InferInput("x", [2, 30], "FP32")
    tensor.set_data_from_numpy(ROWS, binary_data=True)
    wanted = triton.InferRequestedOutput("scores", binary_data=True)
    body, json_bytes = triton.InferenceServerClient.generate_request_body([tensor], outputs=[wanted])
    told = f"application/vnd.sagemaker-triton.binary+json;json-header-size={json_bytes}"
    status, kind, answer = invoke(body, content_type=told)
    assert status == 200
    size = int(re.fullmatch(r"application/vnd.sagemaker-triton.binary\+json;json-header-size=(\d+)", kind)[1])
    result = triton.InferenceServerClient.parse_response_body(answer, header_length=size)
    np.testing.assert_allclose(result.as_numpy("scores"), reference(ROWS), rtol=1e-5)


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        ("", {}, 400, "not JSON"),
        ("{}", {}, 400, "just one of dataframe_split, dataframe_records, instances, inputs; it holds 0"),
        ({"instances": LIST, "inputs": LIST}, {}, 400, "it holds 2"),
        ({"instances": LIST, "more": 1}, {}, 400, "'more' is not known beside 'instances'"),
        ({"instances": LIST, "params": [1]}, {}, 400, "'params' is no object"),
        ({"instances": []}, {}, 400, "no rows"),
        ({"instances": {"x": LIST}}, {}, 400, "no rows"),
        ({"inputs": {}}, {}, 400, "missing input 'x'"),
        ({"inputs": 7}, {}, 400, "no rows"),
        ({"dataframe_split": LIST}, {}, 400, "by 'split' is an object"),
        ({"dataframe_split": {"columns": NAMES}}, {}, 400, "by 'split' is an object"),
        ({"dataframe_split": {"columns": NAMES, "data": [], "x": 1}}, {}, 400, "by 'split' is an object"),
        ({"dataframe_split": {"columns": NAMES, "data": []}}, {}, 400, "no rows"),
        ({"dataframe_split": {"columns": 7, "data": LIST}}, {}, 400, "are lists"),
        ({"dataframe_split": {"columns": NAMES, "data": [1]}}, {}, 400, "is a list"),
        ({"dataframe_split": {"columns": NAMES[:2], "data": LIST}}, {}, 400, "has 30 cells, expected 2"),
        ({"dataframe_split": {"columns": [], "data": [[]]}}, {}, 400, ""),
        ({"dataframe_split": {"columns": ["a"] * 30, "data": LIST}}, {}, 400, "same name"),
        ({"dataframe_split": {"data": [LIST[0], LIST[0][:3]]}}, {}, 400, "row 1 of the table has 3 cells"),
        ({"dataframe_records": {"x": 1}}, {}, 400, "list of at least one object"),
        ({"dataframe_records": [1]}, {}, 400, "list of at least one object"),
        ({"dataframe_records": [{"a": 1}, {"b": 1}]}, {}, 400, "same names"),
        ({"dataframe_records": [{}]}, {}, 400, ""),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 29], "data": []}]}, {}, 400, "shape"),
        (LIST[0], {}, 400, "cannot be read"),
        ("null", {}, 400, "no rows"),
        ("7", {}, 400, "no rows"),
        ('"hello"', {}, 400, "cannot be read"),
        ("hello", {"content_type": "text/plain"}, 400, "carries no tokenizer"),
        (b"\x89PNG\r\n\x1a\n", {"content_type": "application/octet-stream"}, 400, "reads no images"),
        (LINES[:-200], {"content_type": "text/csv"}, 400, "cells|cannot be read"),
        ("", {"content_type": "text/csv"}, 400, "no rows"),
        (b"\xff", {"content_type": "text/csv"}, 400, "UTF-8"),
        ('"a', {"content_type": "text/csv"}, 400, "CSV cannot be read"),
        ("x" * 200_000 + "\n1", {"content_type": "text/csv"}, 400, "CSV cannot be read"),
        (npy(ROWS)[:-1], {"content_type": "application/x-npy"}, 400, "header says"),
        (npy(np.array([None])), {"content_type": "application/x-npy"}, 400, "plain array"),
        (LIST, {"content_type": "application/x-pickle"}, 415, "is not read"),
        (LIST, {"content_type": "application/x-msgpack"}, 415, "is not read"),
        (LIST, {"content_encoding": "br"}, 415, "encoding"),
        (V2, {"content_type": "application/vnd.sagemaker-triton.binary+json"}, 400, "lacks json-header-size"),
        (
            V2,
            {"content_type": "application/vnd.sagemaker-triton.binary+json;json-header-size=99999"},
            400,
            "99999",
        ),
    ],
)
def test_a_bad_body_is_refused_in_mlflows_words(invoke, still_right, body, headers, status, message):
    found, kind, answer = invoke(body, **headers)
    assert (found, kind) == (status, "application/json"), answer
    document = json.loads(answer)
    assert (document.keys(), document["error_code"]) == ({"error_code", "message"}, "BAD_REQUEST")
    assert re.search(message, document["message"])
    assert len(answer) <= 1024
    assert b"Traceback" not in answer


def test_an_array_is_neither_asked_of_nor_given_by_a_model_of_several(invoke):
    assert b"a model of one input" in invoke(npy(ROWS), "mixed", content_type="application/x-npy")[2]
    status, _, answer = invoke({"dataframe_records": [PERSON]}, "mixed", accept="application/x-npy")
    assert (status, b"no one array of numbers" in answer) == (400, True)


def test_the_version_is_plain_text(rows_server):
    from mlserve import __version__

    status, headers, body = rows_server.request("GET", "/version")
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/plain")
    assert body.decode() == __version__
    assert rows_server.request("GET", "/health")[0] == rows_server.request("GET", "/ping")[0] == 200
