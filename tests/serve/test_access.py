"""One authorization point in front of everything: every page and every rpc there is, called with every kind of key.

What there is comes from the code; what each may ask for is written down: benchmarks/scorecard/security/route_list.py.
So a new page or rpc fails this test until it is listed, with the scope it shall need, and one that answers without a
key fails it in any case.
"""

import asyncio
import http.client
import json
import re
import socket
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from starlette.routing import Route

from mlserve.errors import Unauthenticated
from mlserve.serve.access import Access
from mlserve.serve.answering import Answering
from mlserve.serve.application import application
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.catalog import Catalog
from mlserve.serve.dialects import CALLS, SLOW_CALLS, http_dialects
from mlserve.serve.keys import add_key, new_key, remove_key
from mlserve.serve.protocols.dialect import Call, InferCall, StreamCall
from mlserve.serve.service import Service

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
if BENCHMARKS not in sys.path:
    sys.path.append(BENCHMARKS)
from scorecard.security.route_list import (  # noqa: E402  # as benchmarks find each other
    EVERYTHING,
    MANAGEMENT_PAGES,
    PAGES,
    SCOPES,
    listed_pages,
    listed_rpcs,
    pages_of_the_code,
    rpcs_of_the_code,
)

V2 = "/inference.GRPCInferenceService"


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
    settings = {
        "routes": EVERYTHING.routes,
        "health_paths": EVERYTHING.health_paths,
        "management_port": port,
        "model_control": "explicit",
    }
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
    assert rpcs_of_the_code() == listed_rpcs()


# HTTP does not depend on how gRPC is spoken.
@pytest.mark.parametrize("guarded", ["native"], indirect=True)
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


def _spelled(path):
    """Other ways to write `path`, by what is done to it: some mean the same page, most mean none."""
    head, _, last = path.rpartition("/")
    letter = last[:1] or "x"
    return {
        "a query": path + "?x=1",
        "an empty query": path + "?",
        "a fragment": path + "#x",
        "a parameter": path + ";x=1",
        "a slash behind": path + "/",
        "two slashes behind": path + "//",
        "a slash before": "/" + path,
        "two slashes within": f"{head}//{last}",
        "a dot": f"{head}/./{last}",
        "two dots": f"{head}/x/../{last}",
        "encoded dots": f"{head}/x/%2e%2e/{last}",
        "a letter encoded": f"{head}/%{ord(letter):02x}{last[1:]}",
        "it all encoded twice": path.replace("/", "%252F"),
        "a slash encoded": f"{head}%2F{last}",
        "a backslash": f"{head}\\{last}",
        "upper case": path.upper(),
        "a NUL": path + "%00",
        "a line end": path + "%0d%0a",
        "another host's": f"http://evil.example{path}",
        "another path's end": path + "/v2/health/live",
        "a public page first": f"/v2/health/live/..{path}",
    }


@pytest.mark.parametrize("guarded", ["native"], indirect=True)
@pytest.mark.parametrize("management", [False, True], ids=["public", "management"])
def test_another_spelling_of_a_path_is_guarded_like_the_path(guarded, management):
    let_past = []
    for number, ((method, template), scope) in enumerate(pages_of_the_code(management=management).items()):
        if scope is None:
            continue
        for how, path in _spelled(_called(template, scope)).items():
            key = guarded.keys[f"all but {scope}"] if number % 2 else None
            status = guarded.status(method, path, key, management=management)
            if status not in (0, 400, 404, 405):
                let_past.append((method, path, how, status))
    assert let_past == []


@pytest.mark.parametrize("guarded", ["native"], indirect=True)
@pytest.mark.parametrize("management", [False, True], ids=["public", "management"])
def test_other_methods_get_nothing_either(guarded, management):
    pages = pages_of_the_code(management=management)
    let_past = []
    for path, scope in {path: scope for (_, path), scope in pages.items()}.items():
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "OPTIONS", "DELETE", "TRACE", "CONNECT", "PURGE", "BREW"):
            public = scope is None and method in ("GET", "HEAD")
            if public or pages.get((method, path), "none") is None:
                continue
            status = guarded.status(method, _called(path, "admin"), management=management)
            if status not in (0, 400, 404, 405):
                let_past.append((method, path, status))
    assert let_past == []


@pytest.mark.parametrize("management", [False, True], ids=["public", "management"])
def test_the_applications_routes_are_the_pages_and_nothing_else(management):
    loop = asyncio.new_event_loop()
    try:
        service = Service(Catalog())
        answering = Answering(service, LoopTurn(loop))
        dialects = http_dialects(service, answering, EVERYTHING)
        routes = application(service, answering, dialects, management=management).routes
    finally:
        loop.close()
    assert all(type(route) is Route for route in routes)  # no mount, no host, no socket
    found = {(method, route.path) for route in routes for method in route.methods - {"HEAD"}}
    assert found == pages_of_the_code(management=management).keys()


RPCS_THAT_ARE_NONE = (
    *("/", "/x", "/x/y", f"{V2}/", f"{V2}/modelinfer", f"{V2.lower()}/ModelInfer", f"{V2}/ModelInfer/"),
    *(f"/{V2}/ModelInfer", f"{V2}%2FModelInfer", f"{V2}/ModelRepositoryAll", "/grpc.channelz.v1.Channelz/GetServers"),
)


def test_rpcs_that_there_are_not_answer_nothing(guarded):
    for path in RPCS_THAT_ARE_NONE:
        code = guarded.code(Call(path, "admin", None))
        assert code in (0, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN), (path, code)


@pytest.mark.parametrize("key", ["", "Bearer ", "x-api-key", "certificate"])
def test_no_key_is_made_up_from_nothing(guarded, key):
    """Whatever a credential may be told apart by, saying so does not make one."""
    made_up = {"certificate": f"\0certificate\0{2**40}\0CN:root"}.get(key, key)
    with guarded.server.connect() as connection:
        connection.sendall(
            b"GET /v2 HTTP/1.1\r\nhost: x\r\nx-api-key: %b\r\nauthorization: %b\r\nconnection: close\r\n\r\n"
            % (made_up.encode(), made_up.encode())
        )
        assert connection.recv(20).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 401 "))


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
    with serving_settings(tiny_onnx, routes=EVERYTHING.routes) as server:
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
