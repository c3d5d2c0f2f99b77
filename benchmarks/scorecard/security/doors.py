"""E1: every page and every rpc of every contract asks for a credential that allows it, but those on a written list."""

import http.client
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import grpc
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.known import MODEL
from scorecard.security.route_list import (
    EVERYTHING,
    MANAGEMENT_PAGES,
    PAGES,
    SCOPES,
    Pages,
    listed_pages,
    listed_rpcs,
    pages_of_the_code,
    rpcs_of_the_code,
)
from scorecard.server import Server, serving_both

from mlserve.serve.access import Scope
from mlserve.serve.dialects import SLOW_CALLS
from mlserve.serve.keys import add_key, new_key
from mlserve.serve.protocols.dialect import StreamCall
from mlserve.serve.settings import NamedRoute, ServeSettings

__all__ = ["CASE"]

_PATIENCE_S = 30.0
# What one of many front ends forgot, as in CVE-2026-24207; and an rpc that was added without a thought.
_FORGETFUL = """
import msgspec
from mlserve.serve.protocols import sagemaker, v2_repository
right = sagemaker.dialect
def forgetful(service):
    made = right(service)
    pages = tuple(msgspec.structs.replace(page, scope=None) if hasattr(page, "scope") else page for page in made.pages)
    return msgspec.structs.replace(made, pages=pages)
sagemaker.dialect = forgetful
v2_repository.CALLS = tuple(msgspec.structs.replace(call, scope=None) for call in v2_repository.CALLS)
"""
_ROUTE = "/named/predict"
_SERVED = ServeSettings(routes=(NamedRoute(_ROUTE, MODEL),))
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "OPTIONS", "DELETE", "TRACE", "CONNECT", "PURGE")
_REFUSED = (401, 403)
_NOTHING_THERE = (400, 404, 405)
_CLOSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_NO_RPCS = ("/x/y", "/inference.GRPCInferenceService/Nothing", "/inference.grpcinferenceservice/ModelInfer")


class _Attempt(NamedTuple):
    """One call with a credential that does not do. `allowed`: which answers let nobody in."""

    what: str
    path: str
    key: str | None
    method: str = ""
    management: bool = False
    allowed: tuple[int, ...] = _REFUSED


class _Calls:
    """Calls one server, with every kind of key."""

    def __init__(self, server: Server, keys: Mapping[str, str]) -> None:
        self._server, self._keys = server, keys
        self._ports = {False: server.endpoints.http, True: server.ready["management"].removeprefix("http://")}
        self.made = 0

    def wrong(self, scope: Scope, kinds: int) -> list[tuple[str, str | None]]:
        """So many kinds of credential that do not allow `scope`."""
        found = [("no key", None), ("another scope's key", self._keys[f"all but {scope}"])]
        return [*found, ("an unknown key", "x" * 43), ("an expired key", self._keys["expired"])][:kinds]

    def right(self, scope: Scope) -> str:
        return self._keys[scope]

    def status(self, attempt: _Attempt) -> int:
        self.made += 1
        connection = http.client.HTTPConnection(self._ports[attempt.management], timeout=_PATIENCE_S)
        headers = {} if attempt.key is None else {"authorization": f"Bearer {attempt.key}"}
        try:
            connection.request(attempt.method, attempt.path, b"{}", headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def code(self, path: str, key: str | None, channel: grpc.Channel) -> grpc.StatusCode:
        self.made += 1
        metadata = () if key is None else (("x-api-key", key),)
        streams = {call.path: call.client_streams for call in SLOW_CALLS if isinstance(call, StreamCall)}
        try:
            if path not in streams:
                channel.unary_unary(path)(b"", timeout=_PATIENCE_S, metadata=metadata)
            elif streams[path]:
                next(channel.stream_stream(path)(iter([b""]), timeout=_PATIENCE_S, metadata=metadata), None)
            else:
                next(channel.unary_stream(path)(b"", timeout=_PATIENCE_S, metadata=metadata), None)
        except grpc.RpcError as error:
            found: grpc.StatusCode = error.code()
            return found
        return grpc.StatusCode.OK


def run(stage: Stage) -> Outcome:
    keys = _make_keys(stage.folder / "keys.json")
    outcomes: list[tuple[int, list[str]]] = []
    transports = ("native", "guarded", "grpcio") if stage.form == "long" else ("guarded",)
    spoilt: list[str] = []
    for transport in transports:
        folder = stage.folder / transport
        folder.mkdir()
        flags = ("--model-control", "explicit", "--management-port", "0", "--keys", stage.folder / "keys.json")
        flags += ("--route", f"{_ROUTE}={MODEL}", "--grpc-transport", transport)
        with serving_both(folder, *flags, plant=_FORGETFUL) as (sound, broken):
            outcomes.append(_play(sound, keys, stage))
            spoilt = _play(broken, keys, stage)[1]
    unlisted, unseen = _unlisted(pages_of_the_code), _unlisted(_with_a_new_page)
    calls, let_past = sum(made for made, _ in outcomes), [each for _, found in outcomes for each in found]
    faults = [*unlisted, *let_past]
    pages = len(listed_pages(PAGES)) + len(listed_pages(MANAGEMENT_PAGES))
    public = sum(scope is None for scope in (*listed_pages(PAGES).values(), *listed_rpcs().values()))
    return Outcome(
        passed=not faults,
        found=f"{calls} calls of {pages} pages and {len(listed_rpcs())} rpcs, of which {public} are public, "
        + (f"let past or not listed: {'; '.join(faults[:8])}" if faults else "none let past that should not be"),
        figures=(
            Figure("pages and rpcs", pages + len(listed_rpcs())),
            Figure("public ones", public),
            Figure("calls", calls),
            Figure("let past", len(let_past), limit="0"),
            Figure("not listed", len(unlisted), limit="0"),
        ),
        control=f"a server whose SageMaker pages and one rpc forgot to ask let past {len(spoilt)}; a page that is new "
        f"was {'seen' if unseen else 'not seen'}",
        control_failed=bool(spoilt and unseen),
    )


def _make_keys(path: Path) -> dict[str, str]:
    """A file of keys that do: one for each scope; and that do not: an expired one, and each scope's complement."""
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    made = {
        "expired": new_key("expired", SCOPES, past),
        **{scope: new_key(f"only-{scope}", [scope]) for scope in SCOPES},
        **{f"all but {scope}": new_key(f"no-{scope}", {*SCOPES} - {scope}) for scope in SCOPES},
    }
    for new in made.values():
        add_key(path, new.key)
    return {name: new.secret for name, new in made.items()}


def _play(server: Server, keys: Mapping[str, str], stage: Stage) -> tuple[int, list[str]]:
    """How many calls were made, and those that were let past with a wrong key, or refused with the right one."""
    calls, thorough = _Calls(server, keys), stage.form != "seconds"
    faults = [
        f"{attempt.method} {attempt.path} with {attempt.what}: {status}"
        for attempt in _attempts(calls, thorough=thorough)
        if (status := calls.status(attempt)) not in attempt.allowed
    ]
    kinds = 4 if thorough else 2
    with grpc.insecure_channel(server.endpoints.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        for path, scope in rpcs_of_the_code().items():
            if scope is None:
                continue
            for what, key in calls.wrong(scope, kinds):
                code = calls.code(path, key, channel)
                if code not in _CLOSED:
                    faults.append(f"{path} with {what}: {code.name}")
            if calls.code(path, calls.right(scope), channel) is grpc.StatusCode.UNAUTHENTICATED:
                faults.append(f"{path} refuses its own key")
        answering = [path for path in _NO_RPCS if calls.code(path, None, channel) is grpc.StatusCode.OK]
        faults += [f"{path} answers, and there is no such rpc" for path in answering]
    return calls.made, faults


def _attempts(calls: _Calls, *, thorough: bool) -> Iterator[_Attempt]:
    for management in (False, True):
        pages = pages_of_the_code(_SERVED, management=management)
        for (method, template), scope in pages.items():
            path = _called(template)
            if scope is None:
                yield _Attempt("no key, being public", path, None, method, management, (200,))
                continue
            for what, key in calls.wrong(scope, 4 if thorough else 2):
                yield _Attempt(what, path, key, method, management)
            # Its own key is let past, whatever is then answered: the rest are refusals of something else.
            answers = tuple(status for status in range(200, 600) if status != 401)
            yield _Attempt("its own key", path, calls.right(scope), method, management, answers)
            if thorough:
                for what, spelled in _spelled(path):
                    yield _Attempt(what, spelled, None, method, management, (*_REFUSED, *_NOTHING_THERE))
        for template in {path for _, path in pages} if thorough else ():
            for method in _METHODS:
                if pages.get((method, template), "none") is None or (
                    method == "HEAD" and not pages.get(("GET", template))
                ):
                    continue
                answers = (*_REFUSED, *_NOTHING_THERE)
                yield _Attempt("another method", _called(template), None, method, management, answers)


def _called(template: str) -> str:
    """A path that changes nothing, whoever is let past."""
    return template.replace(":int}", "}").format(name="absent", number=99, version="1", label="stable", region="r")


def _spelled(path: str) -> Iterator[tuple[str, str]]:
    head, _, last = path.rpartition("/")
    yield "a query", path + "?x=1"
    yield "a slash behind", path + "/"
    yield "a slash before", "/" + path
    yield "two slashes", f"{head}//{last}"
    yield "two dots", f"{head}/x/../{last}"
    yield "encoded dots", f"{head}/x/%2e%2e/{last}"
    yield "a letter encoded", f"{head}/%{ord(last[:1] or 'x'):02x}{last[1:]}"
    yield "a slash encoded", f"{head}%2F{last}"
    yield "upper case", path.upper()
    yield "a NUL", path + "%00"
    yield "another host's", f"http://evil.example{path}"
    yield "a public page first", f"/v2/health/live/..{path}"


def _unlisted(pages_of: Callable[..., Pages]) -> list[str]:
    """What the code has and the list has not, or has with another scope; and what is listed and not there."""
    found = {
        (management, *page)
        for management in (False, True)
        for page in pages_of(EVERYTHING, management=management).items()
    }
    listed = {(False, *page) for page in listed_pages(PAGES).items()}
    listed |= {(True, *page) for page in listed_pages(MANAGEMENT_PAGES).items()}
    rpcs = {*rpcs_of_the_code().items()} ^ {*listed_rpcs().items()}
    return sorted(str(each) for each in (*(found ^ listed), *rpcs))


def _with_a_new_page(settings: ServeSettings, *, management: bool) -> Pages:
    return {**pages_of_the_code(settings, management=management), ("GET", "/new"): None}


CASE = Case(
    id="E1",
    title="Every door asks for a key",
    criterion="all routes, methods and rpcs of every contract refuse no, unknown, expired and wrong-scope credentials "
    "by 401, 403, UNAUTHENTICATED or PERMISSION_DENIED, but for a written list; a new route fails until it is listed",
    source="CVE-2026-24207, schemathesis ignored_auth",
    run=run,
)
