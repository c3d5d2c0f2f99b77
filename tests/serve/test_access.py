"""One authorization point in front of everything: every page and every rpc there is, called with every kind of key.

What there is comes from the code; what each may ask for is written down here. So a new page or rpc fails this test
until it is listed, with the scope it shall need, and one that answers without a key fails it in any case.
"""

import asyncio
import http.client
import json
import re
import socket
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from mlserve.errors import Unauthenticated
from mlserve.serve.access import Access
from mlserve.serve.answering import Answering
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.catalog import Catalog
from mlserve.serve.dialects import CALLS, SLOW_CALLS, http_dialects
from mlserve.serve.keys import add_key, new_key, remove_key
from mlserve.serve.protocols.dialect import InferCall, InferPage, StreamCall
from mlserve.serve.service import Service
from mlserve.serve.settings import NamedRoute, ServeSettings

SCOPES = ("infer", "metadata", "admin", "metrics")
ROUTES = tuple(NamedRoute(f"/named/{each}", "tiny", "", each) for each in ("predict", "vertex", "sagemaker", "azure"))
HEALTH = "/vertex/health"

PAGES = {
    None: """
        GET /health  GET /ready  GET /v2/health/live  GET /v2/health/ready
        GET /ping    GET /version  GET /vertex/health
    """,
    "infer": """
        POST /v2/models/{name}/infer          POST /v2/models/{name}/versions/{version}/infer
        POST /v1/models/{name}:predict        POST /v1/models/{name}/versions/{version}:predict
        POST /v1/models/{name}:classify       POST /v1/models/{name}/versions/{version}:classify
        POST /v1/models/{name}:regress        POST /v1/models/{name}/versions/{version}:regress
        POST /v1/models/{name}/labels/{label}:predict   POST /v1/models/{name}/labels/{label}:classify
        POST /v1/models/{name}/labels/{label}:regress
        POST /v1/predict                      POST /v1/models/{name}/predict
        POST /v1/models/{name}/versions/{version}/predict
        POST /predictions/{name}              POST /predictions/{name}/{version}
        PUT /predictions/{name}               PUT /predictions/{name}/{version}
        POST /invocations  POST /models/{name}/invoke  POST /score
        POST /named/predict  POST /named/vertex  POST /named/sagemaker  POST /named/azure
    """,
    "metadata": """
        GET /  OPTIONS /  GET /docs  GET /openapi.json
        GET /v2  GET /v2/  POST /v2/repository/index
        GET /v2/models/{name}                 GET /v2/models/{name}/versions/{version}
        GET /v2/models/{name}/ready           GET /v2/models/{name}/versions/{version}/ready
        GET /v2/models/{name}/config          GET /v2/models/{name}/versions/{version}/config
        GET /v1/models/{name}/metadata        GET /v1/models/{name}/versions/{version}/metadata
        GET /v1/models/{name}/labels/{label}/metadata
        GET /v1/models/{name}                 GET /v1/models/{name}/versions/{version}
        GET /v1/models/{name}/labels/{label}
        GET /v1/models  GET /v1/models/{name}/example  POST /graphql
        GET /models  GET /models/{name}
    """,
    "metrics": """
        GET /metrics  GET /v2/models/stats
        GET /v2/models/{name}/stats           GET /v2/models/{name}/versions/{version}/stats
    """,
    "admin": """
        POST /v2/repository/models/{name}/load  POST /v2/repository/models/{name}/unload
        GET /v2/systemsharedmemory/status       POST /v2/systemsharedmemory/status
        GET /v2/systemsharedmemory/unregister   POST /v2/systemsharedmemory/unregister
        GET /v2/systemsharedmemory/region/{region}/status
        POST /v2/systemsharedmemory/region/{region}/status
        GET /v2/systemsharedmemory/region/{region}/register
        POST /v2/systemsharedmemory/region/{region}/register
        GET /v2/systemsharedmemory/region/{region}/unregister
        POST /v2/systemsharedmemory/region/{region}/unregister
        GET /v2/cudasharedmemory/status         POST /v2/cudasharedmemory/status
        GET /v2/cudasharedmemory/unregister     POST /v2/cudasharedmemory/unregister
        GET /v2/cudasharedmemory/region/{region}/status
        POST /v2/cudasharedmemory/region/{region}/status
        GET /v2/cudasharedmemory/region/{region}/register
        POST /v2/cudasharedmemory/region/{region}/register
        GET /v2/cudasharedmemory/region/{region}/unregister
        POST /v2/cudasharedmemory/region/{region}/unregister
        GET /v2/trace/setting  POST /v2/trace/setting  GET /v2/logging  POST /v2/logging
        GET /v2/models/{name}/trace/setting  POST /v2/models/{name}/trace/setting
        POST /models  DELETE /models/{name}
        POST /recording                         GET /recording/{number:int}
        DELETE /recording/{number:int}          GET /recording/{number:int}/trace
    """,
}
"""The pages of the public port, by the scope each needs; None: public, and a list to be read with care."""

MANAGEMENT_PAGES = {
    "admin": """
        OPTIONS /  GET /docs  GET /openapi.json
        GET /models             POST /models
        GET /models/{name}      PUT /models/{name}      DELETE /models/{name}
        GET /models/{name}/{version}  PUT /models/{name}/{version}  DELETE /models/{name}/{version}
        PUT /models/{name}/{version}/set-default
    """
}
"""The same of the management port."""

V2, TENSORFLOW = "/inference.GRPCInferenceService", "/tensorflow.serving"
RPCS = {
    None: f"{V2}/ServerLive {V2}/ServerReady /grpc.health.v1.Health/Check /grpc.health.v1.Health/Watch",
    "infer": f"""
        {V2}/ModelInfer {V2}/ModelStreamInfer {TENSORFLOW}.PredictionService/Predict
        {TENSORFLOW}.PredictionService/Classify {TENSORFLOW}.PredictionService/Regress
    """,
    "metadata": f"""
        {V2}/ModelReady {V2}/ServerMetadata {V2}/ModelMetadata {V2}/ModelConfig {V2}/RepositoryIndex
        {TENSORFLOW}.PredictionService/GetModelMetadata {TENSORFLOW}.ModelService/GetModelStatus
        /grpc.reflection.v1.ServerReflection/ServerReflectionInfo
        /grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo
    """,
    "metrics": f"{V2}/ModelStatistics",
    "admin": f"""
        {V2}/RepositoryModelLoad {V2}/RepositoryModelUnload {V2}/TraceSetting {V2}/LogSettings
        {V2}/SystemSharedMemoryStatus {V2}/SystemSharedMemoryRegister {V2}/SystemSharedMemoryUnregister
        {V2}/CudaSharedMemoryStatus {V2}/CudaSharedMemoryRegister {V2}/CudaSharedMemoryUnregister
    """,
}
"""Every rpc, by the scope it needs."""


def listed_pages(table):
    """`{(method, path): scope}` of one of the tables above."""
    found = {}
    for scope, lines in table.items():
        words = lines.split()
        found |= dict.fromkeys(zip(words[::2], words[1::2], strict=True), scope)
    return found


def pages_of_the_code(*, management):
    """`{(method, path): scope}` of every page that the code has."""
    loop = asyncio.new_event_loop()
    service = Service(Catalog())
    settings = ServeSettings(routes=ROUTES, health_paths=(HEALTH,))
    try:
        dialects = http_dialects(service, Answering(service, LoopTurn(loop)), settings)
    finally:
        loop.close()
    found = {}
    for page in (page for dialect in dialects for page in dialect.pages):
        infers = isinstance(page, InferPage)
        if (not infers and page.admin) == management:
            methods, scope = (("POST",), "infer") if infers else (page.methods, page.scope)
            for method in methods:  # of two with the same path, the first has it
                found.setdefault((method, page.path), scope)
    return found


class Guarded:
    """A server with keys, and every way to call it with one of them or without."""

    def __init__(self, server, port, keys, keys_file):
        self.server, self.management_port, self.keys, self.keys_file = server, port, keys, keys_file

    def status(self, method, path, key=None, *, management=False, header="authorization", body=b"{}"):
        """The status of one request; 0 for one that its key, or the lack of one, was not let past."""
        port = self.management_port if management else self.server.http_port
        value = {"authorization": f"Bearer {key}", "x-api-key": key}[header]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request(method, path, body, {} if key is None else {header: value})
            reply = connection.getresponse()
            text = reply.read().decode()
        finally:
            connection.close()
        if reply.status == 401:
            assert reply.headers["www-authenticate"] == "Bearer"
            assert "key" in text or method == "HEAD"
            return 0
        return 0 if reply.status == 403 and "the key does not allow this" in text else reply.status

    def code(self, call, key=None):
        """The gRPC status of one call; the same 0 for one that was refused for its key."""
        metadata = () if key is None else (("authorization", f"Bearer {key}"),)
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self.server.grpc, options=options) as channel:
            try:
                if isinstance(call, StreamCall) and call.client_streams:
                    next(channel.stream_stream(call.path)(iter([b""]), timeout=20, metadata=metadata), None)
                elif isinstance(call, StreamCall):
                    next(channel.unary_stream(call.path)(b"", timeout=20, metadata=metadata), None)
                else:
                    channel.unary_unary(call.path)(b"", timeout=20, metadata=metadata)
            except grpc.RpcError as error:
                refused = error.code() is grpc.StatusCode.UNAUTHENTICATED or (
                    error.code() is grpc.StatusCode.PERMISSION_DENIED and "the key" in error.details()
                )
                return 0 if refused else error.code()
        return grpc.StatusCode.OK

    def wrong_keys(self, scope):
        """What must not get at something of `scope`: no key, and one of each kind that does not do."""
        return {
            "none": None,
            "empty": "",
            "unknown": "x" * 43,
            "expired": self.keys["expired"],
            "another scope": self.keys[f"all but {scope}"],
        }


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module", params=["native", "grpcio"])
def guarded(request, serving_settings, tiny_onnx, tmp_path_factory):
    keys_file = tmp_path_factory.mktemp("keys") / "keys.json"
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    made = {
        "expired": new_key("expired", SCOPES, past),
        **{scope: new_key(f"only-{scope}", [scope]) for scope in SCOPES},
        **{f"all but {scope}": new_key(f"no-{scope}", {*SCOPES} - {scope}) for scope in SCOPES},
    }
    for new in made.values():
        add_key(keys_file, new.key)
    keys = {name: new.secret for name, new in made.items()}
    port = _free_port()
    settings = {"routes": ROUTES, "health_paths": (HEALTH,), "management_port": port, "model_control": "explicit"}
    with serving_settings(tiny_onnx, grpc_transport=request.param, keys_file=str(keys_file), **settings) as server:
        yield Guarded(server, port, keys, keys_file)
        assert not any(secret in server.log for secret in keys.values())


def _called(path, scope):
    """`path` for the served model, or, where a call may change something, for one that there is not."""
    name = "absent" if scope == "admin" else "tiny"
    return path.replace(":int}", "}").format(name=name, number=99, version="1", label="stable", region="r")


PORTS = [(PAGES, False), (MANAGEMENT_PAGES, True)]


@pytest.mark.parametrize(("table", "management"), PORTS, ids=["public", "management"])
def test_every_page_is_listed_with_its_scope(table, management):
    assert pages_of_the_code(management=management) == listed_pages(table)


def test_every_rpc_is_listed_with_its_scope():
    infers = {call.path: "infer" for call in CALLS if isinstance(call, InferCall)}
    others = {call.path: call.scope for call in (*CALLS, *SLOW_CALLS) if not isinstance(call, InferCall)}
    assert {**infers, **others} == {path: scope for scope, paths in RPCS.items() for path in paths.split()}


@pytest.mark.parametrize("management", [False, True], ids=["public", "management"])
def test_no_page_answers_without_its_key_and_each_does_with_it(guarded, management):
    let_past, refused = [], []
    for (method, template), scope in pages_of_the_code(management=management).items():
        path = _called(template, scope)
        if scope is None:
            if guarded.status(method, path, management=management) != 200:
                refused.append((method, path))
            continue
        for kind, key in guarded.wrong_keys(scope).items():
            status = guarded.status(method, path, key, management=management)
            if status:
                let_past.append((method, path, kind, status))
        refused += [
            (method, path, header)
            for header in ("authorization", "x-api-key")
            if not guarded.status(method, path, guarded.keys[scope], management=management, header=header)
        ]
    assert let_past == []
    assert refused == []


def test_no_rpc_answers_without_its_key_and_each_does_with_it(guarded):
    let_past, refused = [], []
    for call in (*CALLS, *SLOW_CALLS):
        scope = "infer" if isinstance(call, InferCall) else call.scope
        if scope is None:
            if guarded.code(call) is not grpc.StatusCode.OK:
                refused.append(call.path)
            continue
        for kind, key in guarded.wrong_keys(scope).items():
            code = guarded.code(call, key)
            if code:
                let_past.append((call.path, kind, code))
        if not guarded.code(call, guarded.keys[scope]):
            refused.append(call.path)
    assert let_past == []
    assert refused == []


def test_another_spelling_of_a_path_is_guarded_like_the_path(guarded):
    plain = [path for (_, path), scope in pages_of_the_code(management=False).items() if scope == "infer"]
    for path in (path.format(name="tiny", version="1", label="stable") for path in plain):
        for spelled in (path + "?", path + "?x=1", path.replace("tiny", "t%69ny"), path + "/", "/" + path, path + "//"):
            assert guarded.status("POST", spelled) in (0, 307, 404), spelled
            assert guarded.status("POST", spelled, guarded.keys["metadata"]) in (0, 307, 404), spelled


def test_other_methods_get_nothing_either(guarded):
    for (_, path), scope in pages_of_the_code(management=False).items():
        if scope is not None:
            for method in ("HEAD", "PATCH", "OPTIONS", "DELETE", "TRACE"):
                status = guarded.status(method, _called(path, "admin"))
                assert status in (0, 404, 405), (method, path, status)


def test_a_key_for_metadata_does_not_infer_by_graphql(guarded):
    pytest.importorskip("graphql")
    body = json.dumps({"query": "{ predict(rows: [%s]) { predictions } models { name } }" % ([0.0] * 30)})

    def asked(scope):
        status, _, answer = guarded.server.request(
            "POST", "/graphql", body, {"x-api-key": guarded.keys[scope], "content-type": "application/json"}
        )
        assert status == 200
        return json.loads(answer)

    answer = asked("metadata")
    assert not (answer["data"] or {}).get("predict")
    assert "the key does not allow this: it lacks the scope 'infer'" in answer["errors"][0]["message"]
    allowed = asked("all but admin")  # the negative control
    assert len(allowed["data"]["predict"]["predictions"]) == 1
    assert guarded.status("POST", "/graphql", guarded.keys["infer"], body=body.encode()) == 0


@pytest.mark.parametrize(
    "header",
    [
        "Basic dXNlcjpwYXNz",
        "Bearer",
        "Bearer  ",
        "bearer\tx",
        "Token x",
        "Bearer " + "x" * 5000,
        "Bearer \x80\xff",
    ],
)
def test_a_credential_of_another_kind_is_refused_and_not_repeated(guarded, header):
    for path in ("/v2/models/tiny/infer", "/score"):
        status, _, body = guarded.server.request("POST", path, b"{}", {"authorization": header.encode("latin-1")})
        assert (status, len(body) < 300) == (401, True)
        assert header.split(maxsplit=1)[-1].encode("latin-1") not in body


def test_a_key_that_is_revoked_or_made_counts_soon(guarded, until):
    made = new_key("passing", ["metadata"])
    assert guarded.status("GET", "/v2", made.secret) == 0
    add_key(guarded.keys_file, made.key)
    until(lambda: guarded.status("GET", "/v2", made.secret) == 200)
    remove_key(guarded.keys_file, "passing")
    until(lambda: guarded.status("GET", "/v2", made.secret) == 0)
    before = guarded.keys_file.read_bytes()
    guarded.keys_file.write_bytes(b"damaged")
    until(lambda: "the keys stay as they were" in guarded.server.log)
    assert guarded.status("GET", "/v2", guarded.keys["metadata"]) == 200
    assert guarded.status("GET", "/v2") == 0
    guarded.keys_file.write_bytes(before)


def test_a_server_whose_keys_cannot_be_read_does_not_start(serving_settings, tiny_onnx, tmp_path):
    (tmp_path / "keys.json").write_text('{"format_version": 1, "keys": [{"name": "ci", "scopes": ["root"]}]}')
    for file, reason in (("keys.json", "key 'ci' has the scope 'root'"), ("absent.json", "cannot be read")):
        with (
            pytest.raises(AssertionError, match=re.escape(reason)),
            serving_settings(tiny_onnx, keys_file=str(tmp_path / file)),
        ):
            pass


def test_the_check_of_this_test_would_find_an_open_page(serving_settings, tiny_onnx):
    """The negative control: a server without keys lets everybody past, and is seen to."""
    with serving_settings(tiny_onnx, routes=ROUTES) as server:
        guarded = Guarded(server, 0, {}, None)
        assert guarded.status("POST", "/v2/models/tiny/infer") == 400
        assert guarded.status("GET", "/v2") == 200
        assert guarded.code(CALLS[0]) is grpc.StatusCode.NOT_FOUND


def test_keys_expire_while_the_server_runs():
    now = [1000.0]
    made = new_key("short", ["infer"], datetime.fromtimestamp(1001, UTC).isoformat())
    access = Access([made.key], now=lambda: now[0])
    access.check("infer", made.secret.encode())
    now[0] = 1001.0
    with pytest.raises(Unauthenticated, match="expired"):
        access.check("infer", made.secret.encode())
