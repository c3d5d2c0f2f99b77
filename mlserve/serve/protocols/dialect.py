"""What a dialect is: pages over HTTP, calls over gRPC, and how each reads and writes the bytes of an inference.

A dialect is one file that says which paths it has and how its bytes map to the one Service; it never sees a socket, a
thread or a key. Every page and call names the scope it needs, and the transports ask for it before anything else.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mlserve.errors import InvalidRequest, RequestError
from mlserve.model.tensors import Tensors
from mlserve.serve.access import Scope
from mlserve.serve.answering import Answering
from mlserve.serve.compression import is_packed
from mlserve.serve.service import ServedModel, Service
from mlserve.serve.tasks.task import Asked, TaskAnswer
from mlserve.wire.signature import InferRequest

__all__ = [
    "CREDENTIAL",
    "ENCODING",
    "JSON_BYTES",
    "JSON_FIELDS",
    "AsyncCall",
    "Call",
    "Content",
    "Dialect",
    "Documentation",
    "Headers",
    "InferCall",
    "InferPage",
    "InferRoute",
    "Inference",
    "Page",
    "StreamCall",
    "check_encoding",
    "error_body",
    "find_by_path",
    "json_part",
    "json_response",
]

CREDENTIAL = "mlserve.credential"
"""Where a request's scope has the credential that its page was allowed by, for pages that need a further scope."""

JSON_BYTES = b"inference-header-content-length"
"""The header that says how many bytes of a body are JSON; raw tensors follow them."""

ENCODING = b"content-encoding"
JSON_FIELDS = b"content-type: application/json\r\n"

Headers = Mapping[bytes, bytes]
"""A request's headers by lower-case name."""

# More digits than any body has bytes; int() itself refuses thousands of them with an error of its own.
_MOST_DIGITS = 18


class Content(NamedTuple):
    """The body of an answer, and the header lines that describe it, each ended by CRLF."""

    body: bytes
    fields: bytes = JSON_FIELDS


def error_body(_: int, message: str) -> bytes:
    """`{"error": message}`, at most a kilobyte of it."""
    return msgspec.json.encode({"error": message[:900]})


def _no_answers(model: ServedModel, _: Asked, __: Sequence[TaskAnswer]) -> Content:
    raise InvalidRequest(f"model '{model.signature.name}' takes tensors here")


class Inference(msgspec.Struct, frozen=True):
    """How one dialect reads a request for inference and writes its answer.

    `protocol` is its name in metrics, logs and traces. `decode(body, model, headers)` gives tensors, or what a person
    has (`Asked`) for the model's task to read. `all_headers`: `decode` looks at headers other than `JSON_BYTES`
    (gathering them costs time, so only those who look pay). `error(status, message)` is the body of an error.
    """

    protocol: str
    decode: Callable[[bytes, ServedModel, Headers], "InferRequest | Asked"]
    encode: Callable[[ServedModel, InferRequest, Tensors], Content]
    encode_answers: Callable[[ServedModel, Asked, Sequence[TaskAnswer]], Content] = _no_answers
    all_headers: bool = False
    error: Callable[[int, str], bytes] = error_body


class InferRoute(msgspec.Struct, frozen=True):
    """What one path means at this moment: a model, and the way to speak with it.

    `find_again` is for a request that began under another catalog. Raises UnknownModelError.
    """

    model: ServedModel
    inference: Inference
    find_again: Callable[[], ServedModel]

    def refusing(self, error: RequestError) -> "InferRoute":
        """The same route, but with `error` for an answer, whatever is asked."""

        def decode(_: bytes, __: ServedModel, ___: Headers) -> NoReturn:
            raise error

        return msgspec.structs.replace(self, inference=msgspec.structs.replace(self.inference, decode=decode))


class Documentation(msgspec.Struct, frozen=True):
    """What `/openapi.json` says of a page: JSON schemas and examples, written down where the page is written.

    `request` and `response` are JSON schemas (None: no body), `example` is a request body for the model at hand where
    one can be made, `media` the request's content types. `query` names query parameters, each with its schema.
    """

    request: dict[str, Any] | None = None
    response: dict[str, Any] | None = None
    media: tuple[str, ...] = ("application/json",)
    query: dict[str, dict[str, Any]] = {}
    example: Callable[[ServedModel], Any] | None = None
    statuses: tuple[int, ...] = ()


class Page(msgspec.Struct, frozen=True):
    """A page that needs no engine. `path` is a Starlette template; `scope` None means public.

    `admin`: served on the management port only, and only where there is one. `infers`: it may ask a model though its
    scope is another than `infer`, so what it has in a queue is dropped when its client leaves.
    """

    path: str
    methods: tuple[str, ...]
    scope: Scope | None
    answer: Callable[[Request], Awaitable[Response]]
    summary: str
    documentation: Documentation = Documentation()
    admin: bool = False
    infers: bool = False


def find_by_path(service: Service, request: Request) -> ServedModel:
    """The model that `{name}` and `{version}` of a path mean."""
    return service.find(request.path_params["name"], request.path_params.get("version", ""))


class InferPage(msgspec.Struct, frozen=True):
    """A page that answers by inference; its scope is always `infer`.

    `find(service, request)` says which model a request is for. `by_path`: it looks at the path alone, so the fast lane
    may remember what a path means for as long as the catalog stays as it is.
    """

    path: str
    inference: Inference
    summary: str
    documentation: Documentation = Documentation()
    find: Callable[[Service, Request], ServedModel] = find_by_path
    by_path: bool = True


class Dialect(msgspec.Struct, frozen=True):
    """One way to speak with the server over HTTP. `error(status, message)` is the body of its errors."""

    name: str
    pages: tuple[Page | InferPage, ...]
    error: Callable[[int, str], bytes] = error_body


class Call(msgspec.Struct, frozen=True):
    """A gRPC call that is answered at once: `answer(service, request bytes)` gives a protobuf message."""

    path: str
    scope: Scope | None
    answer: Callable[[Service, bytes], Any]


class InferCall(msgspec.Struct, frozen=True):
    """A gRPC call that is answered by inference.

    `parse` gives the message; `find` the model it names; `decode` its tensors; `encode` the response's bytes.
    """

    path: str
    protocol: str
    parse: Callable[[bytes], Any]
    find: Callable[[Service, Any], ServedModel]
    decode: Callable[[Any, ServedModel], InferRequest]
    encode: Callable[[ServedModel, InferRequest, Tensors], bytes]


class AsyncCall(msgspec.Struct, frozen=True):
    """A gRPC call that takes its time: `answer(service, request bytes)` is awaited on the event loop."""

    path: str
    scope: Scope | None
    answer: Callable[[Service, bytes], Awaitable[Any]]


class StreamCall(msgspec.Struct, frozen=True):
    """A gRPC call with streams of messages, on the event loop.

    `answer(service, answering, request messages' bytes)` yields the responses' bytes. `client_streams`: the client
    sends more than one message.
    """

    path: str
    scope: Scope | None
    answer: Callable[[Service, Answering, AsyncIterator[bytes]], AsyncIterator[bytes]]
    client_streams: bool = True


def json_response(value: Any, status: int = 200) -> Response:
    """A page's answer in JSON."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def json_part(length: bytes | None) -> int | None:
    """How many bytes of a body are JSON, by the header's value; None when all are. Raises InvalidRequest."""
    if length is None:
        return None
    if not length.isdigit() or len(length) > _MOST_DIGITS:
        raise InvalidRequest("Inference-Header-Content-Length is no number of bytes")
    return int(length)


def check_encoding(encoding: bytes | None) -> None:
    """Raises UnsupportedContent for a coding that the transports do not unpack; what they do arrives here unpacked."""
    is_packed(encoding)
