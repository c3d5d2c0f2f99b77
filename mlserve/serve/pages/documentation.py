"""The documentation page at `/docs`: every page and every gRPC call, with a request that works for a model at hand."""

from collections.abc import Sequence

import msgspec
from starlette.responses import Response

from mlserve import __version__
from mlserve.serve.pages.operations import Operation
from mlserve.serve.pages.sheet import sheet
from mlserve.serve.pages.snippets import Address, curl
from mlserve.serve.pages.wording import Told, fields_of, type_of
from mlserve.serve.protocols.dialect import AsyncCall, Call, InferCall, StreamCall

__all__ = ["GrpcCall", "documentation_page"]

# A body of more characters is told by its size.
_MOST_SHOWN = 4000

AnyCall = Call | InferCall | AsyncCall | StreamCall


class _Entry(msgspec.Struct, frozen=True):
    """One operation as it is shown. `curl` is empty where no request is known that is answered."""

    page: Operation
    anchor: str
    curl: str
    body: str
    request: list[Told]
    response: list[Told]
    answers: str
    media: tuple[str, ...]
    sends: bool


class GrpcCall(msgspec.Struct, frozen=True):
    """One gRPC call as it is shown."""

    service: str
    method: str
    scope: str
    streams: str

    @classmethod
    def of(cls, call: AnyCall) -> "GrpcCall":
        """The call in words."""
        service, _, method = call.path.removeprefix("/").rpartition("/")
        streams = "no"
        if isinstance(call, StreamCall):
            streams = "both ways" if call.client_streams else "answers"
        scope = "infer" if isinstance(call, InferCall) else call.scope or "none"
        return cls(service, method, scope, streams)


def documentation_page(
    pages: Sequence[Operation], calls: Sequence[AnyCall], address: Address, server: str, model: str
) -> Response:
    """The page. `model` is the name that its examples are for, empty when none is served."""
    dialects = dict.fromkeys(page.dialect for page in pages)
    services: dict[str, list[GrpcCall]] = {}
    for call in map(GrpcCall.of, calls):
        services.setdefault(call.service, []).append(call)
    return sheet(
        "documentation.html",
        server=server,
        version=__version__,
        model=model,
        address=address,
        keyed=address.keyed,
        dialects={name: [_entry(page, address) for page in pages if page.dialect == name] for name in dialects},
        services=services,
    )


def _entry(page: Operation, address: Address) -> _Entry:
    told = page.documentation
    body = "" if page.example is None else msgspec.json.encode(page.example).decode()
    return _Entry(
        page,
        f"{page.dialect}-{page.method}-{page.path}".replace("/", "-").replace("{", "").replace("}", ""),
        _curl(page, address, body),
        body if len(body) <= _MOST_SHOWN else "",
        fields_of(told.request),
        fields_of(told.response),
        type_of(told.response),
        told.media,
        page.reads_body,
    )


def _curl(page: Operation, address: Address, body: str) -> str:
    """The command for it; empty for a page that changes something, never succeeds, or has no example."""
    told = page.documentation
    if not page.filled or page.refuses or len(body) > _MOST_SHOWN or page.method not in ("GET", "POST"):
        return ""
    url = address.http + page.filled
    if page.method == "GET":
        return curl(url, address)
    return curl(url, address, body, media=told.media[0]) if body and page.scope != "admin" else ""
