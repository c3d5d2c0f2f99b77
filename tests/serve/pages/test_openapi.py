"""`/openapi.json`: valid, complete, and held to what the running server does."""

import json
import os
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import pytest
from openapi_spec_validator import validate
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError

from mlserve.model.tensors import TensorSpec
from mlserve.serve.catalog import Catalog, ServedModel
from mlserve.serve.pages.openapi import openapi
from mlserve.serve.pages.operations import operations
from mlserve.serve.protocols import friendly
from mlserve.serve.protocols.dialect import Dialect, Documentation, Page
from mlserve.serve.service import Service
from mlserve.wire.signature import Signature

EXAMPLES = 6  # of every operation: so many find the page that breaks
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"

# A server with a page that breaks for some of what it may be asked.
BREAKING = """
import socket, sys
import uvicorn
from starlette.responses import Response
from mlserve.serve.answering import Answering
from mlserve.serve.application import application
from mlserve.serve.catalog import Catalog
from mlserve.serve.pages import site
from mlserve.serve.protocols.dialect import Dialect, Documentation, Page
from mlserve.serve.service import Service
from mlserve.serve.settings import ServeSettings

async def share(request):
    return Response(str(100 // int(request.query_params.get("parts") or 1)), media_type="text/plain")

told = Documentation(response={"type": "string"}, query={"parts": {"type": "integer", "minimum": 0, "maximum": 1}})
service = Service(Catalog())
spoken = [Dialect("breaking", (Page("/share", ("GET",), None, share, "A share", told),))]
spoken.append(site.dialect(service, ServeSettings(), spoken, ()))
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
app = application(service, Answering(service, None), spoken)
uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off")).run([listener])
"""


def schemathesis(url, folder):
    """The finished `schemathesis run`: by what the document says, every operation is asked, its limits first."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", url, "--checks", CHECKS, "--phases", "examples,fuzzing"),
            *("--max-examples", str(EXAMPLES), "--seed", "7", "--continue-on-failure", "--warnings", "off"),
            *("--suppress-health-check", "all", "--request-timeout", "20", "--generation-database", "none"),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1"},
    )


@contextmanager
def breaking_server():
    process = subprocess.Popen([sys.executable, "-c", BREAKING], stdout=subprocess.PIPE)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/openapi.json"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def fetched(url):
    with urllib.request.urlopen(url, timeout=30) as reply:
        return json.load(reply)


def test_it_is_valid_on_both_ports(store_server):
    for port in (store_server.http_port, store_server.management):
        document = fetched(f"http://127.0.0.1:{port}/openapi.json")
        validate(document)
        assert document["openapi"] == "3.1.0"


def test_the_validator_would_see_what_is_wrong(store_server):
    document = store_server.get_json("/openapi.json")
    del document["paths"]["/v1/models/{name}/predict"]["post"]["parameters"]
    with pytest.raises(OpenAPIValidationError, match="name"):
        validate(document)


def test_what_it_says_holds_for_the_running_server(store_server, tmp_path):
    done = schemathesis(f"http://{store_server.http}/openapi.json", tmp_path)
    assert done.returncode == 0, done.stdout[-8000:]
    assert "No issues found" in done.stdout


def test_a_page_that_breaks_is_found(tmp_path):
    with breaking_server() as url:
        done = schemathesis(url, tmp_path)
    assert done.returncode == 1
    assert "/share" in done.stdout
    assert "Server error" in done.stdout


def test_every_page_says_who_may_ask_and_what_may_go_wrong(store_server, keyed_server):
    key = {"authorization": f"Bearer {keyed_server.secrets['metadata']}"}
    keyed = json.loads(keyed_server.request("GET", "/openapi.json", headers=key)[2])
    free = store_server.get_json("/openapi.json")
    assert set(free["components"]["securitySchemes"]) == {"bearer", "apiKey"}
    needed = [{"bearer": []}, {"apiKey": []}]
    for document, expected in ((free, [{}, *needed]), (keyed, needed)):
        for methods in document["paths"].values():
            for operation in methods.values():
                public = operation["description"] == "Open to everybody."
                assert operation["security"] == ([] if public else expected)
                assert public or {"401", "403"} <= operation["responses"].keys()


def test_each_dialect_is_a_tag_and_tells_errors_in_its_own_words(store_server):
    document = store_server.get_json("/openapi.json")
    tags = {tag["name"] for tag in document["tags"]}
    assert {"v2", "friendly", "graphql", "pages", "named"} <= tags
    responses = document["components"]["responses"]
    schema = responses["graphql_400"]["content"]["application/json"]["schema"]
    assert schema["properties"]["errors"]["items"]["properties"] == {"message": {"type": "string"}}
    schema = responses["friendly_404"]["content"]["application/json"]["schema"]
    assert schema["properties"] == {"error": {"type": "string"}}


def test_examples_are_for_the_model_that_was_asked_for(store_server):
    def example(model):
        operation = store_server.get_json(f"/openapi.json?model={model}")["paths"]["/v1/models/{name}/predict"]["post"]
        assert operation["parameters"][0]["example"] == model
        return operation["requestBody"]["content"]["application/json"]["examples"]["model"]["value"]

    assert set(example("spam")) == {"text"}
    assert set(example("digits")) == {"image"}
    assert len(example("tiny")["inputs"]["x"][0]) == 30


def _document(*pages):
    async def answer(_):
        raise NotImplementedError

    dialect = Dialect("d", tuple(Page(path, ("GET",), None, answer, "s", told) for path, told in pages))
    return openapi(operations([dialect], Catalog(), None, management=False), "t", keyed=False)


def test_definitions_move_to_where_the_document_finds_them():
    schema = {"$ref": "#/$defs/Tree", "$defs": {"Tree": {"properties": {"left": {"$ref": "#/$defs/Tree"}}}}}
    document = _document(("/tree", Documentation(response=schema)))
    validate(document)
    moved = {"$ref": "#/components/schemas/d_Tree"}
    assert document["components"]["schemas"]["d_Tree"] == {"properties": {"left": moved}}
    content = document["paths"]["/tree"]["get"]["responses"]["200"]["content"]
    assert content["application/json"]["schema"] == moved


def test_paths_that_differ_in_names_or_a_last_slash_stay_apart_or_together_as_openapi_wants_it():
    plain = Documentation()
    document = _document(
        ("/m/{name}", plain), ("/m/{other}", plain), ("/m/{rest:path}/x", plain), ("/m/{name}/", plain)
    )
    validate(document)
    assert list(document["paths"]) == ["/m/{name}", "/m/{rest}/x", "/m/{name}/"]


@pytest.mark.parametrize(("side", "shown"), [(8, True), (224, False)])
def test_an_example_that_nobody_reads_is_left_out(side, shown):
    model = ServedModel(Signature("m", "1", [TensorSpec("x", "float32", ("batch", 3, side, side))], []), None, None)
    catalog = Catalog({("m", "1"): model}, {"m": "1"})
    pages = friendly.dialect(Service(catalog), None)
    (made,) = [
        page
        for page in operations([pages], catalog, model, management=False)
        if page.path == "/v1/models/{name}/predict"
    ]
    assert (made.example is not None) == shown


def test_a_page_that_only_refuses_documents_no_answer():
    document = _document(("/never", Documentation(statuses=(404,))), ("/always", Documentation()))
    validate(document)
    assert "200" not in document["paths"]["/never"]["get"]["responses"]
    assert "200" in document["paths"]["/always"]["get"]["responses"]
