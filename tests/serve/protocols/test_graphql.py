"""GraphQL: what it tells and predicts, what it refuses, and what a key must allow."""

import asyncio
import json
import os
import subprocess
import sys

import pytest
from graphql import build_client_schema, get_introspection_query

from mlserve.serve.catalog import Catalog, ServedModel
from mlserve.serve.keys import add_key, new_key
from mlserve.serve.protocols.graphql_schema import Asking
from mlserve.serve.protocols.graphql_schema import ask as graphql_ask
from mlserve.serve.service import Service
from mlserve.wire.signature import Signature

SPEC_TYPE = "application/graphql-response+json"
ROW = [0.5] * 30


def ask(server, query, variables=None, *, status=200, **headers):
    """The response's document."""
    body = json.dumps({"query": query, "variables": variables or {}})
    answered, fields, answer = server.request("POST", "/graphql", body, {"content-type": "application/json", **headers})
    assert answered == status, answer
    assert fields["content-type"].startswith(("application/json", SPEC_TYPE))
    return json.loads(answer)


def test_the_schema_is_told_to_tools(tiny_server):
    schema = build_client_schema(ask(tiny_server, get_introspection_query())["data"])
    assert set(schema.query_type.fields) == {"models", "model", "versions", "predict"}


def test_models_and_versions_are_told(tiny_server):
    query = """{
      models { name state }
      model(name: "tiny") { default task inputs { name datatype shape } versions { version state sizeBytes loadedAt } }
      nobody: model(name: "nobody") { name }
      versions(name: "tokens") { version aliases }
    }"""
    data = ask(tiny_server, query)["data"]
    assert {model["name"] for model in data["models"]} == {"tiny", "echo", "tokens"}
    assert data["model"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["batch", "30"]}]
    assert data["model"]["versions"][0]["state"] == "READY"
    assert data["model"]["versions"][0]["sizeBytes"] > 0
    assert data["nobody"] is None
    assert data["versions"] == [{"version": "1", "aliases": []}]


def test_predictions_by_row_and_by_column_are_those_of_the_friendly_dialect(tiny_server):
    query = """query ($x: JSON, $rows: [JSON!]) {
      columns: predict(model: "tiny", inputs: $x) { model version outputs predictions }
      rows: predict(model: "tiny", version: "1", rows: $rows) { predictions }
      literal: predict(model: "tokens", rows: [[1, 2, 3, 4]]) { predictions }
    }"""
    data = ask(tiny_server, query, {"x": {"x": [ROW]}, "rows": [ROW, ROW]})["data"]
    plain = tiny_server.request("POST", "/v1/models/tiny/predict", json.dumps({"rows": [ROW]}))[2]
    (expected,) = json.loads(plain)["predictions"]
    assert data["columns"] == {"model": "tiny", "version": "1", "outputs": {"scores": [expected]}, "predictions": None}
    assert data["rows"]["predictions"] == [expected, expected]
    assert data["literal"]["predictions"] == [[7.5, 8.5, 9.5]]


def test_a_prediction_that_fails_is_an_error_of_its_field(tiny_server):
    document = ask(tiny_server, '{ predict(model: "tiny", text: "hello") { version } }')
    assert document["data"] is None
    (error,) = document["errors"]
    assert error["path"] == ["predict"]
    assert error["extensions"] == {"code": "InvalidRequest", "status": 400}
    assert "carries no tokenizer" in error["message"]
    document = ask(tiny_server, '{ model(name: "tiny") { name } predict(model: "nobody", rows: [1]) { version } }')
    assert document["errors"][0]["extensions"]["status"] == 404


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("{ models { nothing } }", "Cannot query field 'nothing'"),
        ("{ models {", "Syntax Error"),
        ("", "Syntax Error"),
        ("mutation { load }", "The mutation operation is not supported"),
        ("query ($n: String!) { model(name: $n) { name } }", "$n"),
        ("{ predict(model: 3, rows: [1]) { version } }", "String cannot represent"),
        ("{ a: models { name } }" + " # " + "x" * 30_000, ""),
    ],
)
def test_a_request_that_is_not_understood_has_errors_and_no_data(tiny_server, query, says):
    document = ask(tiny_server, query)
    assert "data" not in document
    assert says in document["errors"][0]["message"]
    assert "data" not in ask(tiny_server, query, status=400, accept=SPEC_TYPE)


def _deep(levels):
    return "{ __schema { types { fields { type { " + "ofType { " * levels + "name" + " }" * (levels + 5)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (_deep(30), "more than 16 levels"),
        ("{ " + " ".join(f"m{n}: models {{ name }}" for n in range(20)) + " }", "fields at its root"),
        ("{ models { " + "name " * 450 + "} }", "more than 400 fields"),
        (
            # Each fragment holds the one before ten times: 10^8 fields from 60 lines of text.
            "{ models { ...F8 } } fragment F0 on Model { name } "
            + " ".join(f"fragment F{n} on Model {{ {f'...F{n - 1} ' * 10} }}" for n in range(1, 9)),
            "more than 400 fields",
        ),
        ("{ " * 5000, "Syntax Error"),
        ("{ models { ...A } } fragment A on Model { ...A }", "Cannot spread fragment 'A' within itself"),
    ],
)
def test_what_would_cost_too_much_is_refused_before_it_is_run(tiny_server, query, says):
    document = ask(tiny_server, query)
    assert "data" not in document
    assert says in document["errors"][0]["message"]
    assert len(json.dumps(document)) < 8000


def test_an_answer_that_lists_multiply_is_cut_off_with_one_error():
    signatures = [Signature(f"m{n}", "1", [], []) for n in range(300)]
    catalog = Catalog({(each.name, "1"): ServedModel(each, None, None) for each in signatures})
    versions = " ".join(f"v{n}: versions {{ version state }}" for n in range(30))
    asking = Asking(Service(catalog), None, {})
    document = asyncio.run(graphql_ask(f"{{ models {{ {versions} }} }}", {}, None, asking))
    assert document["data"] is None
    assert len(document["errors"]) == 1
    assert "more than 20000 fields" in document["errors"][0]["message"]
    asking = Asking(Service(catalog), None, {})
    assert len(asyncio.run(graphql_ask("{ models { name } }", {}, None, asking))["data"]["models"]) == 300


def test_a_bug_is_told_to_the_log_and_not_to_the_client(caplog):
    asking = Asking(Service(Catalog()), None, {})
    asking.service.catalog = None  # whatever should not have happened
    document = asyncio.run(graphql_ask("{ models { name } }", {}, None, asking))
    assert document["errors"][0]["message"] == "the server made a mistake; its log says which"
    assert "NoneType" in caplog.text


def test_what_is_just_within_the_limits_is_answered(tiny_server):
    """The negative control of the limits."""
    assert "data" in ask(tiny_server, _deep(10))
    assert "data" in ask(tiny_server, "{ " + " ".join(f"m{n}: models {{ name }}" for n in range(8)) + " }")


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"not json", {"content-type": "application/json"}, 400),
        (b'{"qeury": "{ models { name } }"}', {"content-type": "application/json"}, 400),
        (b"[]", {"content-type": "application/json"}, 400),
        (b'{"query": "{ models { name } }"}', {"content-type": "text/plain"}, 415),
        (b'{"query": "{ models { name } }"}', {}, 415),
        (b'{"query": "{ models { name } }"}', {"content-type": "application/json", "content-encoding": "gzip"}, 400),
        (b'{"query": "{ models { name } }"}', {"content-type": "application/json", "content-encoding": "br"}, 415),
    ],
)
def test_a_body_that_is_no_request_is_refused_in_graphqls_words(tiny_server, body, headers, status):
    answered, _, answer = tiny_server.request("POST", "/graphql", body, headers)
    assert answered == status
    assert set(json.loads(answer)["errors"][0]) == {"message"}
    assert tiny_server.request("GET", "/graphql?query={models{name}}")[0] == 405


def test_the_answer_is_of_the_type_that_was_asked_for(tiny_server):
    body = json.dumps({"query": "{ models { name } }"})
    for accept, kind in (("*/*", "application/json"), (SPEC_TYPE, SPEC_TYPE), (f"{SPEC_TYPE}, */*;q=0.1", SPEC_TYPE)):
        headers = {"content-type": "application/json", "accept": accept}
        assert tiny_server.request("POST", "/graphql", body, headers)[1]["content-type"].startswith(kind)


def test_reading_needs_one_scope_and_predicting_another_beside_it(serving_settings, tiny_onnx, tmp_path):
    secrets = {}
    for name, scopes in {"reads": ["metadata"], "infers": ["infer"], "both": ["infer", "metadata"]}.items():
        made = new_key(name, scopes)
        add_key(tmp_path / "keys.json", made.key)
        secrets[name] = {"authorization": f"Bearer {made.secret}"}
    predict = '{ predict(model: "tiny", rows: [[' + ", ".join(["0.5"] * 30) + "]]) { version } }"
    with serving_settings(tiny_onnx, keys_file=str(tmp_path / "keys.json")) as server:
        for query in ("{ models { name } }", "{ __typename }", predict):
            assert "errors" in ask(server, query, status=401)
            assert "errors" in ask(server, query, status=403, **secrets["infers"])
        assert "data" in ask(server, "{ models { name } }", **secrets["reads"])
        (error,) = ask(server, predict, **secrets["reads"])["errors"]
        assert error["extensions"] == {"code": "Forbidden", "status": 403}
        assert ask(server, predict, **secrets["both"])["data"] == {"predict": {"version": "1"}}


def test_the_library_is_imported_by_the_first_request_and_not_before(tiny_onnx):
    code = (
        "import sys\nfrom mlserve.serve import dialects, worker\n"
        "print([name for name in ('graphql', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_without_the_library_the_page_says_what_to_install(tmp_path):
    """A server whose Python has no graphql-core."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\nfind = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'graphql' else find(name, *rest)\n"
    )
    code = """
import asyncio
from starlette.requests import Request
from mlserve.serve.catalog import Catalog
from mlserve.serve.protocols.graphql import dialect
from mlserve.serve.service import Service
(page,) = dialect(Service(Catalog()), None).pages
reply = asyncio.run(page.answer(Request({"type": "http", "headers": []})))
print(reply.status_code, reply.body.decode())
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout.startswith("501 "), done.stderr
    assert "pip install 'mlserve[graphql]'" in done.stdout
