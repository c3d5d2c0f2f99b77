"""Every HTTP page of every dialect as one ASGI application, behind one authorization point.

Inference that comes here (a path the fast lane has not seen yet, a model named in the body) is answered as the fast
lane does it; where the path alone says which model is meant, the fast lane is told, and answers the next one itself.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from mlserve.errors import RequestError, UnknownModelError
from mlserve.serve.answering import Answering
from mlserve.serve.catalog import Catalog
from mlserve.serve.protocols.dialect import (
    ENCODING,
    Content,
    Dialect,
    Inference,
    InferPage,
    InferRoute,
    Page,
    check_encoding,
    error_body,
    find_by_path,
)
from mlserve.serve.service import ServedModel, Service
from mlserve.serve.tasks.task import Asked

__all__ = ["application"]

# So many different spellings of paths are remembered.
_MOST_ROUTES = 4096


def application(
    service: Service, answering: Answering, dialects: Sequence[Dialect], *, management: bool = False
) -> Starlette:
    """The pages of `dialects`: those of the management port, or all others."""
    pages = _Pages(service, answering)
    routes = [
        Route(page.path, pages.handler(page, dialect), methods=methods)
        for dialect in dialects
        for page, methods in ((page, _methods(page)) for page in dialect.pages)
        if _is_admin(page) == management
    ]
    if not management:
        service.plan_routes(partial(_plain_routes, service, dialects))
    handlers = {HTTPException: _http_error, ClientDisconnect: _nobody_waits, Exception: _bug}
    return Starlette(routes=routes, exception_handlers=handlers)


def _plain_routes(service: Service, dialects: Sequence[Dialect], catalog: Catalog) -> dict[bytes, InferRoute]:
    """What the paths of inference mean that hold nothing but a name, or a name and a version."""
    pages = [page for each in dialects for page in each.pages if isinstance(page, InferPage)]
    routes: dict[bytes, InferRoute] = {}
    for page in pages:
        if page.find is not find_by_path:
            continue
        for name, version in catalog.models:
            wanted = version if "{version}" in page.path else ""
            with suppress(UnknownModelError):
                path = page.path.format(name=name, version=version).encode()
                found = catalog.find(name, wanted)
                routes.setdefault(path, InferRoute(found, page.inference, partial(service.find, name, wanted)))
    return routes


class _Pages:
    def __init__(self, service: Service, answering: Answering) -> None:
        self._service, self._answering = service, answering

    def handler(self, page: Page | InferPage, dialect: Dialect) -> Callable[[Request], Awaitable[Response]]:
        """What answers `page`: allowed first, errors in the dialect's own words."""
        scope = page.scope if isinstance(page, Page) else "infer"
        error_of = dialect.error if isinstance(page, Page) else page.inference.error
        answer = page.answer if isinstance(page, Page) else partial(self._infer, page)

        async def handle(request: Request) -> Response:
            try:
                self._service.access.check(scope, _credential(request))
                return await answer(request)
            except RequestError as error:
                return _refusal(error, error_of)

        return handle

    async def _infer(self, page: InferPage, request: Request) -> Response:
        inference = page.inference
        body = await request.body()
        headers = dict(request.scope["headers"])
        self._service.check_serving()
        model = page.find(self._service, request)
        if page.by_path:
            self._tell_fast_lane(page, model, request)
        body, fields = await self._answer(model, inference, body, headers)
        lines = [line.split(b": ", 1) for line in fields.split(b"\r\n") if line]
        reply = Response(body)
        reply.raw_headers += [(name, value) for name, value in lines]
        return reply

    async def _answer(
        self, model: ServedModel, inference: Inference, body: bytes, headers: dict[bytes, bytes]
    ) -> Content:
        try:
            check_encoding(headers.get(ENCODING))
            wanted = inference.decode(body, model, headers)
        except RequestError as error:
            model.meter.failed(inference.protocol, error)
            raise
        if isinstance(wanted, Asked):
            answers = await self._answering.ask(model, wanted, inference.protocol)
            return inference.encode_answers(model, wanted, answers)
        answered = await self._answering.infer(model, wanted, inference.protocol)
        return inference.encode(model, wanted, answered.outputs)

    def _tell_fast_lane(self, page: InferPage, model: ServedModel, request: Request) -> None:
        routes = self._service.catalog.routes
        if not request.scope["query_string"] and len(routes) < _MOST_ROUTES:
            find_again = partial(page.find, self._service, request)
            routes[request.scope["raw_path"]] = InferRoute(model, page.inference, find_again)


def _methods(page: Page | InferPage) -> list[str]:
    return list(page.methods) if isinstance(page, Page) else ["POST"]


def _is_admin(page: Page | InferPage) -> bool:
    return isinstance(page, Page) and page.admin


def _credential(request: Request) -> bytes | None:
    fields = dict(request.scope["headers"])
    return fields.get(b"authorization") or fields.get(b"x-api-key")


def _refusal(error: RequestError, body: Callable[[int, str], bytes]) -> Response:
    status = error.http_status
    headers = {401: {"www-authenticate": "Bearer"}, 503: {"retry-after": "1"}}.get(status)
    return Response(body(status, str(error)), status, headers, "application/json")


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
