"""The server's own pages: `/`, `/docs` and `/openapi.json`, and the last two for the management port, too."""

import asyncio
import re
from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mlserve.serve.catalog import ServedModel
from mlserve.serve.pages.operations import Operation, operations
from mlserve.serve.pages.snippets import Address
from mlserve.serve.protocols.dialect import AsyncCall, Call, Dialect, Documentation, InferCall, Page, StreamCall
from mlserve.serve.service import Service
from mlserve.serve.settings import ServeSettings

__all__ = ["dialect"]

# What a Host header may be to be shown in commands that people paste: a name or an address, and a port.
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?")


def dialect(
    service: Service,
    settings: ServeSettings,
    dialects: Sequence[Dialect],
    calls: Sequence[Call | InferCall | AsyncCall | StreamCall],
) -> Dialect:
    """Its pages, which tell of `dialects` as they are when a page is asked for, and of the gRPC `calls`."""
    pages = _Pages(service, settings, dialects, calls)
    get = ("GET",)
    return Dialect(
        "pages",
        (
            Page("/", get, "metadata", pages.landing, "What is served, and how to call it", _LANDING),
            Page("/docs", get, "metadata", pages.docs, "Every page and call, with examples", _DOCS),
            Page("/openapi.json", get, "metadata", pages.openapi, "Every page, as OpenAPI 3.1", _OPENAPI),
            Page("/docs", get, "admin", pages.admin_docs, "Every page of the management port", _DOCS, admin=True),
            Page("/openapi.json", get, "admin", pages.admin_openapi, "The same, as OpenAPI 3.1", _OPENAPI, admin=True),
        ),
    )


_CHOICE = {"model": {"type": "string"}}
_LANDING = Documentation(response={"type": "object", "required": ["server", "models", "links"]}, query=_CHOICE)
_DOCS = Documentation(response={"type": "string", "contentMediaType": "text/html"}, query=_CHOICE, statuses=(404,))
_OPENAPI = Documentation(response={"type": "object", "required": ["openapi", "paths"]}, query=_CHOICE, statuses=(404,))


class _Pages:
    """One method a page. What only these pages need is imported when one is asked for.

    They are made in a thread: the event loop has requests to answer.
    """

    def __init__(
        self,
        service: Service,
        settings: ServeSettings,
        dialects: Sequence[Dialect],
        calls: Sequence[Call | InferCall | AsyncCall | StreamCall],
    ) -> None:
        self._service, self._settings = service, settings
        self._dialects, self._calls = dialects, calls

    async def landing(self, request: Request) -> Response:
        from mlserve.serve.pages.landing import landing_page, landing_summary

        if "text/html" in request.headers.get("accept", ""):
            chosen = request.query_params.get("model", "")
            return await asyncio.to_thread(landing_page, self._service, self._address(request), chosen)
        return _json(landing_summary(self._service))

    async def docs(self, request: Request) -> Response:
        return await asyncio.to_thread(self._docs, request, management=False)

    async def openapi(self, request: Request) -> Response:
        return await asyncio.to_thread(self._openapi, request, management=False)

    async def admin_docs(self, request: Request) -> Response:
        return await asyncio.to_thread(self._docs, request, management=True)

    async def admin_openapi(self, request: Request) -> Response:
        return await asyncio.to_thread(self._openapi, request, management=True)

    def _docs(self, request: Request, *, management: bool) -> Response:
        from mlserve.serve.pages.documentation import documentation_page

        model = self._model(request)
        pages, calls = self._operations(model, management=management), () if management else self._calls
        name = model.signature.name if model is not None else ""
        return documentation_page(pages, calls, self._address(request), self._service.name, name)

    def _openapi(self, request: Request, *, management: bool) -> Response:
        from mlserve.serve.pages.openapi import openapi

        pages = self._operations(self._model(request), management=management)
        return _json(openapi(pages, self._service.name, keyed=not self._service.access.open))

    def _operations(self, model: ServedModel | None, *, management: bool) -> list[Operation]:
        return operations(self._dialects, self._service.catalog, model, management=management)

    def _model(self, request: Request) -> ServedModel | None:
        """The model that examples are for: the one asked for, or the first; None when none is served."""
        chosen = request.query_params.get("model", "")
        if chosen:
            return self._service.find(chosen)
        return next(iter(self._service.catalog.by_default), None)

    def _address(self, request: Request) -> Address:
        """Where this client reached the server, by its own account where that can be shown."""
        settings = self._settings
        host = request.headers.get("host", "")
        if not _HOST.fullmatch(host):
            host = settings.authority(settings.http_port)
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        return Address(
            f"{request.url.scheme}://{host}", f"{name}:{settings.grpc_port}", keyed=not self._service.access.open
        )


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json", headers={"vary": "accept"})
