"""Every HTTP page of every dialect as one ASGI application, behind one authorization point.

Inference that comes here (a path the fast lane has not seen yet, a model named in the body) is answered as the fast
lane does it; where the path alone says which model is meant, the fast lane is told, and answers the next one itself.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message

from mlserve.errors import RequestError
from mlserve.serve.answering import Answering, noting_batches
from mlserve.serve.catalog import Catalog
from mlserve.serve.compression import is_packed, pack, unpack
from mlserve.serve.protocols.dialect import (
    CREDENTIAL,
    ENCODING,
    Dialect,
    InferPage,
    InferRoute,
    Page,
    error_body,
    find_by_path,
)
from mlserve.serve.service import ServedModel, Service
from mlserve.serve.settings import Limits
from mlserve.serve.transports.certificate_mark import CERTIFICATE_FIELD
from mlserve.serve.transports.http_reply import ACCEPT_ENCODING, asked_fields, retry_field
from mlserve.serve.transports.http_slow import answer, read, unless_gone

__all__ = ["application"]

# So many different spellings of paths are remembered.
_MOST_ROUTES = 4096


def application(
    service: Service,
    answering: Answering,
    dialects: Sequence[Dialect],
    limits: Limits = Limits(),  # noqa: B008  # a frozen value
    *,
    management: bool = False,
) -> Starlette:
    """The pages of `dialects`: those of the management port, or all others."""
    pages = _Pages(service, answering, limits)
    routes = [
        Route(page.path, pages.handler(page, dialect), methods=methods)
        for dialect in dialects
        for page, methods in ((page, _methods(page)) for page in dialect.pages)
        if _is_admin(page) == management
    ]
    if not management:
        service.plan_routes(partial(_plain_routes, service, dialects))
    handlers = {HTTPException: _http_error, ClientDisconnect: _nobody_waits, Exception: _bug}
    made = Starlette(routes=routes, exception_handlers=handlers)
    made.router.redirect_slashes = False  # it would answer before anybody was asked for a key
    return made


def _plain_routes(service: Service, dialects: Sequence[Dialect], catalog: Catalog) -> dict[bytes, InferRoute]:
    """What the paths of inference mean that hold nothing but a name, or a name and a version."""
    pages = [page for each in dialects for page in each.pages if isinstance(page, InferPage)]
    routes: dict[bytes, InferRoute] = {}
    for page in pages:
        if page.find is not find_by_path:
            continue
        for name, version in catalog.models:
            wanted = version if "{version}" in page.path else ""
            found = catalog.look_up(name, wanted)
            if found is not None:
                path = page.path.format(name=name, version=version).encode()
                routes.setdefault(path, InferRoute(found, page.inference, partial(service.find, name, wanted)))
    return routes


class _Pages:
    def __init__(self, service: Service, answering: Answering, limits: Limits) -> None:
        self._service, self._answering, self._limits = service, answering, limits

    def handler(self, page: Page | InferPage, dialect: Dialect) -> Callable[[Request], Awaitable[Response]]:
        """What answers `page`: allowed first, errors in the dialect's own words."""
        scope = page.scope if isinstance(page, Page) else "infer"
        error_of = dialect.error if isinstance(page, Page) else page.inference.error
        answer = partial(self._show, page) if isinstance(page, Page) else partial(self._infer, page)
        waits = scope == "infer" or (isinstance(page, Page) and page.infers)

        async def respond(request: Request) -> Response:
            credential = request.scope[CREDENTIAL] = _credential(request)
            self._service.access.check(scope, credential)
            complete = await self._complete(request)
            making = answer(complete)
            # Where runs are short, all is over before anybody could be seen to leave.
            return await (unless_gone(complete.receive, making) if waits and self._service.queues else making)

        allowed = respond if scope != "admin" else partial(self._audited, respond)

        async def handle(request: Request) -> Response:
            try:
                return await allowed(request)
            except RequestError as error:
                refusal = _refusal(error, error_of)
                _add_fields(refusal, asked_fields(dict(request.scope["headers"]), 0.0, ()))
                return refusal

        return handle

    async def _audited(self, respond: Callable[[Request], Awaitable[Response]], request: Request) -> Response:
        """The answer to an admin call, which the audit log is told of, whatever came of it."""
        client, name = request.client, str(request.path_params.get("name", ""))
        with self._service.audit.call(
            f"{request.method} {request.scope['raw_path'].decode('latin-1')}",
            who=self._service.access.name_of(_credential(request)),
            remote=f"{client.host}:{client.port}" if client else "",
            model=name,
        ) as line:
            response = await respond(request)
            line["status"] = response.status_code
            if response.status_code >= HTTPStatus.BAD_REQUEST:
                line["outcome"] = "refused"
        return response

    async def _complete(self, request: Request) -> Request:
        """The request with its whole body, unpacked."""
        body = await request.body()
        encoding = dict(request.scope["headers"]).get(ENCODING)
        if encoding is None or not is_packed(encoding):
            return request
        body = await unpack(body, encoding, self._limits.max_request_bytes)

        unpacked = iter([{"type": "http.request", "body": body}])

        async def receive() -> Message:
            return next(unpacked, None) or await request.receive()

        headers = [field for field in request.scope["headers"] if field[0] not in (ENCODING, b"content-length")]
        headers.append((b"content-length", b"%d" % len(body)))
        return Request({**request.scope, "headers": headers}, receive)

    async def _show(self, page: Page, request: Request) -> Response:
        headers, arrived_s = dict(request.scope["headers"]), time.perf_counter()
        with noting_batches() as batches:
            response = await page.answer(request)
        if type(response) is Response and not response.background:
            body, fields = await pack(bytes(response.body), headers.get(ACCEPT_ENCODING))
            response.body = body
            response.headers["content-length"] = str(len(body))
            _add_fields(response, fields)
        _add_fields(response, asked_fields(headers, arrived_s, batches))
        return response

    async def _infer(self, page: InferPage, request: Request) -> Response:
        inference, arrived_s = page.inference, time.perf_counter()
        body, headers = await request.body(), dict(request.scope["headers"])
        self._service.check_serving()
        model = page.find(self._service, request)
        if page.by_path:
            self._tell_fast_lane(page, model, request)
        wanted = await read(model, inference, body, headers, self._limits.max_request_bytes)
        content = await answer(self._answering, model, inference, wanted, headers, arrived_s)
        reply = Response(content.body)
        _add_fields(reply, content.fields)
        return reply

    def _tell_fast_lane(self, page: InferPage, model: ServedModel, request: Request) -> None:
        routes = self._service.catalog.routes
        if not request.scope["query_string"] and len(routes) < _MOST_ROUTES:
            # Of the request the path alone: what else it carries, its body above all, would be kept as long.
            kept = {name: request.scope[name] for name in ("type", "path", "raw_path", "path_params")}
            bare = Request(kept | {"query_string": b"", "headers": []})
            routes[request.scope["raw_path"]] = InferRoute(
                model, page.inference, partial(page.find, self._service, bare)
            )


def _add_fields(reply: Response, fields: bytes) -> None:
    """Adds header lines, each ended by CRLF."""
    for line in fields.split(b"\r\n"):
        if line:
            name, _, value = line.partition(b": ")
            reply.raw_headers.append((name, value))


def _methods(page: Page | InferPage) -> list[str]:
    return list(page.methods) if isinstance(page, Page) else ["POST"]


def _is_admin(page: Page | InferPage) -> bool:
    return isinstance(page, Page) and page.admin


def _credential(request: Request) -> bytes | None:
    fields = dict(request.scope["headers"])
    return fields.get(b"authorization") or fields.get(b"x-api-key") or request.scope.get(CERTIFICATE_FIELD)


def _refusal(error: RequestError, body: Callable[[int, str], bytes]) -> Response:
    status = error.http_status
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    refusal = Response(body(status, str(error)), status, headers, "application/json")
    _add_fields(refusal, retry_field(status, error.retry_after_s))
    return refusal


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {
        404: "no such page; /docs lists them all",
        405: f"{request.method} is not what this path takes; see the header allow",
    }.get(error.status_code, error.detail)
    return Response(error_body(error.status_code, message), error.status_code, error.headers, "application/json")


async def _nobody_waits(_: Request, __: Exception) -> Response:
    return Response(status_code=400)


async def _bug(_: Request, __: Exception) -> Response:
    return Response(error_body(500, "the server made a mistake; its log says which"), 500, None, "application/json")
